"""Writing tar archives: ustar headers, pax records only where a value does not fit.

The same entry gives the same bytes everywhere. Source: pax(1) of POSIX.1-2017; the names of pax
keys for extended attributes are those of image-spec layer.md.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import Final

from cowstore.manifest import LINK, Entry
from cowstore.tar import BLOCK

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_FLAGS: Final = {
    stat.S_IFREG: b"0",
    LINK: b"1",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}


def padding(size: int) -> bytes:
    """What follows a payload up to the next block."""
    return bytes(-size % BLOCK)


def trailer() -> bytes:
    """The end of an archive."""
    return bytes(2 * BLOCK)


def _octal(value: int, width: int) -> bytes | None:
    """A number in a field of ``width`` bytes; None if it does not fit."""
    text = b"%0*o" % (width - 1, value) if value >= 0 else b""
    return text + b"\0" if 0 < len(text) < width else None


def _record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    length = size + len(str(size))
    if len(str(length)) > len(str(size)):
        length = size + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _pax_time(seconds: int, nanos: int) -> bytes:
    if not nanos:
        return b"%d" % seconds
    if seconds < 0:  # -1.5 is (-2, 500000000): the fraction counts away from zero in text
        seconds, nanos = seconds + 1, 1_000_000_000 - nanos
        sign = b"-" if seconds == 0 else b""
        return sign + b"%d.%09d" % (seconds, nanos)
    return b"%d.%09d" % (seconds, nanos)


def header(entry: Entry) -> bytes:
    """The header blocks of a member; ``entry.size`` bytes follow, or the map's data if sparse.

    A sparse file is written in GNU tar's pax format 1.0 ("Sparse Formats" of its manual).
    """
    name = entry.path or b"."
    if entry.kind == stat.S_IFDIR:
        name += b"/"
    length = entry.size if entry.kind == stat.S_IFREG else 0
    pax: list[tuple[bytes, bytes]] = []
    sparse = b""
    if entry.sparse:
        extents = entry.sparse
        if sum(extents[-1]) < entry.size:
            extents = (*extents, (entry.size, 0))  # GNU tar knows of a last hole by this alone
        numbers_text = b"".join(b"%d\n%d\n" % extent for extent in extents)
        sparse = b"%d\n" % len(extents) + numbers_text
        sparse += padding(len(sparse))
        length = len(sparse) + sum(count for _, count in entry.sparse)
        pax = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", name),
            (b"GNU.sparse.realsize", b"%d" % entry.size),
        ]
    field_name, prefix = _split(name)
    if field_name is None:
        pax.append((b"path", name))
        field_name, prefix = name[:100], b""
    target = entry.target if entry.kind in (LINK, stat.S_IFLNK) else b""
    if len(target) > 100:
        pax.append((b"linkpath", target))
    numbers = {}
    for key, value, width in (
        (b"uid", entry.uid, 8),
        (b"gid", entry.gid, 8),
        (b"size", length, 12),
        (b"mtime", entry.mtime, 12),
    ):
        numbers[key] = _octal(value, width)
        if numbers[key] is None or (key == b"mtime" and entry.mtime_ns):
            text = _pax_time(entry.mtime, entry.mtime_ns) if key == b"mtime" else b"%d" % value
            pax.append((key, text))
    pax += [(b"SCHILY.xattr." + key, value) for key, value in sorted(entry.xattrs)]
    block = _block(
        field_name, prefix, entry.mode, numbers, _FLAGS[entry.kind], target[:100],
        entry.major, entry.minor,
    )  # fmt: skip
    if not pax:
        return block
    records = b"".join(_record(key, value) for key, value in pax)
    sizes = {b"size": _octal(len(records), 12)}
    extended = _block(b"PaxHeaders/" + field_name[:80], b"", 0o644, sizes, b"x", b"", 0, 0)
    return extended + records + padding(len(records)) + block + sparse


def _split(name: bytes) -> tuple[bytes | None, bytes]:
    """(name, prefix) as ustar has them; the name is None if it does not fit or is not ASCII."""
    if not name.isascii():
        return None, b""
    if len(name) <= 100:
        return name, b""
    at = name.rfind(b"/", 0, 156)
    while at > 0:
        if 0 < len(name) - at - 1 <= 100 and at <= 155:
            return name[at + 1 :], name[:at]
        at = name.rfind(b"/", 0, at)
    return None, b""


def _block(
    name: bytes,
    prefix: bytes,
    mode: int,
    numbers: dict[bytes, bytes | None],
    flag: bytes,
    target: bytes,
    major: int,
    minor: int,
) -> bytes:
    zero = b"0" * 11 + b"\0"
    fields = [
        name,
        b"%07o\0" % mode,
        numbers.get(b"uid") or b"0000000\0",
        numbers.get(b"gid") or b"0000000\0",
        numbers.get(b"size") or zero,
        numbers.get(b"mtime") or zero,
        b" " * 8,
        flag,
        target,
        b"ustar\0",
        b"00",
        b"",
        b"",
        _octal(major, 8) or b"",
        _octal(minor, 8) or b"",
        prefix,
    ]
    block = _HEADER.pack(*fields)
    fields[6] = b"%06o\0 " % sum(block)
    return _HEADER.pack(*fields)


def file_member(name: str, size: int) -> bytes:
    """The header of an ordinary file."""
    return header(Entry(os.fsencode(name), stat.S_IFREG, 0o644, size=size))


def small_member(name: str, data: bytes) -> bytes:
    """An ordinary file, whole."""
    return file_member(name, len(data)) + data + padding(len(data))
