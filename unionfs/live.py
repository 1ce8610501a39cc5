"""Lowers that change below us: the kernel's caches follow what inotify(7) reports.

Names and attributes are otherwise valid for ever (or for ``timeout=``). Where a
lower is *live* (it has mount points or the union's own directories in it, as the
host's root does), each directory that is listed is watched. A change drops
our listing and tells the kernel to ask again: FUSE_NOTIFY_INC_EPOCH for names
(no lock is taken), FUSE_NOTIFY_INVAL_INODE for contents and attributes.

Runs on the daemon's main thread, never inside a request.
"""

from __future__ import annotations

import os
import struct

from unionfs.sys import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from unionfs.inode import Inode
    from unionfs.layer import LayerDir
    from unionfs.union import Union

_EVENT: Final = struct.Struct("=iIII")
_CONTENTS: Final = calls.IN_MODIFY | calls.IN_ATTRIB
_NAMES: Final = calls.IN_CREATE | calls.IN_DELETE | calls.IN_MOVED_FROM | calls.IN_MOVED_TO


class Changes:
    """What one batch of events asks of the engine.

    Attributes:
        names: some names must be looked up again.
        directories: inode numbers of directories whose cached listing is void.
        files: inode numbers whose contents and attributes are void.
        entries: (directory inode number, name), for kernels without epochs.
    """

    def __init__(self) -> None:
        self.names = False
        self.directories: set[int] = set()
        self.files: set[int] = set()
        self.entries: set[tuple[int, bytes]] = set()

    def __bool__(self) -> bool:
        return self.names or bool(self.files)


class Watcher:
    """inotify watches on the lower directories that the union has listed.

    Attributes:
        fd: the inotify descriptor, for poll(2).
        full: a watch could not be added (fs.inotify.max_user_watches).
    """

    def __init__(self, union: Union) -> None:
        self.union = union
        self.fd = calls.inotify_init()
        self.full = False
        self._inodes: dict[int, int] = {}
        self._watches: dict[int, list[int]] = {}

    def watch(self, inode: Inode, directory: LayerDir) -> None:
        """Begin to watch one lower directory of ``inode``; does nothing if it is watched."""
        if directory.masked or inode.ino in self._watches:
            return
        wds = []
        for lower in self.union.lowers_of(inode):
            if lower.masked or not lower.layer.live:
                continue
            try:
                wd = calls.inotify_add_watch(self.fd, lower.proc_path(b""), _CONTENTS | _NAMES)
            except OSError:
                self.full = True
                continue
            wds.append(wd)
            self._inodes[wd] = inode.ino
        self._watches[inode.ino] = wds

    def unwatch(self, ino: int) -> None:
        """The directory is no longer known to the kernel."""
        for wd in self._watches.pop(ino, ()):
            if self._inodes.pop(wd, None) is not None:
                calls.inotify_rm_watch(self.fd, wd)

    def read(self) -> Changes:
        """Drain the events; drops the listings they void. Call inside the monitor."""
        changes = Changes()
        while True:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                wd, mask, _cookie, length = _EVENT.unpack_from(data, at)
                name = data[at + 16 : at + 16 + length].rstrip(b"\0")
                at += 16 + length
                self._note(changes, wd, mask, name)
        return changes

    def _note(self, changes: Changes, wd: int, mask: int, name: bytes) -> None:
        union = self.union
        if mask & calls.IN_Q_OVERFLOW:
            changes.names = True
            for inode in list(union.table.values()):
                union.listings.forget(inode)
                (changes.directories if inode.is_dir else changes.files).add(inode.ino)
            return
        ino = self._inodes.get(wd)
        if mask & calls.IN_IGNORED:
            self._inodes.pop(wd, None)
        directory = None if ino is None else union.table.get(ino)
        if directory is None or not name:
            return
        if mask & _NAMES:
            changes.names = True
            changes.directories.add(directory.ino)
            changes.entries.add((directory.ino, name))
            union.listings.forget(directory)
        elif mask & _CONTENTS:
            self._note_contents(changes, directory, name)

    def _note_contents(self, changes: Changes, directory: Inode, name: bytes) -> None:
        try:
            found = self.union.find(directory, name)
        except OSError:
            return
        inode = self.union.known(found) if found else None
        if inode is not None and not inode.upper:
            changes.files.add(inode.ino)

    def close(self) -> None:
        """Close the descriptor; the kernel drops the watches."""
        os.close(self.fd)
