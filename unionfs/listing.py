"""The merged listing of one directory, in an order that creation and removal do not disturb.

A name's place is a hash of the name (as in ext4's htree), so a position given
to a reader stays good whatever is created, removed, or rebuilt from disk in
between; READDIR needs no state per open directory.
"""

from __future__ import annotations

import stat
from _bisect import bisect_left

from unionfs.resolve import Says

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

_MASK: Final = 0x7FFFFFFFFFFFFFF0
_FIRST: Final = 16
_FEW: Final = 64


def cookie_of(name: bytes) -> int:
    """Where ``name`` stands in its directory: 16 to 2**63; constant within this process."""
    return (hash(name) & _MASK) | _FIRST


class Listing:
    """Names of a merged directory: layer index of the topmost that has it, and S_IFMT bits.

    ``names`` maps a visible name to ``(layer index, kind)``; ``whiteouts`` holds
    the names that only the upper layer mentions, as deleted.
    """

    __slots__ = ("_new", "_order", "_place", "names", "stamp", "subdirs", "version", "whiteouts")

    def __init__(
        self,
        merged: dict[bytes, tuple[int, tuple[int, int]]],
        stamp: float,
        place: Callable[[bytes], int] = cookie_of,
    ) -> None:
        self._place = place
        self.names: dict[bytes, tuple[int, int]] = {}
        self.whiteouts: set[bytes] = set()
        self.subdirs = 0
        self.stamp = stamp
        self.version: tuple[tuple[int, int], ...] | None = None
        self._order: list[tuple[int, bytes]] | None = None
        self._new: list[tuple[int, bytes]] = []
        for name, (says, note) in merged.items():
            if says == Says.WHITEOUT:
                if note[0] == 0:
                    self.whiteouts.add(name)
                continue
            self.names[name] = note
            if note[1] == stat.S_IFDIR:
                self.subdirs += 1

    def __len__(self) -> int:
        return len(self.names) + len(self.whiteouts)

    def put(self, name: bytes, layer: int, kind: int) -> int:
        """A name appears, or changes its layer or type; by how much the listing grew."""
        old = self.names.get(name)
        grown = 0
        if old is None:
            if name in self.whiteouts:
                self.whiteouts.remove(name)
            else:
                grown = 1
            if self._order is not None:
                self._new.append((self._place(name), name))
                if len(self._order) + len(self._new) > 2 * len(self.names) + 1024:
                    # Mostly names that have gone again: sort anew when next asked.
                    self._order = None
                    self._new = []
        elif old[1] == stat.S_IFDIR:
            self.subdirs -= 1
        if kind == stat.S_IFDIR:
            self.subdirs += 1
        self.names[name] = (layer, kind)
        return grown

    def remove(self, name: bytes, *, whiteout: bool) -> int:
        """A name goes; ``whiteout``: one lies in the upper now; by how much the listing grew."""
        old = self.names.pop(name, None)
        if old is not None and old[1] == stat.S_IFDIR:
            self.subdirs -= 1
        before = (old is not None) + (name in self.whiteouts)
        if whiteout:
            self.whiteouts.add(name)
        else:
            self.whiteouts.discard(name)
        return whiteout - before

    def after(self, cookie: int) -> Iterator[tuple[int, bytes]]:
        """(cookie, name) of all names beyond ``cookie``, in order."""
        order = self._order
        if order is None:
            order = self._order = sorted((self._place(name), name) for name in self.names)
            self._new = []
        elif len(self._new) < _FEW:
            # A name removed and created again has its place already.
            for item in self._new:
                index = bisect_left(order, item)
                if index == len(order) or order[index] != item:
                    order.insert(index, item)
            self._new.clear()
        else:
            order = self._order = sorted({*order, *self._new})
            self._new = []
        start = bisect_left(order, (cookie + 1, b""))
        names = self.names
        for index in range(start, len(order)):
            item = order[index]
            if item[1] in names:
                yield item
