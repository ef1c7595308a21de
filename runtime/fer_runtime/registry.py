"""Registries: each kind of part that you can add to fer-edge, also from another package, by one entry.

`FER_EDGE_PLUGINS` names modules, separated by commas, that every command imports before it reads its options. Such a
module adds its entries: `DETECTORS.register(DetectorEntry(...))`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Protocol, TypeVar

PLUGINS_VARIABLE = "FER_EDGE_PLUGINS"


class Named(Protocol):
    """An entry of a registry."""

    @property
    def name(self) -> str:
        """The name on the command line."""
        ...


Entry = TypeVar("Entry", bound=Named)


class Registry(Mapping[str, Entry]):
    """Entries by name, in the order in which they were registered."""

    def __init__(self, kind: str, *entries: Entry) -> None:
        self.kind = kind  # for messages, such as "detector"
        self._entries: dict[str, Entry] = {}
        for entry in entries:
            self.register(entry)

    def register(self, entry: Entry) -> Entry:
        """Add `entry`.

        Raises:
            ValueError: its name is taken by another entry.
        """
        if self._entries.setdefault(entry.name, entry) != entry:
            raise ValueError(f"the {self.kind} {entry.name!r} is registered already")
        return entry

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def load(target: str) -> Any:
    """Import the object that "package.module:attribute" names; listing entries, which name their code, imports none."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def load_plugins() -> None:
    """Import the modules that the environment names.

    Raises:
        ImportError: one of them cannot be imported.
    """
    for name in os.environ.get(PLUGINS_VARIABLE, "").split(","):
        if name.strip():
            import_module(name.strip())
