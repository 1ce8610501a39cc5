"""An image of a snapshot: the layers it started from, and its changes as new ones.

What a snapshot changed is its upper, and the bases it shares with clones; each becomes a
layer of its own with one history entry. An upper without a change becomes an entry only.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cowstore import oci
from cowstore.database import add_blob, add_image, set_name
from cowstore.errors import NotFound, StoreError
from cowstore.instructions import apply
from cowstore.layers import Brought, LayerSource, write_blobs
from cowstore.locks import Session, commit_lock
from cowstore.manifest import Entry
from cowstore.types import CommitOptions, Image, Snapshot
from cowstore.upperdir import UpperLayer
from unionfs.errors import printable

if TYPE_CHECKING:
    from cowstore.store import Store


def commit(store: Store, snapshot: Snapshot, name: str | None, options: CommitOptions) -> Image:
    """See ``Store.commit``."""
    from cowstore.reference import local_name

    target = local_name(name) if name is not None else None
    _check_time(options.created)
    for text in (
        options.author,
        options.message,
        options.created_by,
        options.cache_key,
        *options.changes,
    ):
        _check_text(text)
    parent = store.resolve(snapshot.image)
    manifest = oci.parse_manifest(store.blob(parent.id))
    config: dict[str, Any] = copy.deepcopy(parent.config)
    if not isinstance(config.get("config"), dict):
        config["config"] = {}
    apply(config["config"], options.changes)
    root = _root_of(store, parent)
    with store.session() as session, _reading(store, snapshot):
        new: list[Brought] = []
        newest = 0
        for path in _uppers(snapshot):
            upper = UpperLayer(path, root)
            brought = store.layers.bring(session, LayerSource(members=upper.members))
            newest = max(newest, upper.newest)
            if upper.count:
                new.append(brought)
        for diff_id in parent.layers:
            if not store.database.lease_layer(session.name, diff_id):
                store.holder_of_layer(diff_id)  # one that is only read has it, or it is gone
        _describe(config, new, newest, options)
        layers = [
            *manifest.layers,
            *(oci.Descriptor(oci.OCI_LAYER, b.diff_id, b.archive_size) for b in new),
        ]
        image = _record(store, session, parent, config, layers, new, target, options)
    return store.resolve(image)  # its view is made when it is first used


def _uppers(snapshot: Snapshot) -> list[str]:
    """What a snapshot changed, the lowest first: uppers that were frozen by clones, and its own.

    The image's own place is the last of the lowers.
    """
    return [*reversed(snapshot.lowers.places[:-1]), str(snapshot.upper)]


@contextlib.contextmanager
def _reading(store: Store, snapshot: Snapshot) -> Iterator[None]:
    """Nobody removes the snapshot meanwhile.

    Raises:
        NotFound: somebody has.
    """
    with contextlib.ExitStack() as stack:
        if snapshot.id and not store.layout.read_only:  # without an id it is none of the store's
            stack.enter_context(commit_lock(store.layout, snapshot.id))
        if not os.path.isdir(snapshot.upper):
            raise NotFound(f"no snapshot is called {snapshot.id}", "cowstore snapshot list")
        yield


def _root_of(store: Store, parent: Image) -> Entry:
    from cowstore.caches import view_path
    from cowstore.view import View

    view = View(view_path(store, parent.layers, parent.chain))
    try:
        return view.root_entry()
    finally:
        view.close()


def _check_text(text: str) -> None:
    """Raises ``StoreError`` for what a configuration, which is JSON, cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StoreError(f"{printable(text)}: no UTF-8") from None


def _check_time(text: str | None) -> None:
    if text is None:
        return
    try:
        datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise StoreError(f"{text!r}: not a time", "such as 2026-01-31T12:00:00Z") from None


def _now() -> int:
    """The time for what has none; ``SOURCE_DATE_EPOCH`` (reproducible-builds.org) if it is set.

    Raises:
        StoreError: that is not a number.
    """
    told = os.environ.get("SOURCE_DATE_EPOCH")
    if not told:
        return int(time.time())
    if not told.isdigit():
        raise StoreError(f"SOURCE_DATE_EPOCH: {told!r} is not a number of seconds")
    return int(told)


def _describe(
    config: dict[str, Any], new: list[Brought], newest: int, options: CommitOptions
) -> None:
    """Diff ids, time and history of the new image's configuration."""
    created = options.created
    if created is None:
        created = oci.time_text(newest or _now())
    rootfs = config.setdefault("rootfs", {"type": "layers", "diff_ids": []})
    rootfs["diff_ids"] = [*rootfs.get("diff_ids", []), *(b.diff_id for b in new)]
    config["created"] = created
    if options.author:
        config["author"] = options.author
    entry: dict[str, Any] = {"created": created}
    entry["created_by"] = options.created_by or "cowstore snapshot commit"
    if options.author:
        entry["author"] = options.author
    if options.message:
        entry["comment"] = options.message
    shared = {"created": created, "created_by": "cowstore snapshot clone"}
    history: list[dict[str, Any]] = [dict(shared) for _ in new[:-1]]
    history.append(entry if new else {**entry, "empty_layer": True})
    before = config.get("history")
    config["history"] = [*(before if isinstance(before, list) else []), *history]


def _record(
    store: Store,
    session: Session,
    parent: Image,
    config: dict[str, Any],
    layers: list[oci.Descriptor],
    new: list[Brought],
    target: str | None,
    options: CommitOptions,
) -> str:
    data = oci.dumps(config)
    manifest = oci.new_manifest(data, layers, dict(options.annotations))
    document = oci.parse_manifest(manifest)
    documents = {document.digest: manifest, document.config.digest: data}
    write_blobs(store.layout, session, documents, durable=store.durable)
    diff_ids = [*parent.layers, *(b.diff_id for b in new)]
    content = parent.size + sum(
        store.database.rows("SELECT content FROM layers WHERE diff_id=?", b.diff_id)[0][0]
        for b in new
    )
    blobs = [document.digest, document.config.digest, *(layer.digest for layer in layers)]
    with store.database.write() as db:
        add_blob(db, document.digest, len(manifest), document.media_type, kept=True)
        add_blob(db, document.config.digest, len(data), document.config.media_type, kept=True)
        add_image(
            db, document.digest, document.config.digest, document.media_type, diff_ids, blobs,
            content,
        )  # fmt: skip
        if target is not None:
            set_name(db, target, document.digest, None)
        if options.cache_key:
            db.execute(
                "INSERT OR REPLACE INTO cache VALUES (?, ?, ?)",
                (parent.id, options.cache_key, document.digest),
            )
        db.execute(
            "INSERT OR IGNORE INTO leases VALUES (?, 'image', ?)", (session.name, document.digest)
        )
    return document.digest


def staged_entries(store: Store, session: Session, snapshot: Snapshot) -> list[list[Entry]]:
    """What a commit would write, as entries of layers; their contents are staged only."""
    from cowstore.assemble import assemble
    from cowstore.objects import Stager
    from cowstore.rules import Limits

    stager = Stager(store.layout, session)
    try:
        with _reading(store, snapshot):
            return [
                assemble(stager, UpperLayer(path).members(), Limits()).entries
                for path in _uppers(snapshot)
            ]
    finally:
        stager.close()
