"""The listings of directories that are kept, so that a name need not be asked of every layer.

Everything here runs inside the monitor.
"""

from __future__ import annotations

import time

from unionfs.inode import ROOT_INO
from unionfs.listing import Listing
from unionfs.numbers import PLAIN
from unionfs.record import OrderedDict
from unionfs.resolve import merge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.inode import Inode
    from unionfs.layer import LayerDir
    from unionfs.union import Union

#: A directory of this size on disk is not read for the sake of one name.
_HUGE_DIR = 8 << 20
#: When more names are kept than this, the listings that were read first go.
_MOST_NAMES = 200_000


class Listings:
    """Those of one union.

    Attributes:
        names: how many are in them.
    """

    def __init__(self, union: Union) -> None:
        self._union = union
        self._timeout = union.options.timeout
        self._kept: OrderedDict[Inode, None] = OrderedDict()
        self.names = 0
        #: The one read last, and the numbers on disk of its plain files by layer.
        self._scanned: tuple[Listing | None, dict[int, dict[bytes, int]]] = (None, {})

    def of(self, inode: Inode) -> Listing | None:
        """The merged listing of a directory; None where names must be asked for one by one.

        Such are directories too large to keep for lookups, and those that may not be read.

        Raises:
            OSError: a layer's directory cannot be read.
        """
        listing = inode.listing
        if listing is not None:
            if self._is_fresh(inode, listing):
                return listing
            self.forget(inode)
        assert inode.dirs is not None
        if self._union.watcher is not None:
            self._union.watcher.watch(inode, inode.dirs[-1])
        if len(inode.dirs) == 1 and inode.dirs[0].layer.indexed:
            return None  # asking name by name costs nothing
        if len(inode.dirs) < 8:
            for directory in inode.dirs:
                if directory.size_on_disk() > _HUGE_DIR:
                    return None
        try:
            return self.read(inode)
        except PermissionError:
            return None  # searched, not read (mode 0711 of somebody else): ask name by name

    def _is_fresh(self, inode: Inode, listing: Listing) -> bool:
        if self._timeout is None or time.monotonic() - listing.stamp < self._timeout:
            return True
        if listing.version is None or listing.version != self._lowers_version(inode):
            return False
        listing.stamp = time.monotonic()
        return True

    def _lowers_version(self, inode: Inode) -> tuple[tuple[int, int], ...] | None:
        """What changes when a name in a lower directory does; None: too fresh to tell.

        All changes of the upper come through us. A directory changed within the clock's tick
        (inode_set_ctime_current(): up to 10 ms) may change again without a new time.
        """
        tick = time.time_ns() - 50_000_000
        version = []
        for directory in self._union.lowers_of(inode):
            if not directory.masked:
                st = directory.stat_self()
                if st.st_mtime_ns > tick:
                    return None
                version.append((st.st_ino, st.st_mtime_ns))
        return tuple(version)

    def read(self, inode: Inode) -> Listing:
        """Read the listing of a directory from its layers and keep it."""
        if inode.listing is not None:
            if self._is_fresh(inode, inode.listing):
                return inode.listing
            self.forget(inode)
        assert inode.dirs is not None
        if self._union.watcher is not None:
            self._union.watcher.watch(inode, inode.dirs[-1])

        scanned: dict[int, dict[bytes, int]] = {}

        def read(directory: LayerDir) -> Iterator[tuple[bytes, int, tuple[int, int]]]:
            layer = directory.layer
            numbers = None
            if layer.lists_numbers and not (layer.is_upper or layer.shared_fs or layer.masks):
                numbers = scanned[layer.index] = {}
            notes: dict[int, tuple[int, int]] = {}
            for name, says, kind in directory.scan(numbers):
                note = notes.get(kind)
                if note is None:
                    note = notes[kind] = (layer.index, kind)
                yield name, says, note

        version = None if self._timeout is None else self._lowers_version(inode)
        place = inode.dirs[-1].layer.cookie_of
        listing = Listing(merge(map(read, inode.dirs)), time.monotonic(), place)
        listing.version = version
        self.keep(inode, listing)
        self._scanned = (listing, scanned)
        return listing

    def plain_number(self, listing: Listing, name: bytes) -> int:
        """The inode number of a lower's file whose directory has just been read; 0: look closer."""
        of, scanned = self._scanned
        note = listing.names[name]
        numbers = scanned.get(note[0])
        if of is not listing or numbers is None or self._union.index:
            return 0
        number = numbers.get(name, 0)
        layer = self._union.layers[note[0]]
        if layer is None or not ROOT_INO < number < PLAIN:
            return 0
        number += layer.space
        return 0 if number in self._union.table else number

    def keep(self, inode: Inode, listing: Listing) -> None:
        """Attach a listing and let the oldest go when there are too many names."""
        inode.listing = listing
        self._kept[inode] = None
        self.names += len(listing) + 8
        while self.names > _MOST_NAMES and len(self._kept) > 1:
            oldest = next(iter(self._kept))
            if oldest is inode:
                self._kept.move_to_end(inode)
                continue
            self.forget(oldest)

    def forget(self, inode: Inode) -> None:
        """Drop a listing; it is read again when needed."""
        if inode.listing is not None:
            self.names -= len(inode.listing) + 8
            inode.listing = None
            self._kept.pop(inode, None)

    def note_name(self, parent: Inode, name: bytes, kind: int) -> None:
        """A name of the upper appeared or replaced one."""
        listing = parent.listing
        if listing is not None:
            self.names += listing.put(name, 0, kind)

    def note_gone(self, parent: Inode, name: bytes, *, whiteout: bool) -> None:
        """A name went; ``whiteout``: one lies in the upper now."""
        listing = parent.listing
        if listing is not None:
            self.names += listing.remove(name, whiteout=whiteout)
