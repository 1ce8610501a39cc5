"""Compression of layers: gzip, zstd, xz, bzip2 in; gzip and zstd out.

Inflating is bounded: a piece at a time, and never more than ``Limits`` allow for what went in.
isal inflates gzip at twice the speed of zlib; where it is missing zlib does the same.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from cowstore.errors import Refused, StoreError
from cowstore.rules import Limits

PIECE: Final = 1 << 20
_MAGIC: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
)
#: A frame that wants a larger window than zstd's --long=27 is refused: it costs that much memory.
_ZSTD_WINDOW: Final = 1 << 27
_ZSTD_INPUT: Final = 2048


def detect(start: bytes) -> str:
    """``gzip``, ``zstd``, ``xz``, ``bzip2``, or ``none``, from the first bytes."""
    if start[:4][1:] == b"\x2a\x4d\x18" and start[:1] and 0x50 <= start[0] <= 0x5F:
        return "zstd"  # a skippable frame in front, as zstd:chunked may write it
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return name
    return "none"


def inflate(chunks: Iterator[bytes], limits: Limits) -> Iterator[bytes]:
    """The bytes of a stream, inflated if it is compressed.

    Raises:
        Refused: damaged, cut short, followed by something else, or a bomb.
    """
    first = next(chunks, b"")
    while len(first) < 6 and (more := next(chunks, b"")):
        first += more
    kind = detect(first)
    counted = _Counted(first, chunks)
    if kind == "none":
        return _limited(counted, counted, limits, kind)
    if kind == "zstd":
        return _limited(_inflate_zstd(counted), counted, limits, kind)
    return _limited(_inflate_members(counted, kind), counted, limits, kind)


class _Counted:
    """Chunks with one put back in front, and a count of what was taken."""

    def __init__(self, first: bytes, chunks: Iterator[bytes]) -> None:
        self._first = first
        self._chunks = chunks
        self.count = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data, self._first = self._first, b""
        if not data:
            data = next(self._chunks)
        self.count += len(data)
        return data


def _limited(
    pieces: Iterable[bytes], counted: _Counted, limits: Limits, kind: str
) -> Iterator[bytes]:
    out = 0
    for piece in pieces:
        out += len(piece)
        if out > limits.layer:
            raise Refused(f"the archive inflates to more than {limits.layer} bytes")
        if kind != "none" and out > limits.grace and out > limits.ratio * counted.count:
            raise Refused(
                f"{counted.count} compressed bytes inflate to more than {limits.ratio} times"
                " as many: this looks like a bomb",
                "if you trust it, allow more with --max-ratio",
            )
        yield piece


def _decoder_of(kind: str) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """(a maker of decoders, what those raise)."""
    if kind == "gzip":
        try:
            from isal import isal_zlib
        except ImportError:
            return lambda: zlib.decompressobj(31), (zlib.error,)
        failed: Any = isal_zlib.error
        return lambda: isal_zlib.decompressobj(31), (failed, zlib.error)
    if kind == "xz":
        import lzma

        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=256 << 20), (lzma.LZMAError,)
    import bz2

    return bz2.BZ2Decompressor, (OSError, ValueError)


def _inflate_members(chunks: Iterator[bytes], kind: str) -> Iterator[bytes]:
    """One stream after the other, as gzip(1) and xz(1) concatenate them; nothing else behind."""
    make, errors = _decoder_of(kind)
    magic = next(magic for magic, name in _MAGIC if name == kind)
    decoder = make()
    tails = hasattr(decoder, "unconsumed_tail")
    for data in chunks:
        while True:
            if decoder.eof:
                if not data.startswith(magic[: len(data)]):
                    raise Refused(f"something else follows the {kind} stream")
                decoder = make()
            try:
                piece = decoder.decompress(data, PIECE)
            except errors:
                raise Refused(f"the {kind} stream is damaged") from None
            if piece:
                yield piece
            if decoder.eof:
                data = decoder.unused_data
                if not data:
                    break
            elif tails:
                data = decoder.unconsumed_tail
                if not data and len(piece) < PIECE:
                    break
            else:
                data = b""
                if decoder.needs_input:
                    break
    if not decoder.eof:
        raise Refused(f"the {kind} stream is cut short")


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise StoreError(
            "zstd needs the library zstandard", "pip install zstandard, or use gzip"
        ) from None
    return zstandard


def _inflate_zstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Frame after frame. The library gives all that a piece of input makes: four bytes can be
    128 KiB (RFC 8878, "RLE_Block"), so pieces are small."""
    zstandard = _zstandard()
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    decoder = decompressor.decompressobj()
    ready: list[bytes] = []
    size = 0
    try:
        for chunk in chunks:
            for at in range(0, len(chunk), _ZSTD_INPUT):
                data = chunk[at : at + _ZSTD_INPUT]
                while data:
                    if decoder.eof:
                        decoder = decompressor.decompressobj()
                    piece = decoder.decompress(data)
                    ready.append(piece)
                    size += len(piece)
                    data = decoder.unused_data if decoder.eof else b""
                if size >= PIECE:
                    yield b"".join(ready)
                    ready, size = [], 0
    except zstandard.ZstdError:
        raise Refused("the zstd stream is damaged, or something else follows it") from None
    if not decoder.eof:
        raise Refused("the zstd stream is cut short")
    yield b"".join(ready)


def deflater(kind: str, level: int | None = None) -> Any:
    """Something with ``compress`` and ``flush``, whose output depends on nothing but its input.

    gzip: isal's or zlib's default level; the header carries no name and no time.
    zstd: level 3, with a checksum.
    """
    if kind == "gzip":
        return _Gzip(level)
    if kind == "zstd":
        zstandard = _zstandard()
        return zstandard.ZstdCompressor(level=level or 3, write_checksum=True).compressobj()
    raise StoreError(f"{kind}: not a compression that layers can have", "gzip, zstd or none")


class _Gzip:
    """gzip by zlib, level 6: the same bytes on every machine, which isal does not promise."""

    def __init__(self, level: int | None) -> None:
        self._zlib = zlib.compressobj(level or 6, zlib.DEFLATED, 31)

    def compress(self, data: bytes) -> bytes:
        return self._zlib.compress(data)

    def flush(self) -> bytes:
        return self._zlib.flush()


def read_chunks(fd: int, size: int = 1 << 18) -> Iterator[bytes]:
    """Everything from a descriptor, from where it stands."""
    while chunk := os.read(fd, size):
        yield chunk
