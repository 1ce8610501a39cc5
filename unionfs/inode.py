"""Inodes of the union and the table that maps numbers to them.

An inode's number is its FUSE nodeid and its st_ino. Its *links* are the names
(parent inode, name) that the kernel has looked up; from them follow the paths
in the layers. An inode without links that the kernel still knows is unlinked
but possibly open: it is kept reachable by ``pin`` (see ``orphans``).
"""

from __future__ import annotations

import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from unionfs.index import Indexed
    from unionfs.layer import LayerDir
    from unionfs.listing import Listing

ROOT_INO: Final = 1


class Inode:
    """One file or directory that the kernel knows, or that such a one lies beneath.

    Attributes:
        ino: st_ino and nodeid.
        real: st_ino of the file on disk that ``ino`` stands for now.
        kind: S_IFMT bits.
        nlookup: references held by the kernel.
        children: links in the table whose parent this directory is.
        parent, name: one link; ``parent`` is None once the last is gone.
        more: further links of a hard-linked file.
        upper: the file is in the upper layer.
        low: for a file not in the upper, the lower directory that holds it.
        data: for a metacopy file, where its data is.
        dirs: for a directory, the layer directories merged in it, topmost first.
        fd: data descriptor, -1 if none; ``writable`` if opened for writing.
        path_only: ``fd`` is O_PATH: it keeps the file, but data needs a reopening.
        users: threads using ``fd`` outside the monitor.
        pinned: ``fd`` must stay until the kernel forgets the inode.
        indexed: some of its names are not in the upper yet; it is reached by the index.
        orphan: name in work's orphan directory that keeps an unlinked file.
        busy: a thread is copying it up.
        incapable: an upper file that has no security.capability, as is known.
        listing: cached merged listing of a directory.
    """

    __slots__ = (
        "busy",
        "children",
        "data",
        "dirs",
        "fd",
        "incapable",
        "indexed",
        "ino",
        "kind",
        "listing",
        "low",
        "more",
        "name",
        "nlookup",
        "orphan",
        "parent",
        "path_only",
        "pinned",
        "real",
        "upper",
        "users",
        "writable",
    )

    def __init__(self, ino: int, real: int, kind: int) -> None:
        self.ino = ino
        self.real = real
        self.kind = kind
        self.nlookup = 0
        self.children = 0
        self.parent: Inode | None = None
        self.name = b""
        self.more: list[tuple[Inode, bytes]] | None = None
        self.upper = False
        self.low: LayerDir | None = None
        self.data: tuple[LayerDir, bytes] | None = None
        self.dirs: list[LayerDir] | None = None
        self.fd = -1
        self.writable = False
        self.users = 0
        self.path_only = False
        self.pinned = False
        self.indexed: Indexed | None = None
        self.orphan: bytes | None = None
        self.busy = False
        self.incapable = False
        self.listing: Listing | None = None

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR

    def links(self) -> list[tuple[Inode, bytes]]:
        """All known names."""
        if self.parent is None:
            return []
        return [(self.parent, self.name), *(self.more or ())]

    def add_link(self, parent: Inode, name: bytes) -> None:
        """Remember a name; a directory has only one."""
        if self.parent is None:
            self.parent, self.name = parent, name
        elif (self.parent is parent and self.name == name) or (
            self.more is not None and (parent, name) in self.more
        ):
            return
        elif self.more is None:
            self.more = [(parent, name)]
        else:
            self.more.append((parent, name))
        parent.children += 1

    def drop_link(self, parent: Inode, name: bytes) -> None:
        """Forget a name."""
        if self.parent is parent and self.name == name:
            if self.more:
                self.parent, self.name = self.more.pop()
            else:
                self.parent = None
        elif self.more is not None and (parent, name) in self.more:
            self.more.remove((parent, name))
        else:
            return
        parent.children -= 1

    def __repr__(self) -> str:
        return f"<Inode {self.ino} {self.name!r}{' upper' if self.upper else ''}>"
