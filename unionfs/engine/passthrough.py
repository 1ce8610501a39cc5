"""Passthrough: the kernel reads and writes files of the upper itself.

Needs root of the initial user namespace and Linux 6.9. The kernel opens the registered file anew
with the flags of whoever opens it through the mount (fs/fuse/passthrough.c), so a descriptor of a
lower's file is never registered: nothing that is written can reach a lower. Lower files, and those
that someone opened before they were copied up, are served by messages as ever.

An inode is opened in one way at a time: the kernel refuses a cached open beside a passthrough one,
and the other way round (fs/fuse/iomode.c), so opens are counted. RELEASE comes late, never early;
what is counted as open may thus be closed already, and nothing that is open is counted as closed.
"""

from __future__ import annotations

from unionfs.engine import wire
from unionfs.sys import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from unionfs.ops import Ops

#: File handles: how RELEASE knows the kind of open.
CACHED: Final = 0
PASSED: Final = 1


class Passthrough:
    """Opens by inode, and the files registered with the kernel; inside the monitor only."""

    def __init__(self, ops: Ops, fd: int) -> None:
        self._ops = ops
        self._fd = fd
        self._cached: dict[int, int] = {}
        self._passed: dict[int, tuple[int, int]] = {}  # (backing id, opens)

    def open(self, ino: int, flags: int) -> tuple[int, int, int]:
        """The answer to OPEN: file handle, FOPEN flags, backing id. Copies up what is written to.

        Raises:
            OSError: as open(2).
        """
        self._ops.open(ino, flags)
        if ino not in self._cached:
            backing, opens = self._passed.get(ino) or (self._register(ino), 0)
            if backing:
                self._passed[ino] = (backing, opens + 1)
                return PASSED, wire.FOPEN_PASSTHROUGH, backing
        self.opened_cached(ino)
        # Pages of an upper file may be older than what went past this cache.
        return CACHED, 0 if self._ops.in_upper(ino) else wire.FOPEN_KEEP_CACHE, 0

    def _register(self, ino: int) -> int:
        """A backing id for a file of the upper; 0: it has to be served by messages."""
        if not self._ops.in_upper(ino):
            return 0
        try:
            return calls.fuse_backing_open(self._fd, self._ops.data_descriptor(ino))
        except OSError:
            return 0  # the upper is itself stacked too deep, say

    def opened_cached(self, ino: int) -> None:
        """Count an open that is served by messages."""
        self._cached[ino] = self._cached.get(ino, 0) + 1

    def release(self, ino: int, handle: int) -> None:
        """An open file is closed for good."""
        if handle != PASSED:
            opens = self._cached.pop(ino, 1) - 1
            if opens:
                self._cached[ino] = opens
            return
        backing, opens = self._passed.pop(ino, (0, 1))
        if opens > 1:
            self._passed[ino] = (backing, opens - 1)
        elif backing:
            calls.fuse_backing_close(self._fd, backing)
