"""How many descriptors are open, and which ones may be closed to make room.

Directory descriptors (O_PATH) belong to :class:`~unionfs.layer.LayerDir`, data
descriptors to inodes. Both are closed only by ``trim``, which runs between
requests: a number handed out inside the monitor is good until it is left.
"""

from __future__ import annotations

import os
import resource
from _thread import allocate_lock

from unionfs.errors import suppress
from unionfs.record import OrderedDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.inode import Inode
    from unionfs.layer import LayerDir


#: Deleted files that wait to be closed; more are closed at once.
_MOST_DEAD = 256


def raise_open_files_limit() -> int:
    """Lift RLIMIT_NOFILE to its hard limit and return it (getrlimit(2))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


class Descriptors:
    """Least-recently-opened caches of both sorts of descriptor, and the count of pins.

    ``on_dead`` is called when there is something for ``close_dead``, inside the monitor.
    """

    def __init__(self, limit: int) -> None:
        self.max_dirs = max(16, min(limit // 4, 8192))
        self.max_data = max(16, min(limit // 4, 8192))
        self.max_pins = max(16, limit // 4)
        self.dirs: OrderedDict[LayerDir, None] = OrderedDict()
        self.data: OrderedDict[Inode, None] = OrderedDict()
        self.pins = 0
        self._dead: list[int] = []
        self._closing = allocate_lock()
        self.on_dead: Callable[[], None] | None = None

    def over(self) -> bool:
        """Whether ``trim`` has something to do."""
        return len(self.dirs) > self.max_dirs or len(self.data) > self.max_data

    def trim(self) -> None:
        """Close the oldest until the limits hold; recently used ones get a second chance."""
        tries = len(self.dirs)
        while len(self.dirs) > self.max_dirs and tries:
            tries -= 1
            directory, _ = self.dirs.popitem(last=False)
            if directory.used:
                directory.used = False
                self.dirs[directory] = None
            else:
                os.close(directory.fd)
                directory.fd = -1
        tries = len(self.data)
        while len(self.data) > self.max_data and tries:
            tries -= 1
            inode, _ = self.data.popitem(last=False)
            if inode.users or inode.pinned:
                self.data[inode] = None
            else:
                os.close(inode.fd)
                inode.fd = -1

    def keep_data(self, inode: Inode, fd: int, *, writable: bool) -> None:
        """Make ``fd`` the data descriptor of ``inode``, closing an older one."""
        self.drop_data(inode)
        inode.fd = fd
        inode.writable = writable
        inode.path_only = False
        if not inode.pinned:
            self.data[inode] = None

    def drop_data(self, inode: Inode) -> None:
        """Close the data descriptor, if any; the caller knows that no thread uses it."""
        if inode.fd >= 0:
            self.data.pop(inode, None)
            os.close(inode.fd)
            inode.fd = -1
            inode.writable = False
            inode.path_only = False

    def pin(self, inode: Inode) -> None:
        """Keep ``inode``'s descriptor until the kernel forgets it."""
        if not inode.pinned:
            inode.pinned = True
            self.pins += 1
            self.data.pop(inode, None)

    def release(self, inode: Inode) -> None:
        """The inode goes: close what it holds.

        Closing a pinned descriptor deletes the file, which takes the filesystem longer than
        removing its name did: with ``on_dead`` set, ``close_dead`` does it in another thread.
        """
        if inode.pinned:
            inode.pinned = False
            self.pins -= 1
            if self.on_dead is not None and len(self._dead) < _MOST_DEAD and inode.fd >= 0:
                self._dead.append(inode.fd)
                inode.fd = -1
                if len(self._dead) == 1:
                    self.on_dead()
                return
        self.drop_data(inode)

    def may_free(self) -> bool:
        """Whether files without names are still held, or just being closed."""
        return self.pins > 0 or bool(self._dead) or self._closing.locked()

    def close_dead(self) -> None:
        """Close what ``release`` put aside; returns when it is closed. Without the monitor."""
        with self._closing:
            while self._dead:
                with suppress(OSError):  # the file is gone: nobody waits for its data
                    os.close(self._dead.pop())

    def drop_dir(self, directory: LayerDir) -> None:
        """Close a directory's descriptor."""
        if directory.fd >= 0:
            self.dirs.pop(directory, None)
            os.close(directory.fd)
            directory.fd = -1

    def close_all(self) -> None:
        """Close everything."""
        self.close_dead()
        for directory in list(self.dirs):
            self.drop_dir(directory)
        for inode in list(self.data):
            self.drop_data(inode)
