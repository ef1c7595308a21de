"""The devices that a training test runs on: the CPU, and CUDA where it is."""

from __future__ import annotations

import torch

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
