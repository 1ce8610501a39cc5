"""Mending what fsck found, from what is still whole: a kept blob, or the registry.

Caches are thrown away, orphans collected. A layer with damaged or missing contents is taken in
again: what is whole is found and shared, what is not is replaced. Nothing damaged is removed before
there is something whole to take its place: a file that is wrong in a byte is better than none.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from cowstore import digest as digests
from cowstore.codec import read_chunks
from cowstore.collect import collect, to_trash
from cowstore.errors import StoreError
from cowstore.fsck import Finding
from cowstore.ingest import BlobFeed, ingest
from cowstore.layers import move_blob, place_manifest, sync
from cowstore.manifest import Manifest, encode
from cowstore.objects import (
    Extents,
    Stager,
    data_extents,
    is_whole,
    read_extents,
    share_blocks,
)
from cowstore.rules import Limits
from cowstore.work import layer_lock

if TYPE_CHECKING:
    from cowstore.store import Store

Opener = Callable[[], Iterator[bytes]]


def repair(store: Store, findings: list[Finding], *, insecure: bool = False) -> dict[Finding, str]:
    """What was done about each finding that something could be done about."""
    done: dict[Finding, str] = {}
    layers: dict[str, str] = {}
    for finding in findings:
        if finding.code in ("view-damaged", "tree-damaged"):
            kind = finding.code.partition("-")[0] + "s"
            to_trash(store, store.layout.path(kind, finding.subject))
            done[finding] = "removed; it is made anew when it is needed"
        elif finding.code == "blob-damaged" or finding.code == "blob-missing":
            if said := _mend_blob(store, finding.subject, insecure):
                done[finding] = said
    broken = {f.subject for f in findings if f.code in ("manifest-damaged", "layer-damaged")}
    wrong = [f for f in findings if f.code.startswith("object-") or _is_object_link(f)]
    entries = _entries_of(store, {f.subject for f in wrong})
    for finding in wrong:
        if finding.subject in entries and _rewrite(store, finding.subject, entries):
            done[finding] = "replaced by a copy of its own"
    left = {f.subject for f in wrong if f not in done}
    for diff_id in sorted(broken | {diff_id for name in left for diff_id in entries[name][1]}):
        with contextlib.suppress(StoreError):
            layers[diff_id] = _mend_layer(store, diff_id, insecure)
    for finding in findings:
        if finding.subject in layers:
            done[finding] = layers[finding.subject]
        elif finding.subject in left and _is_right(store, finding.subject, entries):
            done[finding] = "replaced"
    if any(finding.code == "orphan" for finding in findings):
        collect(store)
        for finding in findings:
            path = _orphan_path(store, finding.subject)
            if finding.code == "orphan" and not os.path.lexists(path):
                done[finding] = "removed"
    return done


def _is_object_link(finding: Finding) -> bool:
    return finding.code == "wrong-link" and "content of" in finding.text


def _orphan_path(store: Store, subject: str) -> str:
    if subject.startswith("objects/"):
        return store.layout.object(subject.removeprefix("objects/"))
    return store.layout.path(subject)


#: By object: the map of its data, and the layers that have it.
_Uses = dict[str, tuple[Extents, set[str]]]


def _entries_of(store: Store, names: set[str]) -> _Uses:
    found: _Uses = {name: ((), set()) for name in names}
    for (diff_id,) in store.database.rows("SELECT diff_id FROM layers") if names else ():
        with (
            contextlib.suppress(StoreError),
            Manifest(store.layout.layer(diff_id)) as manifest,
        ):
            if names.isdisjoint(manifest.names()):
                continue
            for entry in manifest.entries():
                if entry.object in names:
                    found[entry.object][1].add(diff_id)
                    found[entry.object] = (entry.sparse, found[entry.object][1])
    return found


def _is_right(store: Store, name: str, uses: _Uses) -> bool:
    """Whether an object is a file of its own, and what its name says."""
    try:
        fd = os.open(store.layout.object(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        st = os.fstat(fd)
        return stat.S_ISREG(st.st_mode) and st.st_nlink == 1 and is_whole(fd, name, uses[name][0])
    finally:
        os.close(fd)


def _rewrite(store: Store, name: str, uses: _Uses) -> bool:
    """Give an object that is whole, but reached by another name too, a file of its own.

    What is there is not removed before something whole takes its place. Only what is no file at
    all goes at once: nothing could be put in its place.
    """
    path = store.layout.object(name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        fd = -1
    try:
        if fd >= 0 and stat.S_ISREG(os.fstat(fd).st_mode) and is_whole(fd, name, uses[name][0]):
            with store.session() as session:
                draft = session.place("object")
                _copy(fd, draft)
                os.rename(draft, path)
                sync(store.layout, durable=store.durable)
            return True
    finally:
        if fd >= 0:
            os.close(fd)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            to_trash(store, path)
    return False


def _copy(source: int, draft: str) -> None:
    """A file's content, its holes with it."""
    size = os.fstat(source).st_size
    target = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        if not share_blocks(source, target):
            os.ftruncate(target, size)
            for offset, length in data_extents(source, size):
                for data in read_extents(source, ((offset, length),)):
                    os.pwrite(target, data, offset)
                    offset += len(data)
    finally:
        os.close(target)


def _sources(store: Store, diff_id: str, insecure: bool) -> Iterator[tuple[str, str, Opener]]:
    """(words, digest, opener) of everything that may still hold a layer."""
    rows = store.database.rows(
        "SELECT digest, kept, source FROM blobs WHERE diff_id=? ORDER BY kept DESC", diff_id
    )
    for digest, kept, _ in rows:
        path = store.layout.blob(digest)
        if kept and os.path.exists(path):
            yield "taken in again from the kept blob", digest, partial(_file, path)
    for digest, _, source in rows:
        if source:
            opener = partial(_remote, source, digest, insecure)
            yield f"fetched again from {source}", digest, opener


def _file(path: str) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from read_chunks(fd)
    finally:
        os.close(fd)


def _remote(source: str, digest: str, insecure: bool) -> Iterator[bytes]:
    from cowstore.registry.client import Lost, Registry

    host, _, repository = source.removeprefix("docker://").partition("/")
    registry = Registry(host, insecure=insecure)
    try:
        yield from registry.blob(repository, digest)[1]
    except Lost as error:
        raise StoreError(str(error)) from None
    finally:
        registry.close()


def _mend_layer(store: Store, diff_id: str, insecure: bool) -> str:
    """Take a layer in again; how it was mended.

    Raises:
        StoreError: from nowhere.
    """
    for words, digest, opener in _sources(store, diff_id, insecure):
        with contextlib.suppress(StoreError):
            with store.session() as session, layer_lock(store.layout, diff_id):
                stager = Stager(store.layout, session)
                try:
                    feed = BlobFeed(opener(), digest=digest)
                    # Its size is known, and its digest: it may be as compressed as it likes.
                    limits = Limits(ratio=1 << 40, layer=_size_of(store, diff_id))
                    taken = ingest(stager, feed, limits, diff_id=diff_id)
                    renamed = stager.publish()
                finally:
                    stager.close()
                entries = [
                    e._replace(object=renamed.get(e.object, e.object)) for e in taken.entries
                ]
                data = encode(diff_id, taken.size, entries, taken.skeleton, taken.skeleton_size)
                place_manifest(store.layout, session, diff_id, data)
                sync(store.layout, durable=store.durable)
            return words
    raise StoreError(f"layer {diff_id} is nowhere else")


def _size_of(store: Store, diff_id: str) -> int:
    row = store.database.row("SELECT size FROM layers WHERE diff_id=?", diff_id)
    return int(row[0]) if row else Limits().layer


def _mend_blob(store: Store, digest: str, insecure: bool) -> str:
    """Fetch a blob again; failing that, do without it where the layer itself is whole."""
    row = store.database.row("SELECT source, diff_id FROM blobs WHERE digest=?", digest)
    source = row[0] if row and row[0] else ""
    if source and _fetch_blob(store, digest, source, insecure):
        return f"fetched again from {source}"
    if row and row[1] and _is_whole(store, row[1]):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(store.layout.blob(digest))
        with store.database.write() as db:
            db.execute("UPDATE blobs SET kept=0 WHERE digest=?", (digest,))
        return "removed: the layer is whole, but will be compressed anew when it is exported"
    return ""


def _is_whole(store: Store, diff_id: str) -> bool:
    from hashlib import sha256

    hashed = sha256()
    with contextlib.suppress(StoreError):
        for data in store.layers.archive(diff_id):
            hashed.update(data)
    return f"sha256:{hashed.hexdigest()}" == diff_id


def _fetch_blob(store: Store, digest: str, source: str, insecure: bool) -> bool:
    from cowstore.registry.client import Registry

    with contextlib.suppress(StoreError), store.session() as session:
        draft = session.place("blob")
        host, _, repository = source.removeprefix("docker://").partition("/")
        if _is_document(store, digest):
            with closing(Registry(host, insecure=insecure)) as registry:
                data, _ = registry.manifest(repository, digest)
            with open(draft, "wb") as file:
                file.write(data)
            if digests.of(data) != digest:
                return False
        else:
            with open(draft, "wb") as file:
                feed = BlobFeed(
                    _remote(source, digest, insecure), digest=digest, copy=file.fileno()
                )
                feed.finish()
        move_blob(store.layout, draft, digest)
        sync(store.layout, durable=store.durable)
        return True
    return False


def _is_document(store: Store, digest: str) -> bool:
    """Whether a registry gives this under ``manifests/`` and not under ``blobs/``."""
    row = store.database.row("SELECT media_type FROM blobs WHERE digest=?", digest)
    return row is not None and ("manifest" in row[0] or "index" in row[0])
