"""Mending what fsck found, from what is still whole: a kept blob, or the registry.

Caches are thrown away, orphans collected. A layer with damaged or missing contents is taken in
again: what is whole is found and shared, what is not is replaced.
"""

from __future__ import annotations

import contextlib
import os
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
from cowstore.objects import Stager
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
    for finding in wrong:
        with contextlib.suppress(FileNotFoundError):
            if finding.code != "object-missing":
                to_trash(store, store.layout.object(finding.subject))
    affected = broken | _layers_with(store, {f.subject for f in wrong})
    for diff_id in sorted(affected):
        with contextlib.suppress(StoreError):
            layers[diff_id] = _mend_layer(store, diff_id, insecure)
    for finding in findings:
        if finding.subject in layers:
            done[finding] = layers[finding.subject]
        elif finding in wrong and os.path.exists(store.layout.object(finding.subject)):
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


def _layers_with(store: Store, names: set[str]) -> set[str]:
    found: set[str] = set()
    if names:
        for (diff_id,) in store.database.rows("SELECT diff_id FROM layers"):
            with contextlib.suppress(StoreError):
                with Manifest(store.layout.layer(diff_id)) as manifest:
                    if names.intersection(manifest.names()):
                        found.add(diff_id)
    return found


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
                    taken = ingest(stager, feed, Limits(), diff_id=diff_id)
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
