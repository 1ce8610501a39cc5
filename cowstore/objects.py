"""Content objects: each different file content once, found by hash, compared before it is shared.

xxh3-128 is fast and no proof: two contents may have one hash, by accident or by
somebody's work. So a hit is compared byte for byte, and a different content gets a
name with one character more. An object found damaged by that comparison is replaced.

A *stager* belongs to a session. What it writes lies in the session's directory until
``publish``; objects it found in the store are *touched*, so that a collection that
began earlier leaves them (docs/store.md, "Collecting garbage").
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

import xxhash

from cowstore.layout import FANOUT, Layout
from cowstore.locks import JOURNAL, Session
from unionfs.sys import calls

HASH_CHARS: Final = 22
#: Contents up to this size are taken whole; larger ones go through a file.
SMALL: Final = 4 << 20
_CHUNK: Final = 1 << 20
#: A content with holes is hashed with its map; its names end in one of these.
_SPARSE_SUFFIXES: Final = "abcdefghijklmnop"
_SUFFIXES: Final[tuple[str, ...]] = ("", *"0123456789ABCDEFGHIJKLMNOP")
_EXTENT = struct.Struct("<QQ")

Extents = tuple[tuple[int, int], ...]


class Hasher(Protocol):
    """What hashlib's and xxhash's objects have in common."""

    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


def hasher() -> Hasher:
    """xxh3-128; tests put a weaker one here."""
    state: Hasher = xxhash.xxh3_128()
    return state


def is_sparse(name: str) -> bool:
    """Whether the object of that name has holes, which its hash knows of."""
    return len(name) > HASH_CHARS and name[HASH_CHARS] in _SPARSE_SUFFIXES


def name_of(digest: bytes) -> str:
    """The first 22 characters of an object's name."""
    return urlsafe_b64encode(digest)[:HASH_CHARS].decode("ascii")


def hash_start(size: int, extents: Extents) -> bytes:
    """What is hashed before the data of a content with holes."""
    return struct.pack("<8sQ", b"sparse\0\1", size) + b"".join(_EXTENT.pack(*e) for e in extents)


def read_extents(fd: int, extents: Extents) -> Iterator[bytes]:
    """The data of a file, piece by piece, holes left out; short if the file is."""
    for offset, length in extents:
        while length:
            data = os.pread(fd, min(length, _CHUNK), offset)
            if not data:
                return
            yield data
            offset += len(data)
            length -= len(data)


def content_name(fd: int, size: int, extents: Extents) -> str:
    """The first 22 characters that the content of an open file gives."""
    state = hasher()
    if extents:
        state.update(hash_start(size, extents))
    for data in read_extents(fd, extents or ((0, size),)):
        state.update(data)
    return name_of(state.digest())


def is_whole(fd: int, name: str, extents: Extents) -> bool:
    """Whether an open file is what an object's name says."""
    try:
        return content_name(fd, os.fstat(fd).st_size, extents) == name[:HASH_CHARS]
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False


class Stager:
    """Takes contents in, on behalf of one session.

    Attributes:
        new_bytes: of contents that the store did not have.
        shared_bytes: of those it had.
    """

    def __init__(self, layout: Layout, session: Session) -> None:
        self.layout = layout
        self.session = session
        self.new_bytes = 0
        self.shared_bytes = 0
        self._objects = os.open(layout.path("objects"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # One of its own: a session has as many stagers as it brings layers in at a time.
        place = session.place(f"o.{os.urandom(4).hex()}")
        os.mkdir(place, 0o700)
        self._stage = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._started = os.stat(session.place("lock")).st_mtime_ns
        #: What is staged, each with the map of its data (empty: no holes).
        self._staged: dict[str, Extents] = {}
        self._counter = 0

    def close(self) -> None:
        """Close the directories; what is not published goes with the session."""
        for fd in (self._objects, self._stage):
            if fd >= 0:
                os.close(fd)
        self._objects = self._stage = -1

    # -- taking in ------------------------------------------------------------------

    def put(self, data: bytes) -> str:
        """The name of an object with this content. Hot path: one open, write, close."""
        state = hasher()
        state.update(data)
        base = name_of(state.digest())
        size = len(data)

        def same(fd: int) -> bool:
            return os.fstat(fd).st_size == size and _read_all(fd, size) == data

        for suffix in _SUFFIXES:
            name = base + suffix
            found = self._ask(name, same, ())
            if found is None:
                self._write(name, data)
                self.new_bytes += size
                return name
            if found:
                self.shared_bytes += size
                return name
        raise OSError(errno.EEXIST, "too many contents with one hash")

    def _ask(self, name: str, same: Callable[[int], bool], extents: Extents) -> bool | None:
        """What is under a name: True, the same content, now marked as used; False, another.

        None: nothing, or something damaged, or on its way out: ours takes its place.
        """
        fd = self._open(name)
        if fd < 0:
            return None
        try:
            if same(fd):
                return True if name in self._staged or self._touch(name, fd) else None
            if name in self._staged:
                return False
            return False if is_whole(fd, name, extents) else None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return None  # the disk does not give it back
        finally:
            os.close(fd)

    def _open(self, name: str) -> int:
        """A descriptor of the object, staged or published; -1: there is none."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            if name in self._staged:
                return os.open(name, flags, dir_fd=self._stage)
            return os.open(f"{name[0]}/{name[1:]}", flags, dir_fd=self._objects)
        except FileNotFoundError:
            return -1

    def _touch(self, name: str, fd: int) -> bool:
        """Mark a published object as used by this session; False: it is just being collected."""
        if os.fstat(fd).st_mtime_ns < self._started:
            try:
                os.utime(f"{name[0]}/{name[1:]}", dir_fd=self._objects)
            except FileNotFoundError:
                return False
        return True

    def _write(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o444, dir_fd=self._stage)
        try:
            view = data
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        self._staged[name] = ()

    def put_stream(self, pieces: Iterable[bytes], size: int, extents: Extents = ()) -> str:
        """As ``put`` for a content that comes in pieces: ``size`` bytes with holes left out.

        ``extents`` tell where the pieces belong; empty: no holes.
        """
        draft = f"draft.{self._counter}"
        self._counter += 1
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(draft, flags, 0o444, dir_fd=self._stage)
        try:
            state = hasher()
            if extents:
                state.update(hash_start(size, extents))
            os.ftruncate(fd, size)
            for data, offset in _placed(pieces, extents):
                state.update(data)
                while data:
                    done = os.pwrite(fd, data, offset)
                    offset += done
                    data = data[done:]
            calls.start_writeback(fd)
            name = self._settle(name_of(state.digest()), fd, draft, size, extents)
        finally:
            os.close(fd)
        return name

    def put_file(self, source: int, size: int) -> str:
        """As ``put`` for an open file; its blocks are shared where the filesystem can."""
        if size <= SMALL:
            data = _read_all(source, size)
            if len(data) == size:
                return self.put(data)
        draft = f"draft.{self._counter}"
        self._counter += 1
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(draft, flags, 0o444, dir_fd=self._stage)
        try:
            if not share_blocks(source, fd):
                copy_range(source, fd, size)
            return self._settle(content_name(fd, size, ()), fd, draft, size, ())
        finally:
            os.close(fd)

    def _settle(self, base: str, fd: int, draft: str, size: int, extents: Extents) -> str:
        """Give a draft its name, or drop it for an equal object."""
        data_size = sum(length for _, length in extents) if extents else size
        for suffix in _SPARSE_SUFFIXES if extents else _SUFFIXES:
            name = base + suffix
            found = self._ask(name, lambda there: same_content(fd, there, size, extents), extents)
            if found is None:
                os.rename(draft, name, src_dir_fd=self._stage, dst_dir_fd=self._stage)
                self._staged[name] = extents
                self.new_bytes += data_size
                return name
            if found:
                os.unlink(draft, dir_fd=self._stage)
                self.shared_bytes += data_size
                return name
        raise OSError(errno.EEXIST, "too many contents with one hash")

    # -- publishing -----------------------------------------------------------------

    def publish(self) -> dict[str, str]:
        """Move everything staged into the store; names that had to change meanwhile.

        The journal comes first: after a crash the sweep removes what no layer refers to.
        """
        if not self._staged:
            return {}
        with open(self.session.place(JOURNAL), "a", encoding="ascii") as journal:
            journal.write("".join(f"{name}\n" for name in self._staged))
        renamed = {}
        source, target = self._stage, self._objects
        for name in self._staged:
            where = f"{name[0]}/{name[1:]}".encode()
            try:
                calls.renameat2(source, name.encode(), target, where, calls.RENAME_NOREPLACE)
            except FileExistsError:
                other = self._publish_taken(name)
                if other != name:
                    renamed[name] = other
        self._staged.clear()
        return renamed

    def _publish_taken(self, name: str) -> str:
        """Another session published this name first, or what was there is damaged."""
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._stage)
        try:
            size = os.fstat(fd).st_size
            extents = self._staged[name]
            base = name[:HASH_CHARS]
            for suffix in _SPARSE_SUFFIXES if extents else _SUFFIXES:
                other = base + suffix
                where = f"{other[0]}/{other[1:]}"
                try:
                    there = os.open(where, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._objects)
                except FileNotFoundError:
                    calls.renameat2(
                        self._stage, name.encode(), self._objects, where.encode(),
                        calls.RENAME_NOREPLACE,
                    )  # fmt: skip
                    return other
                try:
                    if same_content(fd, there, size, extents):
                        os.utime(where, dir_fd=self._objects)
                        os.unlink(name, dir_fd=self._stage)
                        return other
                    if not is_whole(there, base, extents):
                        os.rename(name, where, src_dir_fd=self._stage, dst_dir_fd=self._objects)
                        return other
                finally:
                    os.close(there)
        finally:
            os.close(fd)
        raise OSError(errno.EEXIST, "too many contents with one hash")


def _placed(pieces: Iterable[bytes], extents: Extents) -> Iterator[tuple[bytes, int]]:
    """Each piece with its offset; pieces are cut where an extent ends."""
    if not extents:
        offset = 0
        for data in pieces:
            yield data, offset
            offset += len(data)
        return
    places = iter(extents)
    offset, room = next(places)
    for data in pieces:
        while data:
            if not room:
                offset, room = next(places)
            part = data[:room]
            yield part, offset
            offset += len(part)
            room -= len(part)
            data = data[len(part) :]


def _read_all(fd: int, size: int) -> bytes:
    """Up to ``size`` bytes from the start of a file."""
    data = os.pread(fd, size, 0)
    if len(data) == size:
        return data
    parts = [data]
    have = len(data)
    while have < size and (data := os.pread(fd, size - have, have)):
        parts.append(data)
        have += len(data)
    return b"".join(parts)


def data_extents(fd: int, size: int) -> Extents:
    """Where the data of a file is, as the filesystem tells (lseek(2), SEEK_DATA)."""
    found = []
    offset = 0
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            raise
        offset = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        found.append((start, offset - start))
    return tuple(found)


def same_content(one: int, two: int, size: int, extents: Extents) -> bool:
    """Whether two files hold the same; outside of ``extents`` both are holes by their making."""
    if os.fstat(one).st_size != os.fstat(two).st_size:
        return False
    for offset, length in extents or ((0, size),):
        while length:
            count = min(length, _CHUNK)
            data = os.pread(one, count, offset)
            if not data or data != os.pread(two, count, offset):
                return False
            offset += len(data)
            length -= len(data)
    return True


def share_blocks(source: int, target: int) -> bool:
    """Make ``target`` a reflink of ``source``; False where they cannot be (FICLONE)."""
    return calls.ficlone(target, source, (os.fstat(source).st_dev, os.fstat(target).st_dev))


def copy_range(source: int, target: int, size: int) -> None:
    """Copy ``size`` bytes from the start; the kernel does it where it can (copy_file_range(2)).

    Raises:
        OSError: EIO, the source became shorter.
    """
    offset = 0
    while offset < size:
        try:
            done = os.copy_file_range(source, target, min(size - offset, 1 << 30), offset, offset)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            done = 0
        if not done:
            data = os.pread(source, min(_CHUNK, size - offset), offset)
            if not data:
                raise OSError(errno.EIO, "a file became shorter while it was read")
            done = os.pwrite(target, data, offset)
        offset += done


_CANNOT_COPY: Final = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
)


def all_names(layout: Layout) -> Iterator[str]:
    """Names of all published objects."""
    for char in FANOUT:
        with contextlib.suppress(FileNotFoundError):
            for rest in os.listdir(layout.path("objects", char)):
                yield char + rest


def is_regular(path: str) -> bool:
    """Whether a regular file is there, and no symlink to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False
