"""PyTorch through torch.compile (Inductor)."""

from __future__ import annotations

from pathlib import Path

from fer_bench.engines import Run, torch_engine


def load(source: Path, *, model: str, threads: int, batch: int) -> Run:
    """Run the checkpoint's network, compiled on its first faces; needs a C++ compiler."""
    return torch_engine.load(source, model=model, threads=threads, batch=batch, compiled=True)
