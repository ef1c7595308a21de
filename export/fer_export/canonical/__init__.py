"""Any classifier's graph in few operators, with one row per face. Everything else in this folder is private to it."""

from __future__ import annotations

from fer_export.canonical.graph import OPSET, canonical_graph
from fer_export.canonical.operators import REWRITTEN

__all__ = ["OPSET", "REWRITTEN", "canonical_graph"]
