"""Disjoint sets (union-find), for copies of one image and images of one person."""

from __future__ import annotations


class DisjointSets:
    """Numbers from 0 to `count`, each in a set of its own until sets are joined (union-find)."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, index: int) -> int:
        """A number that stands for the set of `index`, the same for all its members."""
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def join(self, index: int, other: int) -> None:
        """Put the set of `index` into that of `other`, whose root it then has."""
        self._parent[self.root(index)] = self.root(other)
