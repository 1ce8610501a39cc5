"""One layer's blob on its way into the store: inflate, hash, parse, check, keep contents.

Two threads: one reads, hashes the blob, inflates, and hashes the archive; the other
parses and writes. Between them are a few pieces of a megabyte, so memory stays bounded
whatever the layer. Nothing becomes visible here: see ``cowstore.layers``.
"""

from __future__ import annotations

import os
import queue
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from cowstore import rules
from cowstore.codec import detect, inflate
from cowstore.errors import Refused
from cowstore.manifest import LINK, Entry, Section
from cowstore.objects import SMALL, Stager
from cowstore.rules import Limits, is_whiteout
from cowstore.tar import ByteSource, Member, TarReader, _show
from unionfs.formats import WH_PREFIX

_QUEUED = 6


@dataclass(slots=True)
class Ingested:
    """A layer whose contents are staged.

    Attributes:
        links: hard links whose target is in no earlier member: a lower layer must have it.
        blob_digest, blob_size: of the bytes as they came.
        compression: ``gzip``, ``zstd``, ``xz``, ``bzip2`` or ``none``.
    """

    diff_id: str
    size: int
    entries: list[Entry]
    skeleton: bytes
    skeleton_size: int
    links: list[tuple[bytes, bytes]] = field(default_factory=list)
    blob_digest: str = ""
    blob_size: int = 0
    compression: str = "none"


class BlobFeed:
    """Chunks of a blob: hashed, counted and optionally copied to a file on their way.

    Raises:
        Refused: more or fewer bytes than announced, or another digest; by ``finish`` at the latest.
    """

    def __init__(
        self,
        chunks: Iterator[bytes],
        *,
        digest: str | None = None,
        size: int | None = None,
        copy: int = -1,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._chunks = chunks
        self._expected = digest
        self._size = size
        self._copy = copy
        self._progress = progress
        self._hash = sha256()
        self.count = 0
        self.start = b""

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        chunk = next(self._chunks)
        while not chunk:
            chunk = next(self._chunks)
        self._hash.update(chunk)
        self.count += len(chunk)
        if len(self.start) < 6:
            self.start += chunk[:6]
        if self._size is not None and self.count > self._size:
            raise Refused(f"a blob is longer than the {self._size} bytes announced")
        if self._copy >= 0:
            data = chunk
            while data:
                data = data[os.write(self._copy, data) :]
        if self._progress is not None:
            self._progress(self.count)
        return chunk

    def close(self) -> None:
        """Let go of where the chunks come from, read to the end or not."""
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()

    def finish(self) -> str:
        """Read to the end and check; the digest."""
        for _ in self:
            pass
        found = "sha256:" + self._hash.hexdigest()
        if self._size is not None and self.count != self._size:
            raise Refused(f"a blob has {self.count} bytes, {self._size} were announced")
        if self._expected is not None and found != self._expected:
            raise Refused(f"a blob's digest is {found}, expected {self._expected}")
        return found


class _Pump:
    """Inflates in a thread of its own; iterate to get the pieces."""

    def __init__(self, feed: BlobFeed, limits: Limits) -> None:
        self._feed = feed
        self._limits = limits
        self._hash = sha256()
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_QUEUED)
        self._stop = False
        self.count = 0
        self._thread = threading.Thread(target=self._run, name="cowstore-inflate", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            for piece in inflate(self._feed, self._limits):
                self._hash.update(piece)
                self.count += len(piece)
                self._queue.put(piece)
                if self._stop:
                    return
            self._feed.finish()
        except BaseException as error:
            end = error
        self._queue.put(end)

    def pieces(self) -> Iterator[bytes]:
        """What comes out; an error in there is raised here."""
        while True:
            piece = self._queue.get()
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def stop(self) -> None:
        """End the thread, whatever it is doing."""
        self._stop = True
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def digest(self) -> str:
        """Digest of the inflated archive, once it has been read to its end."""
        return "sha256:" + self._hash.hexdigest()


def ingest(
    stager: Stager, feed: BlobFeed, limits: Limits, *, diff_id: str | None = None
) -> Ingested:
    """Take a layer in.

    Raises:
        Refused: the archive breaks a rule, or is not what was announced.
    """
    pump = _Pump(feed, limits)
    try:
        tree = _LayerTree()
        skeleton = Section()
        reader = TarReader(ByteSource(pump.pieces()))
        entries = list(_entries(reader, stager, tree, limits, skeleton, feed))
        for data in reader.trailer():
            skeleton.add(data)
            bound(skeleton.size, limits.raw, "bytes between files")
    finally:
        pump.stop()
    found = pump.digest()
    if diff_id is not None and found != diff_id:
        raise Refused(f"a layer's diff id is {found}, expected {diff_id}")
    return Ingested(
        found,
        pump.count,
        entries,
        skeleton.finish(),
        skeleton.size,
        tree.links,
        feed.finish(),
        feed.count,
        detect(feed.start),
    )


def bound(value: int, limit: int, what: str) -> None:
    """Raises ``Refused`` for an archive with more of something than is allowed."""
    if value > limit:
        raise Refused(f"the archive has more than {limit} {what}")


def _entries(
    reader: TarReader,
    stager: Stager,
    tree: _LayerTree,
    limits: Limits,
    skeleton: Section,
    feed: BlobFeed,
) -> Iterator[Entry]:
    held = 0
    for count, member in enumerate(reader):
        path = rules.clean_path(member.name, "a name in the archive")
        rules.check_member(member, path, limits)
        target = member.target
        if member.kind == LINK:
            target = rules.link_target(member, path)
        if WH_PREFIX not in path or not is_whiteout(path):
            # A whiteout says something of lower layers alone: it may stand beneath what is a file
            # here (umoci writes one for each name of a directory that gave way to something else).
            tree.add(path, member.kind, target)
        skeleton.add(member.raw)
        bound(count, limits.entries, "members")
        bound(skeleton.size, limits.raw, "bytes between files")
        entry = _entry(member, path, target, _content(member, reader, stager))
        held += rules.weight(entry)
        bound(held, limits.held, "bytes of names and attributes")
        rules.check_memory(count, held, feed.count, limits)
        yield entry


def _content(member: Member, reader: TarReader, stager: Stager) -> str:
    if member.kind != stat.S_IFREG or not member.size:
        return ""
    if member.sparse is not None:
        return stager.put_stream(reader.pieces(member.payload), member.size, member.sparse)
    if member.payload <= SMALL:
        return stager.put(reader.payload(member.payload))
    return stager.put_stream(reader.pieces(member.payload), member.size)


def _entry(member: Member, path: bytes, target: bytes, name: str) -> Entry:
    return Entry(
        path,
        member.kind,
        member.mode,
        member.uid,
        member.gid,
        member.mtime,
        member.mtime_ns,
        member.size,
        target if member.kind in (LINK, stat.S_IFLNK) else b"",
        member.major,
        member.minor,
        member.xattrs,
        name,
        member.sparse or () if name else (),
        len(member.raw),
        member.payload,
    )


class _LayerTree:
    """What this layer has said so far, as far as a later member can contradict it."""

    def __init__(self) -> None:
        self._kinds: dict[bytes, int] = {}
        self._open: set[bytes] = {b""}
        self.links: list[tuple[bytes, bytes]] = []

    def add(self, path: bytes, kind: int, target: bytes) -> None:
        """One member more.

        Raises:
            Refused: it lies beneath a symlink or another file, or links to a directory.
        """
        above = path.rpartition(b"/")[0]
        if above not in self._open:
            self._check_above(above, path)
        if kind != stat.S_IFDIR and path in self._open:
            self._replace(path)
        if kind == LINK:
            to = self._kinds.get(target)
            if to is None:
                if target in self._open:
                    raise Refused(f"{_show(path)}: a hard link to a directory")
                self._check_above(target.rpartition(b"/")[0], path)
                self.links.append((path, target))
            elif to == stat.S_IFDIR:
                raise Refused(f"{_show(path)}: a hard link to a directory")
        self._kinds[path] = kind

    def _check_above(self, above: bytes, path: bytes) -> None:
        part = above
        while part not in self._open:
            kind = self._kinds.get(part)
            if kind is not None and kind != stat.S_IFDIR:
                what = "a symlink" if kind == stat.S_IFLNK else "what is no directory"
                raise Refused(f"{_show(path)}: a name that leads through {what}")
            self._open.add(part)
            part = part.rpartition(b"/")[0]

    def _replace(self, path: bytes) -> None:
        """A directory with all in it gives way to something else of the same name."""
        if not path:
            raise Refused("the root of the archive is not a directory")
        prefix = path + b"/"
        self._open = {p for p in self._open if p != path and not p.startswith(prefix)}
        self._kinds = {p: k for p, k in self._kinds.items() if not p.startswith(prefix)}
