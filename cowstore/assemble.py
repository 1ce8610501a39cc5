"""A layer that is made here, of members that are known: commits and directory trees.

Its archive is hashed and kept as its parts, header by header, and never read: to write it in one
thread and parse it in another takes three times as long. What comes out is what ``ingest`` would
have made of ``tarwrite.archive`` of the same members.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from queue import Queue
from threading import Thread

from cowstore import rules
from cowstore.errors import Refused
from cowstore.ingest import Ingested, bound
from cowstore.manifest import Entry, Section
from cowstore.objects import SMALL, Stager
from cowstore.rules import Limits
from cowstore.tarwrite import header, padding, trailer

#: Entries in the archive's order, each with its data (without holes), to be used before the next.
Members = Iterator[tuple[Entry, Iterable[bytes]]]

_TOGETHER = 1 << 20


class _Digest:
    """sha256 of an archive, computed in a thread of its own once there is enough to do."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self.count = 0
        self._progress = progress
        self._hash = sha256()
        self._waiting: list[bytes] = []
        self._have = 0
        self._queue: Queue[bytes | None] = Queue(4)
        self._thread: Thread | None = None

    def add(self, data: bytes) -> None:
        """The next bytes of the archive."""
        self._waiting.append(data)
        self.count += len(data)
        self._have += len(data)
        if self._have >= _TOGETHER:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="cowstore-hash", daemon=True)
                self._thread.start()
            self._queue.put(b"".join(self._waiting))
            self._waiting, self._have = [], 0
            if self._progress is not None:
                self._progress(self.count)

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._hash.update(data)

    def finish(self) -> str:
        """The digest; the thread has ended."""
        self.stop()
        self._hash.update(b"".join(self._waiting))
        return "sha256:" + self._hash.hexdigest()

    def stop(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None


def assemble(
    stager: Stager,
    members: Members,
    limits: Limits,
    progress: Callable[[int], None] | None = None,
) -> Ingested:
    """Take a layer in, contents staged.

    Raises:
        Refused: a member breaks a rule of layers.
    """
    digest = _Digest(progress)
    skeleton = Section()
    entries: list[Entry] = []
    held = 0
    pad = b""
    try:
        for entry, data in members:
            if entry.path:
                rules.clean_path(entry.path, "a name")
            rules.check_member(entry, entry.path, limits)
            bound(len(entries), limits.entries, "members")
            held += rules.weight(entry)
            bound(held, limits.held, "bytes of names and attributes")
            raw = pad + header(entry)
            digest.add(raw)
            skeleton.add(raw)
            payload = 0
            if entry.kind == stat.S_IFREG:
                payload = sum(n for _, n in entry.sparse) if entry.sparse else entry.size
            entry = entry._replace(raw=len(raw), payload=payload)
            name = _content(entry, data, stager, digest)
            pad = padding(payload)
            entries.append(entry._replace(object=name, xattrs=tuple(sorted(entry.xattrs))))
        end = pad + trailer()
        digest.add(end)
        skeleton.add(end)
        found = digest.finish()
    finally:
        digest.stop()
    return Ingested(found, digest.count, entries, skeleton.finish(), skeleton.size)


def _content(entry: Entry, pieces: Iterable[bytes], stager: Stager, digest: _Digest) -> str:
    if entry.kind != stat.S_IFREG or not entry.size:
        return ""
    if entry.payload <= SMALL and not entry.sparse:
        data = b"".join(pieces)
        _check(entry, len(data))
        digest.add(data)
        return stager.put(data)

    def noted() -> Iterator[bytes]:
        count = 0
        for piece in pieces:
            digest.add(piece)
            count += len(piece)
            yield piece
        _check(entry, count)

    return stager.put_stream(noted(), entry.size, entry.sparse)


def _check(entry: Entry, count: int) -> None:
    if count != entry.payload:
        raise Refused(f"{entry.path!r}: {count} bytes of {entry.payload}")
