"""Reading tar archives as a stream: ustar, GNU and pax, with every encoding of sparse files.

A reader of our own because three things are needed at once that no library gives: raw names,
every byte between the contents (for giving the archive back to the bit), and sparse maps; and it
is ten times as fast as ``tarfile`` on a stream. What it accepts is checked by ``cowstore.rules``.
Sources: pax(1) of POSIX.1-2017, the tar(5) of libarchive, GNU tar's manual ("Sparse Formats").
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from cowstore.errors import Refused
from cowstore.manifest import LINK

BLOCK: Final = 512
_ZERO: Final = bytes(BLOCK)
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
#: Bounds for what a header may make us keep in memory.
_MAX_EXTENSION: Final = 4 << 20
_MAX_EXTENTS: Final = 1 << 18
_MAX_HEADERS: Final = 16 << 20

_KINDS: Final = {
    b"0": stat.S_IFREG,
    b"\0": stat.S_IFREG,
    b"7": stat.S_IFREG,
    b"S": stat.S_IFREG,
    b"1": LINK,
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"5": stat.S_IFDIR,
    b"6": stat.S_IFIFO,
}
_XATTR: Final = b"SCHILY.xattr."
_NO_TAR: Final = "not a tar archive, or damaged"


class Member(NamedTuple):
    """One member as its headers say; names as they are written there.

    ``sparse`` is None for a file without holes; ``raw`` are all bytes of the
    archive since the last payload; ``payload`` bytes of data follow.
    """

    name: bytes
    kind: int
    mode: int
    uid: int
    gid: int
    mtime: int
    mtime_ns: int
    size: int
    target: bytes
    major: int
    minor: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    sparse: tuple[tuple[int, int], ...] | None
    raw: bytes
    payload: int


class ByteSource:
    """Chunks of bytes, read in the sizes a parser wants."""

    __slots__ = ("_buffer", "_chunks", "_pos", "taken")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = b""
        self._pos = 0
        self.taken = 0

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer only at the end."""
        pos = self._pos
        if len(self._buffer) - pos >= count:
            self._pos = pos + count
            self.taken += count
            return self._buffer[pos : self._pos]
        parts = [self._buffer[pos:]]
        have = len(parts[0])
        self._buffer, self._pos = b"", 0
        while have < count:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        if have > count:
            self._buffer, self._pos = data, count
            data = data[:count]
        self.taken += len(data)
        return data

    def some(self, limit: int) -> bytes:
        """What is at hand, ``limit`` bytes at most; empty at the end."""
        if self._pos >= len(self._buffer):
            self._buffer, self._pos = next(self._chunks, b""), 0
        data = self._buffer[self._pos : self._pos + limit]
        self._pos += len(data)
        self.taken += len(data)
        return data


def _text(field: bytes) -> bytes:
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


def number(field: bytes) -> int:
    """A numeric field: octal digits, or base-256 if the first bit is set.

    Raises:
        Refused: neither.
    """
    text = field.strip(b" \0")
    if text.isdigit():  # hot path: nearly every field
        try:
            return int(text, 8)
        except ValueError:
            raise Refused(f"a tar header's number is malformed: {field!r}") from None
    if field[0] & 0x80:
        value = int.from_bytes(field, "big")
        bits = len(field) * 8
        if field[0] & 0x40:  # negative: two's complement, the marker bit being the sign
            return value - (1 << bits)
        return value & ((1 << (bits - 1)) - 1)
    text = text.partition(b"\0")[0].rstrip(b" ")
    if not text:
        return 0
    if text.isdigit() and not set(text) & set(b"89"):
        return int(text, 8)
    raise Refused(f"a tar header's number is malformed: {field!r}")


def _decimal(text: bytes, what: str) -> int:
    if not text.isdigit() or len(text) > 20:
        raise Refused(f"a pax header's {what} is malformed: {text[:40]!r}")
    return int(text)


def pax_time(text: bytes) -> tuple[int, int]:
    """(seconds, nanoseconds) of a pax time such as ``-1.5``, rounded down to a nanosecond."""
    whole, _, fraction = text.partition(b".")
    negative = whole.startswith(b"-")
    digits = whole[1:] if negative else whole
    if (fraction and not fraction.isdigit()) or not (digits or b"0").isdigit() or len(text) > 60:
        raise Refused(f"a pax header's time is malformed: {text[:40]!r}")
    seconds = int(digits or b"0")
    nanos = int(fraction[:9].ljust(9, b"0")) if fraction else 0
    if not negative:
        return seconds, nanos
    if fraction[9:].strip(b"0"):
        nanos += 1
    seconds, nanos = -seconds, -nanos
    return seconds + nanos // 1_000_000_000, nanos % 1_000_000_000


def pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of an extended header, in order.

    Raises:
        Refused: malformed.
    """
    records = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        if space < 0 or not data[at:space].isdigit():
            if not data[at:].strip(b"\0"):
                break
            raise Refused("a pax header is malformed")
        end = at + int(data[at:space])
        equals = data.find(b"=", space, end)
        if end > len(data) or end <= space or equals < 0 or data[end - 1 : end] != b"\n":
            raise Refused("a pax header is malformed")
        records.append((data[space + 1 : equals], data[equals + 1 : end - 1]))
        at = end
    return records


class TarReader:
    """Yields members; the caller reads each payload before it asks for the next.

    Raises:
        Refused: not a tar archive, cut short, or malformed.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self._raw: list[bytes] = []
        self._held = 0
        self._padding = 0
        self._name = b""
        self._whole = True

    def __iter__(self) -> Iterator[Member]:
        while True:
            self._whole = False
            try:
                member = self._next()
            except Refused as error:
                text = str(error)
                if not self._name and not text.startswith(_NO_TAR):
                    text = f"{_NO_TAR}: {text}"
                raise Refused(f"{self._where()}{text}", error.hint) from None
            self._whole = True
            if member is None:
                return
            yield member

    def _where(self) -> str:
        """The member that is at fault: by its name if that was read, else by the one before."""
        if not self._name:
            return ""
        return f"{_show(self._name)}: " if self._whole else f"after {_show(self._name)}: "

    def payload(self, count: int) -> bytes:
        """Payload of the last member, all of it."""
        data = self.source.take(count)
        if len(data) < count:
            raise Refused(f"{_show(self._name)}: the archive ends inside this file")
        return data

    def pieces(self, count: int) -> Iterator[bytes]:
        """The same in pieces, for large files."""
        while count:
            data = self.source.some(count)
            if not data:
                raise Refused(f"{_show(self._name)}: the archive ends inside this file")
            count -= len(data)
            yield data

    def trailer(self) -> Iterator[bytes]:
        """What stands after the last member: to be asked for when there are no more."""
        yield from self._raw
        self._raw = []
        while data := self.source.some(1 << 20):
            yield data

    def _take(self, count: int) -> bytes:
        data = self.source.take(count)
        if len(data) < count:
            raise Refused("the archive ends inside a header")
        self._keep(data)
        return data

    def _keep(self, data: bytes) -> None:
        self._raw.append(data)
        self._held += len(data)
        if self._held > _MAX_HEADERS:
            raise Refused(f"more than {_MAX_HEADERS} bytes of headers for one member")

    def _extension(self, size: int) -> bytes:
        if size > _MAX_EXTENSION:
            raise Refused(f"a tar header of {size} bytes is more than any name needs")
        return self._take(-(-size // BLOCK) * BLOCK)[:size]

    def _next(self) -> Member | None:
        if self._padding:
            self._take(self._padding)
            self._padding = 0
        pax: list[tuple[bytes, bytes]] = []
        long_name = long_target = b""
        extended = False
        while True:
            block = self.source.take(BLOCK)
            if not block and not extended:
                return None  # no end mark: many writers leave it out
            self._keep(block)
            if block == _ZERO and not extended:
                return None
            if len(block) < BLOCK:
                raise Refused("the archive ends inside a header")
            fields = _FIELDS.unpack(block)
            self._check(block, fields[6])
            flag = fields[7]
            if flag in (b"x", b"X", b"g"):
                records = pax_records(self._extension(number(fields[4])))
                if flag != b"g":  # engines take no attributes from global headers either
                    pax = records
                    extended = True
            elif flag == b"L":
                long_name = _text(self._extension(number(fields[4])))
                extended = True
            elif flag == b"K":
                long_target = _text(self._extension(number(fields[4])))
                extended = True
            else:
                return self._member(fields, block, pax, long_name, long_target)

    @staticmethod
    def _check(block: bytes, field: bytes) -> None:
        stored = number(field)
        total = sum(block) - sum(field) + 256
        if total == stored:
            return
        signed = total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if signed != stored:
            raise Refused(f"{_NO_TAR}: a header's checksum is wrong")

    def _member(
        self,
        fields: tuple[bytes, ...],
        block: bytes,
        pax: list[tuple[bytes, bytes]],
        long_name: bytes,
        long_target: bytes,
    ) -> Member:
        flag = fields[7]
        name, target = long_name or _text(fields[0]), long_target or _text(fields[8])
        posix = fields[9][:6] == b"ustar\0"
        if posix and not long_name and (prefix := _text(fields[14])):
            name = prefix + b"/" + name
        values = dict(pax)
        name = values.get(b"path", name)
        self._name, self._whole = name, True
        kind = _KINDS.get(flag)
        if kind is None:
            raise Refused(f"a tar member of unknown type {flag!r}")
        size, mtime = number(fields[4]), (number(fields[5]), 0)
        uid, gid = number(fields[2]), number(fields[3])
        xattrs = []
        for key, value in values.items():
            if key == b"linkpath":
                target = value
            elif key == b"size":
                size = _decimal(value, "size")
            elif key == b"mtime":
                mtime = pax_time(value)
            elif key == b"uid":
                uid = _decimal(value, "uid")
            elif key == b"gid":
                gid = _decimal(value, "gid")
            elif key.startswith(_XATTR):
                xattrs.append((key[len(_XATTR) :], value))
        if kind == stat.S_IFREG and name.endswith(b"/") and flag in (b"0", b"\0"):
            kind = stat.S_IFDIR  # as tar before POSIX wrote directories
        if kind != stat.S_IFREG:
            size = 0
        if size < 0:
            raise Refused("a negative size")
        payload = size
        sparse: tuple[tuple[int, int], ...] | None = None
        if flag == b"S":
            sparse, size = self._gnu_map(block)
        elif b"GNU.sparse.major" in values or b"GNU.sparse.map" in values or any(
            key == b"GNU.sparse.offset" for key, _ in pax
        ):  # fmt: skip
            name = values.get(b"GNU.sparse.name", name)
            real = values.get(b"GNU.sparse.realsize") or values.get(b"GNU.sparse.size", b"")
            sparse, used = self._pax_map(pax, values)
            size = _decimal(real, "size")
            payload -= used
        if sparse is not None:
            sparse = _checked_map(sparse, size, payload)
        self._padding = -payload % BLOCK
        raw = b"".join(self._raw)
        self._raw, self._held = [], 0
        mode = number(fields[1]) & 0o7777
        major = minor = 0
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            major, minor = number(fields[12]), number(fields[13])
        return Member(
            name, kind, mode, uid, gid, *mtime, size, target, major, minor, tuple(xattrs), sparse,
            raw, payload,
        )  # fmt: skip

    def _gnu_map(self, block: bytes) -> tuple[tuple[tuple[int, int], ...], int]:
        """The map of an old GNU sparse file: four extents here, more in blocks that follow."""
        extents = _gnu_extents(block[386:482])
        more, size = block[482], number(block[483:495])
        while more:
            following = self._take(BLOCK)
            extents += _gnu_extents(following[:504])
            more = following[504]
            if len(extents) > _MAX_EXTENTS:
                raise _too_many_pieces()
        return tuple(extents), size

    def _pax_map(
        self, pax: list[tuple[bytes, bytes]], values: dict[bytes, bytes]
    ) -> tuple[tuple[tuple[int, int], ...], int]:
        """(map, bytes of payload it took) of the pax formats 0.0, 0.1 and 1.0."""
        if b"GNU.sparse.map" in values:
            told = values[b"GNU.sparse.map"]
            if told.count(b",") > 2 * _MAX_EXTENTS:
                raise _too_many_pieces()
            return _pairs([_decimal(n, "map") for n in told.split(b",") if n]), 0
        if b"GNU.sparse.major" not in values:
            keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
            return _pairs([_decimal(value, "map") for key, value in pax if key in keys]), 0
        if (values[b"GNU.sparse.major"], values.get(b"GNU.sparse.minor")) != (b"1", b"0"):
            raise Refused("a sparse file in a format that is not known")
        text, used = b"", 0
        numbers: list[int] = []
        while True:
            text += self._take(BLOCK)
            used += BLOCK
            *done, text = text.split(b"\n")
            for line in done:
                if numbers and len(numbers) > 2 * numbers[0]:
                    break  # what follows the map fills its block
                numbers.append(_decimal(line, "map"))
            if numbers:
                if numbers[0] > _MAX_EXTENTS:
                    raise _too_many_pieces()
                if len(numbers) > 2 * numbers[0]:
                    return _pairs(numbers[1:]), used
            if len(text) > 2 * BLOCK:
                raise Refused("a sparse file's map is malformed")


def _too_many_pieces() -> Refused:
    return Refused(f"a sparse file with more than {_MAX_EXTENTS} pieces")


def _gnu_extents(data: bytes) -> list[tuple[int, int]]:
    found = []
    for at in range(0, len(data) - 23, 24):
        if data[at] == 0 or data[at + 12] == 0:
            break
        found.append((number(data[at : at + 12]), number(data[at + 12 : at + 24])))
    return found


def _pairs(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    if len(numbers) % 2:
        raise Refused("a sparse file's map is malformed")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _checked_map(
    sparse: tuple[tuple[int, int], ...], size: int, payload: int
) -> tuple[tuple[int, int], ...]:
    """The map without its empty pieces, if it fits the file and its payload."""
    end = total = 0
    for offset, length in sparse:
        if offset < end or offset + length > size:
            raise Refused("a sparse file's map does not fit its size")
        end = offset + length
        total += length
    if total != payload:
        raise Refused("a sparse file's map does not fit its data")
    # A file that is one hole still needs a map, to be told from one without holes.
    return tuple(extent for extent in sparse if extent[1]) or ((size, 0),)


def _show(name: bytes) -> str:
    return repr(name[:200].decode("utf-8", "backslashreplace"))
