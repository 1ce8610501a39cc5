"""The manifest of a layer: every member of its archive, and the archive but for file contents.

Written once, read often. The file, little-endian:

======  ====  =====================================================================
offset  size  field
======  ====  =====================================================================
0       8     ``COWLAYR1``
8       32    sha256 of everything from offset 40 on
40      32    diff id (raw sha256)
72      8     bytes of the archive
80      8     bytes of content (files, holes left out)
88      4     number of entries
92      4     number of object names
96      8     bytes of the entries section (zlib)
104     8     bytes of the same, inflated
112     8     bytes of the skeleton section (zlib)
120     8     bytes of the same, inflated
128     23*n  object names, padded with NUL, each once, in order of first use
...           entries section, skeleton section
======  ====  =====================================================================

An entry is ``_ENTRY`` followed by path, target, xattrs and sparse map. The
*skeleton* is the archive with the payload of regular files taken out: an entry
owns ``raw`` bytes of it (headers, extensions, padding of the one before), after
which ``payload`` bytes come from its object; what is left at the end ends the
archive. So the archive can be given back to the bit.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Final, NamedTuple

from cowstore.errors import Damaged
from cowstore.viewformat import NAME_BYTES

MAGIC: Final = b"COWLAYR1"
#: ``kind`` of a hard link; other kinds are S_IFMT bits.
LINK: Final = 1
_TOGETHER: Final = 256 << 10

_HEADER = struct.Struct("<8s32s32sQQIIQQQQ")
_ENTRY = struct.Struct("<IHIIqIQIIiIQHHII")
_XATTR = struct.Struct("<HI")
_EXTENT = struct.Struct("<QQ")


class Entry(NamedTuple):
    """One member of a layer's archive.

    Attributes:
        path: relative, no ``.`` or ``..`` in it; empty for the root.
        kind: S_IFMT bits, or ``LINK``.
        mode: permission bits, set-id and sticky bits.
        mtime, mtime_ns: seconds since 1970 (may be negative), and nanoseconds 0 to 999,999,999.
        size: of the content, holes included.
        target: of a symlink, verbatim; of a hard link, a path like ``path``.
        xattrs: (name, value) as the archive has them.
        object: name of the content object; empty if there is no content.
        sparse: (offset, length) of the data in the content; empty if it has no holes.
        raw, payload: see the module's docstring.
    """

    path: bytes
    kind: int
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    object: str = ""
    sparse: tuple[tuple[int, int], ...] = ()
    raw: int = 0
    payload: int = 0

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR


class Facts(NamedTuple):
    """What the header of a manifest says."""

    diff_id: str
    size: int
    content: int
    entries: int
    names: int


class Section:
    """Collects the bytes of a section, compressed as they come."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(1)
        self._parts: list[bytes] = []
        self._waiting: list[bytes] = []
        self._due = _TOGETHER
        self.size = 0

    def add(self, raw: bytes) -> None:
        """The next bytes; of a skeleton: those before the next content."""
        self.size += len(raw)
        self._waiting.append(raw)
        if self.size >= self._due:  # one call for many headers
            self._due = self.size + _TOGETHER
            self._parts.append(self._zlib.compress(b"".join(self._waiting)))
            self._waiting.clear()

    def finish(self) -> bytes:
        """The section."""
        self._parts.append(self._zlib.compress(b"".join(self._waiting)))
        self._parts.append(self._zlib.flush())
        return b"".join(self._parts)


def _pack_xattrs(xattrs: tuple[tuple[bytes, bytes], ...]) -> bytes:
    return b"".join(_XATTR.pack(len(n), len(v)) + n + v for n, v in xattrs)


def _unpack_xattrs(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    at = 0
    while at < len(data):
        name, value = _XATTR.unpack_from(data, at)
        at += _XATTR.size
        found.append((data[at : at + name], data[at + name : at + name + value]))
        at += name + value
    return tuple(found)


def encode(
    diff_id: str, size: int, entries: Iterable[Entry], skeleton: bytes, skeleton_size: int
) -> bytes:
    """The bytes of a manifest file."""
    names: dict[str, int] = {}
    section = Section()
    count = content = 0
    for entry in entries:
        index = names.setdefault(entry.object, len(names)) if entry.object else -1
        xattrs = _pack_xattrs(entry.xattrs)
        fixed = _ENTRY.pack(
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime,
            entry.mtime_ns,
            entry.size,
            entry.major,
            entry.minor,
            index,
            entry.raw,
            entry.payload,
            len(entry.path),
            len(entry.target),
            len(xattrs),
            len(entry.sparse),
        )
        sparse = b"".join(_EXTENT.pack(*extent) for extent in entry.sparse)
        section.add(fixed + entry.path + entry.target + xattrs + sparse)
        count += 1
        content += entry.payload
    packed = section.finish()
    named = b"".join(name.encode().ljust(NAME_BYTES, b"\0") for name in names)
    head = _HEADER.pack(
        MAGIC,
        b"\0" * 32,
        bytes.fromhex(diff_id[7:]),
        size,
        content,
        count,
        len(names),
        len(packed),
        section.size,
        len(skeleton),
        skeleton_size,
    )
    body = b"".join((head[40:], named, packed, skeleton))
    return MAGIC + sha256(body).digest() + body


class Manifest:
    """A manifest file, opened for reading.

    Raises:
        Damaged: it is not one, or was cut short (``verify`` checks every byte).
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise Damaged(f"layer {os.path.basename(path)[:12]} has no manifest") from None
        except ValueError:
            raise Damaged(f"the manifest {path} is empty") from None
        try:
            fields = _HEADER.unpack_from(self._map)
        except struct.error:
            raise self._bad() from None
        magic, _, diff, size, content, entries, names, *sections = fields
        self._packed, self._plain, self._skeleton, self._skeleton_size = sections
        self.facts = Facts("sha256:" + diff.hex(), size, content, entries, names)
        self._names_at = _HEADER.size
        self._entries_at = self._names_at + names * NAME_BYTES
        end = self._entries_at + self._packed + self._skeleton
        if magic != MAGIC or end != len(self._map):
            raise self._bad()

    def _bad(self) -> Damaged:
        return Damaged(f"the manifest {self.path} is damaged", "cowstore fsck --repair")

    def close(self) -> None:
        """Unmap it."""
        self._map.close()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def verify(self) -> bool:
        """Whether every byte is as it was written."""
        return self._map[8:40] == sha256(memoryview(self._map)[40:]).digest()

    def names(self) -> list[str]:
        """Names of the content objects, each once."""
        text = self._map[self._names_at : self._entries_at].decode("ascii", "replace")
        width = NAME_BYTES
        return [text[at : at + width].rstrip("\0") for at in range(0, len(text), width)]

    def entries(self) -> list[Entry]:
        """Every member, in the archive's order."""
        try:
            plain = zlib.decompress(
                self._map[self._entries_at : self._entries_at + self._packed], bufsize=self._plain
            )
            return list(self._decode(plain))
        except (zlib.error, struct.error, IndexError):
            raise self._bad() from None

    def _decode(self, plain: bytes) -> Iterator[Entry]:
        names = [*self.names(), ""]
        at, unpack, width = 0, _ENTRY.unpack_from, _ENTRY.size
        while at < len(plain):
            (
                kind, mode, uid, gid, mtime, mtime_ns, size, major, minor, index, raw, payload,
                path_length, target_length, xattrs_length, extents,
            ) = unpack(plain, at)  # fmt: skip
            at += width
            path = plain[at : at + path_length]
            at += path_length
            target = plain[at : at + target_length] if target_length else b""
            at += target_length
            xattrs = _unpack_xattrs(plain[at : at + xattrs_length]) if xattrs_length else ()
            at += xattrs_length
            sparse: tuple[tuple[int, int], ...] = ()
            if extents:
                end = at + extents * _EXTENT.size
                sparse = tuple((o, n) for o, n in _EXTENT.iter_unpack(plain[at:end]))
                at = end
            yield Entry(
                path, kind, mode, uid, gid, mtime, mtime_ns, size, target, major, minor, xattrs,
                names[index], sparse, raw, payload,
            )  # fmt: skip

    def skeleton(self) -> _Inflater:
        """The archive's bytes between contents, to be read from the start."""
        at = self._entries_at + self._packed
        return _Inflater(self._map[at : at + self._skeleton], self._bad())


class _Inflater:
    """Reads an inflated section piece by piece."""

    def __init__(self, packed: bytes, error: Damaged) -> None:
        self._rest = packed
        self._zlib = zlib.decompressobj()
        self._error = error

    def read(self, count: int) -> bytes:
        """Exactly ``count`` bytes.

        Raises:
            Damaged: there are not so many.
        """
        parts = []
        while count:
            try:
                data = self._zlib.decompress(self._rest, count)
            except zlib.error:
                raise self._error from None
            self._rest = self._zlib.unconsumed_tail
            if not data:
                raise self._error
            parts.append(data)
            count -= len(data)
        return b"".join(parts)

    def rest(self) -> Iterator[bytes]:
        """All that is left, in pieces."""
        with contextlib.suppress(zlib.error):
            while data := self._zlib.decompress(self._rest, 1 << 20):
                self._rest = self._zlib.unconsumed_tail
                yield data
