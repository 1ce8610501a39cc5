"""The oracle: a union filesystem as nested dictionaries.

Layers are applied from the bottom up, as an image is unpacked; the union under
test resolves from the top down. Neither knows the other's rule.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field

from tests.helpers import error
from tests.layers import (
    OLD_NS,
    Dir,
    File,
    Link,
    Special,
    Symlink,
    Tree,
    Whiteout,
    join,
    name_of,
    parent_of,
)
from unionfs.sys import calls


@dataclass(eq=False, slots=True)
class Node:
    """A file or directory.

    Attributes:
        hidden: further names in its lower layer that the union does not show.
        ino: st_ino once seen; it may never change.
        mtime_ns: modification time; None: changed just now, to be seen.
    """

    kind: int
    mode: int
    uid: int = 0
    gid: int = 0
    data: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    rdev: int = 0
    children: dict[bytes, Node] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    names: int = 0
    hidden: int = 0
    ino: int | None = None
    mtime_ns: int | None = OLD_NS

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR


class Model:
    """What the union must show."""

    def __init__(self, lowers: list[Tree]) -> None:
        self.root = Node(stat.S_IFDIR, 0o755)
        for tree in reversed(lowers):
            self._apply(tree)
        self._count_names()

    # -- layers -------------------------------------------------------------------

    def _apply(self, tree: Tree) -> None:
        made: dict[bytes, Node] = {}
        full: dict[bytes, File | Dir | Symlink | Link | Special | Whiteout] = {}
        for path, item in tree.items():
            above = parent_of(path)
            while above and above not in tree:
                full.setdefault(above, Dir())
                above = parent_of(above)
            full[path] = item
        for path in sorted(full, key=lambda path: (isinstance(full[path], Link), path)):
            item = full[path]
            if isinstance(item, Dir):
                self._apply_dir(path, item)
            elif path:
                self._apply_file(path, item, made)

    def _apply_dir(self, path: bytes, item: Dir) -> None:
        if not path:
            return  # the root's attributes are those of the upper
        above = self.find(parent_of(path))
        old = above.children.get(name_of(path))
        node = Node(stat.S_IFDIR, item.mode, item.uid, item.gid, xattrs=dict(item.xattrs))
        if old is not None and old.is_dir and not item.opaque:
            node.children = old.children
        above.children[name_of(path)] = node

    def _apply_file(
        self, path: bytes, item: File | Symlink | Link | Special | Whiteout, made: dict[bytes, Node]
    ) -> None:
        above, name = self.find(parent_of(path)), name_of(path)
        match item:
            case File():
                node = Node(stat.S_IFREG, item.mode, item.uid, item.gid, bytearray(item.data))
                node.xattrs = dict(item.xattrs)
            case Symlink():
                node = Node(stat.S_IFLNK, 0o777, target=item.target)
            case Special():
                node = Node(item.kind, item.mode, rdev=item.rdev)
            case Link():
                node = made[item.to]
            case Whiteout():
                above.children.pop(name, None)
                return
        node.hidden += 1
        made[path] = node
        above.children[name] = node

    def _count_names(self) -> None:
        for path in self.paths():
            node = self.find(path)
            if not node.is_dir:
                node.names += 1
        for node in set(map(self.find, self.paths())):
            node.hidden = max(0, node.hidden - node.names)

    # -- reading -------------------------------------------------------------------

    def find(self, path: bytes) -> Node:
        """The node at a path."""
        node = self.root
        for part in path.split(b"/") if path else ():
            if not node.is_dir:
                raise error(errno.ENOTDIR)
            below = node.children.get(part)
            if below is None:
                raise error(errno.ENOENT)
            node = below
        return node

    def paths(self) -> list[bytes]:
        """Every path, the root's included, in a fixed order."""
        found = [b""]
        for path in found:
            node = self.find(path)
            found += [join(path, name) for name in sorted(node.children)]
        return found

    def nlinks(self, node: Node) -> set[int]:
        """The link counts that may be shown."""
        if node.is_dir:
            return {1, 2 + sum(child.is_dir for child in node.children.values())}
        return {node.names, node.names + node.hidden}

    # -- changing --------------------------------------------------------------------

    def _place(self, path: bytes) -> tuple[Node, bytes]:
        above = self.find(parent_of(path))
        if not above.is_dir:
            raise error(errno.ENOTDIR)
        return above, name_of(path)

    def add(self, path: bytes, node: Node) -> None:
        """A new name."""
        above, name = self._place(path)
        if name in above.children:
            raise error(errno.EEXIST)
        above.children[name] = node
        above.mtime_ns = None
        if not node.is_dir:
            node.names += 1

    def create(self, path: bytes, mode: int) -> None:
        """open(2) with O_CREAT and O_EXCL."""
        self.add(path, Node(stat.S_IFREG, mode, mtime_ns=None))

    def mkdir(self, path: bytes, mode: int) -> None:
        """mkdir(2)."""
        self.add(path, Node(stat.S_IFDIR, mode, mtime_ns=None))

    def symlink(self, target: bytes, path: bytes) -> None:
        """symlink(2)."""
        self.add(path, Node(stat.S_IFLNK, 0o777, target=target, mtime_ns=None))

    def link(self, old: bytes, new: bytes) -> None:
        """link(2)."""
        node = self.find(old)
        above, name = self._place(new)
        if name in above.children:
            raise error(errno.EEXIST)
        if node.is_dir:
            raise error(errno.EPERM)
        self.add(new, node)

    def _drop(self, above: Node, name: bytes) -> None:
        node = above.children.pop(name)
        above.mtime_ns = None
        if not node.is_dir:
            node.names -= 1

    def unlink(self, path: bytes) -> None:
        """unlink(2)."""
        above, name = self._place(path)
        if self.find(path).is_dir:
            raise error(errno.EISDIR)
        self._drop(above, name)

    def rmdir(self, path: bytes) -> None:
        """rmdir(2)."""
        above, name = self._place(path)
        node = self.find(path)
        if not node.is_dir:
            raise error(errno.ENOTDIR)
        if node.children:
            raise error(errno.ENOTEMPTY)
        self._drop(above, name)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        """renameat2(2), in the order in which the kernel checks."""
        exchange = bool(flags & calls.RENAME_EXCHANGE)
        old_above, old_name = self._place(old)
        above, name = self._place(new)
        node = old_above.children.get(old_name)
        if node is None:
            raise error(errno.ENOENT)
        other = above.children.get(name)
        if flags & calls.RENAME_NOREPLACE and other is not None:
            raise error(errno.EEXIST)
        if exchange and other is None:
            raise error(errno.ENOENT)
        if old != new and (new + b"/").startswith(old + b"/"):
            raise error(errno.EINVAL)
        if old != new and (old + b"/").startswith(new + b"/"):
            raise error(errno.EINVAL if exchange else errno.ENOTEMPTY)
        if node is other:
            return
        if exchange:
            assert other is not None
            old_above.children[old_name], above.children[name] = other, node
        else:
            if other is not None:
                if node.is_dir and not other.is_dir:
                    raise error(errno.ENOTDIR)
                if other.is_dir and not node.is_dir:
                    raise error(errno.EISDIR)
                if other.children:
                    raise error(errno.ENOTEMPTY)
                self._drop(above, name)
            del old_above.children[old_name]
            above.children[name] = node
        old_above.mtime_ns = above.mtime_ns = None

    @staticmethod
    def write(node: Node, offset: int, data: bytes) -> None:
        """pwrite(2)."""
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        node.mtime_ns = None

    @staticmethod
    def truncate(node: Node, size: int) -> None:
        """ftruncate(2)."""
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))
        node.mtime_ns = None

    @staticmethod
    def setxattr(node: Node, name: bytes, value: bytes, flags: int) -> None:
        """setxattr(2)."""
        if flags == os.XATTR_CREATE and name in node.xattrs:
            raise error(errno.EEXIST)
        if flags == os.XATTR_REPLACE and name not in node.xattrs:
            raise error(errno.ENODATA)
        node.xattrs[name] = value

    @staticmethod
    def removexattr(node: Node, name: bytes) -> None:
        """removexattr(2)."""
        if name not in node.xattrs:
            raise error(errno.ENODATA)
        del node.xattrs[name]
