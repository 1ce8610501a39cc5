"""Layers in the store: brought in so that each is there wholly or not at all, and given back.

Order of a commit: contents into ``objects/``, the manifest into ``layers/``, the blob into
``blobs/``, one syncfs(2), then the row. Before the row nothing refers to any of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cowstore import manifest as manifest_format
from cowstore.assemble import Members, assemble
from cowstore.database import Database, add_blob, add_layer
from cowstore.errors import Damaged, Refused
from cowstore.ingest import BlobFeed, Ingested, ingest
from cowstore.layout import Layout, fsync_directory
from cowstore.locks import JOURNAL, Session
from cowstore.manifest import Entry, Facts, Manifest
from cowstore.objects import Stager, read_extents
from cowstore.rules import Limits
from cowstore.work import layer_lock
from unionfs.sys import calls

#: With ``blobs="auto"`` a compressed layer up to this size is always kept as it came.
_SMALL_BLOB = 8 << 20

Chunks = Callable[[], Iterator[bytes]]


def _nothing() -> Iterator[bytes]:
    return iter(())


@dataclass(frozen=True, slots=True)
class LayerSource:
    """Where a layer's bytes come from, and what is known of them beforehand.

    Attributes:
        open: starts the stream; called at most once.
        members: instead of a stream: what the layer is to be made of.
        digest, size: of the stream, None if not known.
        diff_id: of the archive in it, None if not known.
        origin: where the blob can be fetched again, for repairs; empty if nowhere.
        spool: a file of the store that holds the whole stream once it was read; empty: none.
    """

    open: Chunks = _nothing
    digest: str | None = None
    size: int | None = None
    media_type: str = ""
    diff_id: str | None = None
    origin: str = ""
    spool: str = ""
    members: Callable[[], Members] | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """How layers are taken in.

    ``blobs``: ``keep`` compressed layers as they came, ``drop`` them, or ``auto``: keep them unless
    they are large and most of their content is in the store already.
    """

    limits: Limits = field(default_factory=Limits)
    blobs: str = "auto"
    durable: bool = True


@dataclass(frozen=True, slots=True)
class Brought:
    """A layer that is in the store now.

    ``archive_size`` is of the archive, in bytes, ``newest`` the newest time in it, in seconds since
    1970. ``links`` as in ``Ingested``; empty for a layer that was there.
    """

    diff_id: str
    new: bool
    archive_size: int
    entries: int
    newest: int
    links: tuple[tuple[bytes, bytes], ...] = ()


class Layers:
    """Layers of one store."""

    def __init__(self, layout: Layout, database: Database, policy: Policy) -> None:
        self.layout = layout
        self.database = database
        self.policy = policy

    def bring(
        self, session: Session, source: LayerSource, progress: Callable[[int], None] | None = None
    ) -> Brought:
        """Bring a layer in unless it is here; leased to the session either way.

        Raises:
            Refused: see ``cowstore.ingest``.
            OSError: from below, ENOSPC among them; nothing is left.
        """
        if source.diff_id is None:
            return self._take(session, source, progress)
        with layer_lock(self.layout, source.diff_id):
            leased = self.database.lease_layer(session.name, source.diff_id)
            facts = self._facts(source.diff_id) if leased else None
            if facts is None:
                return self._take(session, source, progress, locked=True)
            self._note_blob(source)
            # Only a layer of unknown diff id needs its newest time, and that was read.
            return Brought(source.diff_id, False, facts.size, facts.entries, 0)

    def _facts(self, diff_id: str) -> Facts | None:
        """What the manifest of a layer that is here says; None: it is damaged."""
        try:
            with self.manifest(diff_id) as opened:
                return opened.facts if opened.verify() else None
        except Damaged:
            return None

    def _note_blob(self, source: LayerSource) -> None:
        if source.digest is None or source.digest == source.diff_id:
            return
        if not self.database.row("SELECT 1 FROM blobs WHERE digest=?", source.digest):
            with self.database.write() as db:
                # Nobody has read it: that it holds this layer is a claim of the manifest.
                add_blob(
                    db, source.digest, source.size or 0, source.media_type, kept=False,
                    source=source.origin or None,
                )  # fmt: skip

    def _take(
        self,
        session: Session,
        source: LayerSource,
        progress: Callable[[int], None] | None,
        *,
        locked: bool = False,
    ) -> Brought:
        stager = Stager(self.layout, session)
        if source.members is not None:
            try:
                made = assemble(stager, source.members(), self.policy.limits, progress)
                self._settle(session, stager, made, source, None, locked)
            finally:
                stager.close()
            return _brought(made)
        copy = source.spool or session.place(f"blob.{os.urandom(4).hex()}")
        fd = -1
        # Without a digest nothing will ever ask for the compressed form.
        wanted = self.policy.blobs != "drop" and source.digest is not None
        if wanted and not source.spool:
            fd = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        feed = BlobFeed(
            source.open(), digest=source.digest, size=source.size, copy=fd, progress=progress
        )
        try:
            try:
                taken = ingest(stager, feed, self.policy.limits, diff_id=source.diff_id)
            except Refused:
                _unlink(copy)  # what is wrong must not be gone on with
                raise
            blob = copy if wanted and self._keeps(taken, stager) else None
            self._settle(session, stager, taken, source, blob, locked)
            _unlink(copy)
        finally:
            feed.close()
            stager.close()
            if fd >= 0:
                os.close(fd)
                _unlink(copy)
        return _brought(taken)

    def _settle(
        self,
        session: Session,
        stager: Stager,
        taken: Ingested,
        source: LayerSource,
        blob: str | None,
        locked: bool,
    ) -> None:
        """Commit, unless another was quicker."""
        if locked:
            self._commit(session, stager, taken, source, blob)
            return
        with layer_lock(self.layout, taken.diff_id):
            leased = self.database.lease_layer(session.name, taken.diff_id)
            if not leased or self._facts(taken.diff_id) is None:
                self._commit(session, stager, taken, source, blob)

    def _keeps(self, taken: Ingested, stager: Stager) -> bool:
        if taken.compression not in ("gzip", "zstd"):
            return False  # an archive as such is put together again from its manifest
        if self.policy.blobs == "keep" or taken.blob_size <= _SMALL_BLOB:
            return True
        return stager.new_bytes > stager.shared_bytes

    def _commit(
        self,
        session: Session,
        stager: Stager,
        taken: Ingested,
        source: LayerSource,
        blob: str | None,
    ) -> None:
        renamed = stager.publish()
        if renamed:
            taken.entries = [
                entry._replace(object=renamed.get(entry.object, entry.object))
                for entry in taken.entries
            ]
        data = manifest_format.encode(
            taken.diff_id, taken.size, taken.entries, taken.skeleton, taken.skeleton_size
        )
        with open(session.place(JOURNAL), "a", encoding="ascii") as journal:
            journal.write(f"layer {taken.diff_id}\n")
            if blob is not None:
                journal.write(f"blob {taken.blob_digest}\n")
        place_manifest(self.layout, session, taken.diff_id, data)
        if blob is not None:
            move_blob(self.layout, blob, taken.blob_digest)
        sync(self.layout, durable=self.policy.durable)
        content = sum(entry.payload for entry in taken.entries)
        with self.database.write() as db:
            add_layer(db, taken.diff_id, taken.size, content, len(taken.entries))
            if source.digest is not None and taken.compression in ("gzip", "zstd"):
                add_blob(
                    db, taken.blob_digest, taken.blob_size, source.media_type,
                    kept=blob is not None, diff_id=taken.diff_id, compression=taken.compression,
                    source=source.origin or None,
                )  # fmt: skip
            db.execute(
                "INSERT OR IGNORE INTO leases VALUES (?, 'layer', ?)",
                (session.name, taken.diff_id),
            )

    # -- reading ---------------------------------------------------------------------

    def manifest(self, diff_id: str) -> Manifest:
        """The manifest of a layer that is in the store.

        Raises:
            Damaged: it is gone, cut short, or of another layer.
        """
        opened = Manifest(self.layout.layer(diff_id))
        if opened.facts.diff_id != diff_id:
            opened.close()
            raise Damaged(f"layer {diff_id} has another's manifest", "cowstore fsck --repair")
        return opened

    def archive(self, diff_id: str) -> Iterator[bytes]:
        """The layer's archive, to the bit as it came.

        Raises:
            Damaged: a content object is missing or shorter than it was.
        """
        with self.manifest(diff_id) as opened:
            yield from archive_of(self.layout, opened)


def _brought(taken: Ingested) -> Brought:
    newest = max((entry.mtime for entry in taken.entries), default=0)
    links = tuple(taken.links)
    return Brought(taken.diff_id, True, taken.size, len(taken.entries), newest, links)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def archive_of(layout: Layout, opened: Manifest) -> Iterator[bytes]:
    """An archive from its manifest and the objects."""
    skeleton = opened.skeleton()
    pending: list[bytes] = []
    size = 0
    for entry in opened.entries():
        raw = skeleton.read(entry.raw)
        pending.append(raw)
        size += len(raw)
        if entry.payload:
            for data in payload_of(layout, entry):
                pending.append(data)
                size += len(data)
                if size >= 1 << 20:
                    yield b"".join(pending)
                    pending, size = [], 0
    yield b"".join(pending)
    yield from skeleton.rest()


def payload_of(layout: Layout, entry: Entry) -> Iterator[bytes]:
    """The data of a file as its archive has it.

    Raises:
        Damaged: not all of it is there.
    """
    try:
        fd = os.open(layout.object(entry.object), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise Damaged(
            f"content object {entry.object} is missing", "cowstore fsck --repair"
        ) from None
    try:
        count = 0
        for data in read_extents(fd, entry.sparse or ((0, entry.size),)):
            count += len(data)
            yield data
        if count != entry.payload:
            raise Damaged(f"content object {entry.object} is too short", "cowstore fsck --repair")
    finally:
        os.close(fd)


def place_manifest(layout: Layout, session: Session, diff_id: str, data: bytes) -> None:
    """Give a layer its manifest; several layers may come in for one session at a time."""
    draft = session.place(f"manifest.{os.urandom(4).hex()}")
    with open(draft, "wb") as file:
        file.write(data)
    os.rename(draft, layout.layer(diff_id))


def move_blob(layout: Layout, draft: str, digest: str) -> None:
    """Give a whole blob its place."""
    path = layout.blob(digest)
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    os.utime(draft)  # one that began to come earlier is as young as the session that uses it
    os.rename(draft, path)


def write_blobs(
    layout: Layout, session: Session, blobs: dict[str, bytes], *, durable: bool
) -> None:
    """Keep small blobs (manifests, configurations), by digest; on disk when this returns."""
    with open(session.place(JOURNAL), "a", encoding="ascii") as journal:
        journal.write("".join(f"blob {digest}\n" for digest in blobs))
    for digest, data in blobs.items():
        if not _has_blob(layout, digest, data, durable=durable):
            draft = session.place("small")
            with open(draft, "wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            move_blob(layout, draft, digest)
    if durable:
        # A few files: syncfs(2) would wait for everybody's.
        for folder in {os.path.dirname(layout.blob(digest)) for digest in blobs}:
            fsync_directory(folder)
        fsync_directory(layout.path("blobs/sha256"))


def _has_blob(layout: Layout, digest: str, data: bytes, *, durable: bool) -> bool:
    """Whether a whole blob is there; marked then, so that a collection that began earlier waits."""
    path = layout.blob(digest)
    try:
        with open(path, "rb") as file:
            if file.read() != data:
                return False
            if durable:  # whoever wrote it may not have waited for the disk
                os.fsync(file.fileno())
    except FileNotFoundError:
        return False
    os.utime(path)
    return True


def sync(layout: Layout, *, durable: bool) -> None:
    """Everything written so far is on disk afterwards: syncfs(2)."""
    if durable:
        fd = os.open(layout.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            calls.syncfs(fd)
        finally:
            os.close(fd)
