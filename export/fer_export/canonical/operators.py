"""The operators that are written in another form: one function each, by its name in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import onnx

if TYPE_CHECKING:
    from fer_export.canonical.writer import Writer

    Rewrite = Callable[[Writer, onnx.NodeProto, list[str], dict[str, Any]], None]

REWRITES: dict[str, Rewrite] = {}


class RefusedError(Exception):
    """An operator cannot be written in another form; the message continues its name ("has ...", "computes ...")."""


class Batch:
    """The batch size, among the numbers of a shape."""

    def __repr__(self) -> str:
        return "batch"


BATCH = Batch()


def rewrites(*kinds: str) -> Callable[[Rewrite], Rewrite]:
    """Make a function the one that writes operators of these names.

    It is called with the writer, the node, its inputs' names without those left out at the end, and its attributes.
    """

    def register(rewrite: Rewrite) -> Rewrite:
        REWRITES.update(dict.fromkeys(kinds, rewrite))
        return rewrite

    return register
