"""Layer trees as data, and how they are made on disk.

A tree is a mapping from relative paths (bytes, no leading slash; ``b""`` is the
root) to items. Parents that are not named are made as plain directories.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Every item made has this modification time (2001-09-09), so that "untouched" can be seen.
OLD_NS = 1_000_000_000_123_456_789


def make_indexed(index: Path, folder: str, data: bytes | None, *names: bytes) -> Path:
    """A folder of an index: a file, unless ``data`` is None, and the names it is still to get."""
    place = index / folder
    place.mkdir(parents=True)
    for number, name in enumerate(names):
        os.symlink(name, os.fsencode(place) + b"/%d" % number)
    if data is not None:
        (place / "file").write_bytes(data)
    return place / "file"


@dataclass(frozen=True, slots=True)
class File:
    """A regular file."""

    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Dir:
    """A directory; ``opaque`` is how it says that it hides what lies beneath.

    ``trusted``, ``user``, ``fuseoverlayfs`` (xattrs of the three families) or ``file``
    (``.wh..wh..opq``); empty: it merges.
    """

    mode: int = 0o755
    opaque: str = ""
    uid: int = 0
    gid: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link."""

    target: bytes


@dataclass(frozen=True, slots=True)
class Link:
    """Another name of the file at ``to`` in the same layer."""

    to: bytes


@dataclass(frozen=True, slots=True)
class Special:
    """A fifo, socket or device: the type bits and the device number."""

    kind: int
    rdev: int = 0
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Whiteout:
    """A deleted name: ``chardev``, ``dotwh`` or ``xattr`` (its parent is marked ``x`` then)."""

    style: str = "chardev"


Item = File | Dir | Symlink | Link | Special | Whiteout
Tree = Mapping[bytes, Item]

OPAQUE_XATTRS = {
    "trusted": b"trusted.overlay.opaque",
    "user": b"user.overlay.opaque",
    "fuseoverlayfs": b"user.fuseoverlayfs.opaque",
}


def parent_of(path: bytes) -> bytes:
    """The directory part of a relative path."""
    return path.rpartition(b"/")[0]


def name_of(path: bytes) -> bytes:
    """The last component of a relative path."""
    return path.rpartition(b"/")[2]


def join(directory: bytes, name: bytes) -> bytes:
    """A name in a directory, both relative to the same root."""
    return directory + b"/" + name if directory else name


def build(root: Path, tree: Tree) -> None:
    """Make ``tree`` at ``root``, which may exist; all times are ``OLD_NS`` after."""
    base = os.fsencode(root)
    os.makedirs(base, exist_ok=True)
    for path in sorted(tree, key=lambda path: (isinstance(tree[path], Link), path)):
        full = base + b"/" + path if path else base
        if path:
            os.makedirs(base + b"/" + parent_of(path), exist_ok=True)
        _make(base, full, path, tree[path])
    for path, item in tree.items():
        if isinstance(item, Dir):
            os.chmod(base + b"/" + path, item.mode)
    _settle_times(base)


def _make(base: bytes, full: bytes, path: bytes, item: Item) -> None:
    match item:
        case File():
            with open(full, "xb") as file:
                file.write(item.data)
            os.chown(full, item.uid, item.gid)
            os.chmod(full, item.mode)
            _set_xattrs(full, item.xattrs)
        case Dir():
            os.makedirs(full, exist_ok=True)
            os.chown(full, item.uid, item.gid)
            _set_xattrs(full, item.xattrs)
            if item.opaque == "file":
                with open(full + b"/.wh..wh..opq", "xb"):
                    pass
            elif item.opaque:
                os.setxattr(full, OPAQUE_XATTRS[item.opaque], b"y")
        case Symlink():
            os.symlink(item.target, full)
        case Link():
            os.link(base + b"/" + item.to, full, follow_symlinks=False)
        case Special():
            os.mknod(full, item.kind | item.mode, item.rdev)
        case Whiteout():
            make_whiteout(base + b"/" + parent_of(path), name_of(path), item.style)


def _set_xattrs(path: bytes, xattrs: Sequence[tuple[bytes, bytes]]) -> None:
    for name, value in xattrs:
        os.setxattr(path, name, value, follow_symlinks=False)


def make_whiteout(directory: bytes, name: bytes, style: str) -> None:
    """A whiteout of one of the encodings that layers may hold."""
    if style == "chardev":
        os.mknod(directory + b"/" + name, stat.S_IFCHR, 0)
    elif style == "dotwh":
        with open(directory + b"/.wh." + name, "xb"):
            pass
    else:
        with open(directory + b"/" + name, "xb"):
            pass
        os.setxattr(directory + b"/" + name, b"user.overlay.whiteout", b"")
        os.setxattr(directory, b"user.overlay.opaque", b"x")


def _settle_times(base: bytes) -> None:
    for where, dirs, files in os.walk(base, topdown=False):
        for name in (*files, *dirs):
            os.utime(where + b"/" + name, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    os.utime(base, ns=(OLD_NS, OLD_NS))


@dataclass(slots=True)
class Layers:
    """Where the directories of one union are."""

    base: Path
    lowers: list[Path]
    upper: Path
    work: Path
    mnt: Path
    extra: list[Path] = field(default_factory=list)

    @classmethod
    def make(cls, base: Path, *lowers: Tree, upper: Tree | None = None) -> Layers:
        """Make the layers beneath ``base``; the first lower is the topmost."""
        names = [base / f"lower{number}" for number in range(1, len(lowers) + 1)]
        layers = cls(base, names, base / "upper", base / "work", base / "mnt")
        for path, tree in zip(layers.lowers, lowers, strict=True):
            build(path, tree)
        build(layers.upper, upper or {})
        layers.work.mkdir(parents=True)
        layers.mnt.mkdir()
        return layers

    def remove(self) -> None:
        """Remove everything made, whatever its modes are."""
        shutil.rmtree(self.base)


def walk(root: Path) -> Iterator[bytes]:
    """Relative paths of everything on disk beneath ``root``, and ``b""`` first."""
    base = os.fsencode(root)
    yield b""
    for where, dirs, files in os.walk(base):
        prefix = where[len(base) + 1 :]
        for name in (*dirs, *files):
            yield join(prefix, name)
