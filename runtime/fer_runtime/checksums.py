"""A SHA-256 inside the JSON files that we read again, so that a changed byte is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHECKSUM = "sha256"


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` as JSON would read it again, with a SHA-256 of everything else in it."""
    read = json.loads(json.dumps(content))
    return {**read, CHECKSUM: _digest(read)}


def check_checksum(content: Mapping[str, Any]) -> None:
    """Check `content` against its checksum; files of earlier versions have none.

    Raises:
        ValueError: something in it has changed.
    """
    if CHECKSUM in content and content[CHECKSUM] != _digest(content):
        raise ValueError("it is damaged, or was edited: its checksum does not match")


def _digest(content: Mapping[str, Any]) -> str:
    """Whatever the order of keys and the white space."""
    values = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
