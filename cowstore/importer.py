"""An image on its way into the store: documents, layers, checks that need all of them, one row.

Layers become visible one by one (each is whole); the image and its names in one transaction
at the end. A failure leaves layers that came in before it, unnamed and leased to nobody: the next
collection takes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cowstore import digest as digests
from cowstore import oci
from cowstore.database import add_blob, add_image, add_member, set_name
from cowstore.errors import NotFound, Refused
from cowstore.ingest import BlobFeed
from cowstore.layers import Brought, LayerSource, move_blob, sync, write_blobs
from cowstore.locks import JOURNAL, Session
from cowstore.sources import Found
from cowstore.types import Progress

if TYPE_CHECKING:
    from cowstore.store import Store


def import_found(
    store: Store,
    session: Session,
    found: Found,
    names: list[str],
    progress: Progress | None,
    *,
    parallel: int = 1,
) -> str:
    """Bring one image of a source in under some names; its id.

    Raises:
        Refused: it breaks a rule.
    """
    brought = _bring_layers(store, session, found, progress, parallel)
    with _told(f"{found.place}: "):
        _check_chain(store, brought)
    if not found.config and not any(layer.entries for layer in brought):
        raise Refused(f"{found.place}: no image in it: the archive is empty")
    manifest, config = _documents(found, brought)
    document = oci.parse_manifest(manifest, found.media_type)
    image = document.digest
    blobs = [image, document.config.digest]
    documents = {image: manifest, document.config.digest: config}
    for index in (found.index, *found.nested):
        if index:
            blobs.append(digests.of(index))
            documents[blobs[-1]] = index
    write_blobs(store.layout, session, documents, durable=store.durable)
    for other in found.others:
        blobs.append(_keep_other(store, session, other, progress))
    if found.others:
        sync(store.layout, durable=store.durable)
    blobs += [layer.digest for layer in document.layers if document.is_image]
    content = sum(
        store.database.rows("SELECT content FROM layers WHERE diff_id=?", layer.diff_id)[0][0]
        for layer in brought
    )
    index_digest = digests.of(found.index) if found.index else None
    with store.database.write() as db:
        origin = found.origin or None
        add_blob(db, image, len(manifest), document.media_type, kept=True, source=origin)
        add_blob(
            db, document.config.digest, len(config), document.config.media_type, kept=True,
            source=origin,
        )  # fmt: skip
        for index in (found.index, *found.nested):
            if index:
                add_blob(db, digests.of(index), len(index), oci.OCI_INDEX, kept=True, source=origin)
        for other in found.others:
            assert other.digest is not None
            add_blob(db, other.digest, other.size or 0, other.media_type, kept=True)
        add_image(
            db, image, document.config.digest, document.media_type,
            [layer.diff_id for layer in brought], blobs, content,
            artifact=not document.is_image,
        )  # fmt: skip
        if found.whole:
            add_member(db, digests.of(found.index), image)
        for name in names:
            set_name(db, name, image, index_digest)
        # A name given is a promise: what it stands for must have been whole in this transaction.
        db.execute("INSERT OR IGNORE INTO leases VALUES (?, 'image', ?)", (session.name, image))
    return image


def check_platform(found: Found, wanted: str) -> None:
    """An image that was not chosen from an index must be of the platform asked for.

    Raises:
        NotFound: it is of another.
    """
    found.platform = wanted
    if found.index or not found.layers or not found.config:
        return
    there = oci.platform_of(oci.loads(found.config, "the configuration"))
    if (
        there
        and not f"{there}/".startswith(f"{wanted}/")
        and not f"{wanted}/".startswith(f"{there}/")
    ):
        raise NotFound(f"{found.place}: the image there is for {there}, not {wanted}")


def _bring_layers(
    store: Store,
    session: Session,
    found: Found,
    progress: Progress | None,
    parallel: int,
) -> list[Brought]:
    layers = found.layers

    def one(numbered: tuple[int, LayerSource]) -> Brought:
        number, layer = numbered
        what = layer.digest or layer.diff_id or f"layer {number + 1}"
        tell: Callable[[int], None] | None = None
        if progress is not None:
            shown = progress

            def tell(done: int) -> None:
                shown(what, done, layer.size or 0)

        which = f"layer {number + 1} of {len(layers)}: " if len(layers) > 1 else ""
        with _told(f"{found.place}: {which}"):
            return store.layers.bring(session, layer, tell)

    if parallel < 2 or len(layers) < 2:
        return [one(item) for item in enumerate(layers)]
    with ThreadPoolExecutor(parallel, thread_name_prefix="cowstore-layer") as pool:
        # The first failure ends the import; layers not begun are not begun.
        futures = [pool.submit(one, item) for item in enumerate(layers)]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Whoever refuses a layer does not know where it came from."""
    try:
        yield
    except Refused as error:
        raise Refused(f"{where}{error}", error.hint) from None


def _check_chain(store: Store, brought: list[Brought]) -> None:
    """Links into lower layers must lead to something, which only the whole chain can tell."""
    if any(layer.links for layer in brought):
        store.merged([layer.diff_id for layer in brought])


def _documents(found: Found, brought: list[Brought]) -> tuple[bytes, bytes]:
    """(manifest, configuration), made where the source has none."""
    if found.manifest:
        return found.manifest, found.config
    diff_ids = [layer.diff_id for layer in brought]
    config = found.config
    if not config:
        # No time of ours: the same tree is the same image.
        newest = max((layer.newest for layer in brought), default=0)
        when = oci.time_text(newest)
        platform = found.platform or oci.host_platform()
        document = oci.new_config(diff_ids, when, platform, created_by=found.created_by)
        config = oci.dumps(document)
    else:
        document = oci.loads(config, "the configuration")
        if "rootfs" not in document:
            document["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
            config = oci.dumps(document)
    return oci.new_manifest(config, found_layers(brought)), config


def found_layers(brought: list[Brought]) -> list[oci.Descriptor]:
    """Descriptors of layers as plain archives, of which the store can give back every bit."""
    return [oci.Descriptor(oci.OCI_LAYER, layer.diff_id, layer.archive_size) for layer in brought]


def _keep_other(
    store: Store, session: Session, source: LayerSource, progress: Progress | None
) -> str:
    """Keep a blob of an artifact as it is."""
    assert source.digest is not None

    def tell(done: int) -> None:
        if progress is not None:
            progress(str(source.digest), done, source.size or 0)

    draft = session.place(f"other.{source.digest[7:19]}")
    with open(draft, "wb") as file:
        feed = BlobFeed(source.open(), digest=source.digest, size=source.size, copy=file.fileno(),
                        progress=tell)  # fmt: skip
        feed.finish()
    with open(session.place(JOURNAL), "a", encoding="ascii") as journal:
        journal.write(f"blob {source.digest}\n")
    move_blob(store.layout, draft, source.digest)
    return source.digest
