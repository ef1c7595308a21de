"""Parse JSON from untrusted files: every fault is the same kind of error."""

from __future__ import annotations

import json
import math
from typing import Any

MAX_CHARACTERS = 64 << 20
_MAX_DIGITS = 400  # longer numbers are no measurement; int() of a very long one takes minutes


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        finite: False takes NaN and Infinity, which Python writes for measurements that failed.

    Raises:
        ValueError: it is no JSON, too long or too deep, or has a key twice or a number that is not finite.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, more than {MAX_CHARACTERS:,}")
    try:
        return json.loads(
            text,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant if finite else float,
            object_pairs_hook=_object,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _integer(text: str) -> int:
    value = int(text) if len(text) < 20 else 1 << 63
    if abs(value) >= 1 << 63:
        raise ValueError(f"the number {text[:20]}... is too large")
    return value


def _number(text: str) -> float:
    value = float(text) if len(text) <= _MAX_DIGITS else math.inf
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]}... is too large")
    return value


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values
