"""What an upper changed: the tree a union shows, compared with what its lowers show alone.

Only directories of the upper are read, and the lowers' entries of the same
names; where the upper cuts a directory off from the lowers (opaque, redirect)
the directories on both sides are listed. How the upper keeps a change makes no
difference: a renamed directory is its contents added, as a redirect or copied.

A file that was touched but is equal (data, mode, owner, visible attributes) is
no change, whatever its times. A change of type is a deletion and an addition.
The root itself is not reported: its attributes are those of a directory that
somebody made to be an upper.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from unionfs import formats
from unionfs.index import FILE, read_folder
from unionfs.layer import Entry, LayerDir
from unionfs.masks import masks_for
from unionfs.resolve import Says
from unionfs.sys.mountinfo import read_mounts
from unionfs.types import Options
from unionfs.union import Union
from unionfs.upper import OURS

_CHUNK: Final = 1 << 20
_ORDER: Final = {"D": 0, "A": 1, "M": 2}
_UNLISTABLE: Final = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES})

KIND_NAMES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


class Change(NamedTuple):
    """One difference.

    ``status`` is ``A``, ``M`` or ``D``; ``kind`` the S_IFMT bits; ``size`` in bytes, of files
    and symlinks, else 0 (of a deleted one: what it had); ``path`` is relative to the root;
    ``what`` says what of an ``M`` differs: ``content``, ``mode``, ``owner``, ``xattr``.
    """

    status: str
    kind: int
    size: int
    path: bytes
    what: tuple[str, ...] = ()


class _Pair(NamedTuple):
    """A directory on both sides.

    ``now`` are the layers' directories that the union merges, ``before`` those that the
    lowers alone merge at the same path; ``tied``: they differ by the upper's alone, so that
    nothing changed but where the upper has an entry.
    """

    path: bytes
    now: list[LayerDir]
    before: list[LayerDir]
    tied: bool


def open_view(upper: bytes, lowers: Sequence[bytes], hidden: Sequence[bytes] = ()) -> Union:
    """A read-only union with ``upper`` as its layer 1; takes no lock, needs no work directory.

    Paths are absolute and real. ``hidden`` ones (a work directory, a mount point) show as
    empty directories where a layer holds them, as they do in the mount.

    Raises:
        OSError: a layer cannot be opened.
    """
    union = Union(Options(lowers=(upper, *lowers), read_only=True))
    try:
        points = [mount.mount_point for mount in read_mounts()]
    except OSError:
        points = []
    for layer in union.layers:
        if layer is not None:
            layer.masks = masks_for(layer.path, (upper, *hidden), points)
    return union


def changes(
    upper: bytes,
    lowers: Sequence[bytes],
    hidden: Sequence[bytes] = (),
    *,
    work: bytes | None = None,
) -> list[Change]:
    """All differences, sorted by path; see ``open_view`` for the arguments.

    ``work``: the upper's work directory, which may hold an index (``-o index=on``).

    Raises:
        OSError: a directory or file cannot be read; EIO for a metacopy file without data.
    """
    union = open_view(upper, lowers, hidden if work is None else (*hidden, work))
    try:
        with _indexed(union, work) as indexed, union.monitor:
            found = list(_Comparison(union, indexed).run())
    finally:
        union.close()
    found.sort(key=lambda change: (change.path, _ORDER[change.status]))
    return found


_Indexed = dict[bytes, dict[bytes, tuple[LayerDir, bytes]]]


@contextlib.contextmanager
def _indexed(union: Union, work: bytes | None) -> Iterator[_Indexed]:
    """Names that the index holds instead of the upper: where their file is, by directory."""
    indexed: _Indexed = {}
    fd = -1
    if work is not None:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(b"/".join((work, OURS, b"index")), os.O_PATH | os.O_DIRECTORY)
    layer = union.layers[1]
    assert layer is not None
    where = LayerDir(layer, None, b"")
    where.fd = fd
    try:
        for folder in os.listdir(b"/proc/self/fd/%d" % fd) if fd >= 0 else ():
            for path in read_folder(b"/proc/self/fd/%d/%s" % (fd, folder))[0]:
                above, _, name = path.rpartition(b"/")
                indexed.setdefault(above, {})[name] = (where, folder + b"/" + FILE)
        yield indexed
    finally:
        if fd >= 0:
            os.close(fd)


def below_of(union: Union) -> list[LayerDir]:
    """The root as the lowers of an ``open_view`` alone merge it."""
    roots = []
    for layer in union.layers[2:]:
        assert layer is not None
        layer.root.load_marks()
        roots.append(layer.root)
        if layer.root.opaque:
            break
    return roots


def _dirs(entries: list[Entry]) -> list[LayerDir]:
    return [entry.sub for entry in entries if entry.sub is not None]


def _in_upper(directory: LayerDir) -> bool:
    return directory.layer.index == 1


def _identities(entries: list[Entry]) -> list[tuple[int, int]]:
    """(layer, st_ino) of the lowers' part: equal lists are the same files."""
    return [(e.dir.layer.index, e.st.st_ino) for e in entries if e.dir.layer.index > 1]


def _kind(entry: Entry) -> int:
    return stat.S_IFMT(entry.st.st_mode)


def _of(status: str, entry: Entry, path: bytes, what: tuple[str, ...] = ()) -> Change:
    kind = _kind(entry)
    size = entry.st.st_size if kind in (stat.S_IFREG, stat.S_IFLNK) else 0
    return Change(status, kind, size, path, what)


class _Comparison:
    """One walk over the upper of a view."""

    def __init__(self, union: Union, indexed: _Indexed) -> None:
        self.union = union
        self.indexed = indexed
        self.pending: list[_Pair] = []
        self._compared: dict[tuple[int, int, int], bool] = {}

    def run(self) -> Iterator[Change]:
        """All differences, in no particular order."""
        now = self.union.root.dirs
        assert now is not None
        before = below_of(self.union)
        self.pending.append(_Pair(b"", now, before, not now[0].opaque))
        while self.pending:
            pair = self.pending.pop()
            for name in self._names(pair):
                path = pair.path + b"/" + name if pair.path else name
                try:
                    yield from self._compare(pair, name, path)
                except FileNotFoundError:
                    continue  # a mounted union removed it meanwhile
                finally:
                    self.union.fds.trim()

    def _names(self, pair: _Pair) -> list[bytes]:
        listed = pair.now[:1] if pair.tied else [*pair.now, *pair.before]
        names: dict[bytes, None] = dict.fromkeys(self.indexed.get(pair.path, ()))
        for directory in listed:
            try:
                names.update((scanned.name, None) for scanned in directory.scan())
            except FileNotFoundError:
                continue
        return list(names)

    def _sides(self, pair: _Pair, name: bytes) -> tuple[list[Entry], list[Entry]]:
        """What makes up the name in the union, and in the lowers alone."""
        before = self.union.resolve_in(pair.before, name)
        if not pair.tied:
            if name in self.indexed.get(pair.path, ()) and pair.now[0].probe(name) is None:
                entry = self._from_index(pair.path, name)
                if entry is not None:
                    return [entry], before
            return self.union.resolve_in(pair.now, name), before
        top = pair.now[0].probe(name) or self._from_index(pair.path, name)
        if top is None or top.says == Says.WHITEOUT:
            return [], before if top is not None else []
        if top.says != Says.DIR:
            return [top], before
        assert top.sub is not None
        if top.sub.redirect is not None:
            return self.union.resolve_in(pair.now, name), before
        return [top, *(entry for entry in before if entry.sub is not None)], before

    def _from_index(self, path: bytes, name: bytes) -> Entry | None:
        where = self.indexed.get(path, {}).get(name)
        if where is None:
            return None
        directory, file = where
        return Entry(Says.FILE, directory, file, directory.stat(file), None)

    def _compare(self, pair: _Pair, name: bytes, path: bytes) -> Iterator[Change]:
        now, before = self._sides(pair, name)
        if not now and not before:
            return
        if not now:
            yield _of("D", before[0], path)
            return
        if before and _kind(now[0]) != _kind(before[0]):
            yield _of("D", before[0], path)
            before = []
        if not before:
            yield _of("A", now[0], path)
        elif _identities(now[:1]) != _identities(before[:1]):
            what = self._differences(pair, now[0], before[0])
            if what:
                yield _of("M", now[0], path, what)
        if now[0].sub is not None:
            tied = _identities(now) == _identities(before)
            if not tied or _in_upper(now[0].sub):
                self.pending.append(_Pair(path, _dirs(now), _dirs(before), tied))

    def _differences(self, pair: _Pair, now: Entry, before: Entry) -> tuple[str, ...]:
        what = []
        if not self._same_content(pair, now, before):
            what.append("content")
        if stat.S_IMODE(now.st.st_mode) != stat.S_IMODE(before.st.st_mode):
            what.append("mode")
        if (now.st.st_uid, now.st.st_gid) != (before.st.st_uid, before.st.st_gid):
            what.append("owner")
        if visible_xattrs(now) != visible_xattrs(before):
            what.append("xattr")
        return tuple(what)

    def _same_content(self, pair: _Pair, now: Entry, before: Entry) -> bool:
        kind = _kind(now)
        if kind == stat.S_IFREG:
            return self._same_data(pair, now, before)
        if kind == stat.S_IFLNK:
            return _target(now) == _target(before)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            return now.st.st_rdev == before.st.st_rdev
        return True

    def _same_data(self, pair: _Pair, now: Entry, before: Entry) -> bool:
        size = now.st.st_size
        if size != before.st.st_size:
            return False
        if size == 0:
            return True
        key = (now.st.st_ino, before.dir.layer.index, before.st.st_ino)
        known = self._compared.get(key)
        if known is None:
            known = self._read_both(pair, now, before)
            if now.st.st_nlink > 1:
                self._compared[key] = known
        return known

    def _read_both(self, pair: _Pair, now: Entry, before: Entry) -> bool:
        one = self.union.data_behind(pair.now, now) or (now.dir, now.name)
        two = self.union.data_behind(pair.before, before) or (before.dir, before.name)
        try:
            first = one[0].open_data(one[1], None)
            try:
                second = two[0].open_data(two[1], None)
                try:
                    if os.path.sameopenfile(first, second):
                        return True
                    return same_data(first, second, now.st.st_size)
                finally:
                    os.close(second)
            finally:
                os.close(first)
        except PermissionError:
            # Copy-up keeps the times, and a write changes them.
            return now.st.st_mtime_ns == before.st.st_mtime_ns


def _target(entry: Entry) -> bytes:
    return os.readlink(entry.name, dir_fd=entry.dir.dirfd())


def visible_xattrs(entry: Entry) -> dict[bytes, bytes]:
    """The attributes that a user of the union sees, but for the labels of security modules."""
    if entry.sub is not None and entry.sub.masked:
        return {}
    path = entry.dir.proc_path(entry.name)
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _UNLISTABLE:
            return {}
        raise
    found = {}
    for text in names:
        name = os.fsencode(text)
        shown = formats.unescape(name)
        if shown is None or name == entry.dir.layer.override:
            continue
        # A module labels a copy by its own policy: copy-up does not promise these.
        if name.startswith(b"security.") and name != formats.CAPABILITY:
            continue
        value = entry.dir.get_xattr(entry.name, name)
        if value is not None:
            found[shown] = value
    return found


def same_data(one: int, two: int, size: int) -> bool:
    """Whether two files of ``size`` bytes are equal; what is a hole in both is not read."""
    offset = 0
    while offset < size:
        offset = min(_next_data(one, offset, size), _next_data(two, offset, size))
        if offset >= size:
            return True
        chunk = os.pread(one, _CHUNK, offset)
        if chunk != os.pread(two, _CHUNK, offset):
            return False
        if not chunk:
            return True
        offset += len(chunk)
    return True


def _next_data(fd: int, offset: int, size: int) -> int:
    """Where data begins at or after ``offset`` (lseek(2), SEEK_DATA); ``size`` if nowhere."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        if error.errno == errno.EINVAL:
            return offset  # a filesystem that does not know
        raise
