"""Pull and push: which blobs move, in what order, and what happens if they stop half way.

A blob on its way in is written to ``partial/`` as it comes; after an interruption, of this run or
an earlier one, what is there is read again (and hashed with the rest) and the registry is asked
for what is missing. A layer that the store has is not asked for at all.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from cowstore import digest as digests
from cowstore import oci
from cowstore.endings import RESUME
from cowstore.errors import Refused, StoreError
from cowstore.layers import LayerSource
from cowstore.layout import Layout
from cowstore.locks import Lock
from cowstore.outgoing import Outgoing, package, package_index
from cowstore.reference import local_name, name_for
from cowstore.registry.client import Answered, Lost, Registry, again
from cowstore.registry.upload import upload
from cowstore.sources import Found, choose_images, fill_layers
from cowstore.types import Image, ImageRef, Progress

if TYPE_CHECKING:
    from cowstore.store import Store


def _split(place: str) -> tuple[str, str]:
    host, _, repository = place.partition("/")
    return host, repository


def pull(
    store: Store,
    ref: ImageRef,
    name: str | None = None,
    *,
    platform: str | None = None,
    all_platforms: bool = False,
    progress: Progress | None = None,
    insecure: bool = False,
    authfile: str | None = None,
    mirrors: tuple[str, ...] = (),
    jobs: int = 4,
) -> Image:
    """Bring an image in from a registry.

    Args:
        ref: of the transport ``docker``.
        platform, all_platforms: as in ``Store.import_image``.
        insecure: allow plain HTTP and unknown certificates.
        authfile: where credentials are; None: where docker and podman keep them.
        mirrors: ``HOST[/PREFIX]`` to be asked before the registry itself.
        jobs: layers at a time.

    Raises:
        StoreError: not to be had; what came so far is kept for the next try.
    """
    from cowstore.importer import check_platform, import_found

    host, repository = _split(ref.place)
    places = [_split(f"{mirror.rstrip('/')}/{repository}") for mirror in mirrors]
    places.append((host, repository))
    with store.session() as session, ExitStack() as stack:
        with open(session.place(RESUME), "wb"):
            pass
        registry, where, found = _first(places, ref, platform, all_platforms, insecure, authfile)
        stack.callback(registry.close)

        def opener(digest: str) -> Callable[[], Iterator[bytes]]:
            return lambda: resumed(store.layout, registry, where, digest)

        names = [local_name(name)] if name else [n for n in (name_for(ref),) if n]
        image = ""
        for item in found:
            document = oci.parse_manifest(item.manifest, item.media_type)
            item.config = _small_blob(registry, where, document.config)
            item.place = f"docker://{registry.host}/{where}"
            if platform is not None:
                check_platform(item, platform)
            origin = item.origin = f"docker://{host}/{repository}"
            fill_layers(item, document, opener, origin)
            item.layers = [_spooled(store.layout, layer) for layer in item.layers]
            called = [] if image else names
            brought = import_found(store, session, item, called, progress, parallel=jobs)
            image = image or brought
    with contextlib.suppress(StoreError), store.database.write() as db:
        db.execute("DELETE FROM leases WHERE session=?", (RESUME,))
    return store.made_ready(image)


def _spooled(layout: Layout, layer: LayerSource) -> LayerSource:
    from dataclasses import replace

    assert layer.digest is not None
    return replace(layer, spool=layout.partial(layer.digest))


def _first(
    places: list[tuple[str, str]],
    ref: ImageRef,
    platform: str | None,
    everything: bool,
    insecure: bool,
    authfile: str | None,
) -> tuple[Registry, str, list[Found]]:
    """The first place that has the image: its registry, repository, and the documents."""
    for number, (host, repository) in enumerate(places):
        registry = Registry(host, insecure=insecure, authfile=authfile)
        try:

            def fetch(wanted: oci.Descriptor, at: Registry = registry, of: str = repository) -> Any:
                return at.manifest(of, wanted.digest)

            top = oci.Descriptor("", ref.digest or ref.tag, 0)
            return registry, repository, choose_images(fetch, top, platform, everything=everything)
        except StoreError:
            registry.close()
            if number == len(places) - 1:
                raise
    raise AssertionError


def _small_blob(registry: Registry, repository: str, wanted: oci.Descriptor) -> bytes:
    """A configuration, checked."""
    oci.check_size(wanted.size, "the configuration", config=True)

    def fetch() -> bytes:
        _, pieces = registry.blob(repository, wanted.digest)
        data = b""
        for piece in pieces:
            data += piece
            if len(data) > wanted.size:
                break
        return data

    data: bytes = again(fetch)
    if len(data) != wanted.size or digests.of(data) != wanted.digest:
        raise Refused("the configuration is not what its digest and size say")
    return data


def resumed(layout: Layout, registry: Registry, repository: str, digest: str) -> Iterator[bytes]:
    """A blob: first what an earlier try left, then the rest from the registry.

    Raises:
        StoreError: the connection broke too often; the beginning is kept.
    """
    path = layout.partial(digest)
    lock = Lock.acquire(layout.path("locks", f"partial-{os.path.basename(path)}"))
    assert lock is not None
    with lock, open(path, "a+b") as file:
        file.seek(0)
        done = 0
        while piece := file.read(1 << 18):
            done += len(piece)
            yield piece
        tries = 0
        while True:
            before = done
            try:
                start, pieces = registry.blob(repository, digest, done)
                for piece in pieces:
                    if start < done:  # no ranges here: what we have comes again
                        skip = min(done - start, len(piece))
                        start += skip
                        piece = piece[skip:]
                        if not piece:
                            continue
                    file.write(piece)
                    start += len(piece)
                    done += len(piece)
                    yield piece
                return
            except Lost as error:
                file.flush()
                tries = 0 if done > before else tries + 1
                if tries >= 4:
                    raise StoreError(str(error), "pull again: it goes on from here") from None
            except Answered as error:
                if done and error.status == 416:
                    return  # all of it is here; digest and size are checked by the reader
                raise


# -- push --------------------------------------------------------------------------------


def push(
    store: Store,
    name: str,
    ref: ImageRef,
    *,
    compression: str | None = None,
    all_platforms: bool = False,
    progress: Progress | None = None,
    insecure: bool = False,
    authfile: str | None = None,
    jobs: int = 4,
) -> str:
    """Send an image to a registry; the digest of its manifest there.

    ``all_platforms``: send the index that the name stands for, with all its images. Blobs that are
    there are not sent; one that another repository of the same registry has (as far as we know from
    where it came) is mounted from it.
    """
    if ref.transport != "docker" or ref.digest:
        raise StoreError(f"{ref}: not a place to push to", "docker://REGISTRY/NAME[:TAG]")
    host, repository = _split(ref.place)
    registry = Registry(host, insecure=insecure, authfile=authfile)
    with ExitStack() as stack:
        stack.callback(registry.close)
        if all_platforms:
            top, documents, packed = package_index(store, name, stack, compression)
        else:
            packed = [package(store, store.resolve(name), stack, compression)]
            top, documents = packed[0].top(), []
        unique = {out.descriptor.digest: out for one in packed for out in one.layers}

        def one(out: Outgoing) -> None:
            _push_blob(registry, repository, out, progress)

        with ThreadPoolExecutor(max(1, jobs), thread_name_prefix="cowstore-push") as pool:
            futures = [pool.submit(one, out) for out in unique.values()]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
        for out in (out for one in packed for out in one.documents()):
            _push_blob(registry, repository, out, None)
        # What an index lists goes by its digest, before it; only the last has the tag.
        manifests = [(one.top(), one.manifest) for one in packed]
        manifests += [(out.descriptor, b"".join(out.open())) for out in documents]
        for described, data in manifests:
            reference = ref.tag or "latest" if described == top else described.digest
            _put_manifest(registry, repository, reference, described.media_type, data)
    return top.digest


def _put_manifest(
    registry: Registry, repository: str, reference: str, media_type: str, data: bytes
) -> None:
    path = f"/v2/{repository}/manifests/{reference}"
    again(
        lambda: registry.request(
            "PUT", path, repository, actions="pull,push", headers={"Content-Type": media_type},
            body=data, ok=(201,),
        ).drain_conn()
    )  # fmt: skip


def _push_blob(
    registry: Registry, repository: str, out: Outgoing, progress: Progress | None
) -> None:
    digest = out.descriptor.digest
    if registry.has_blob(repository, digest):
        if progress is not None:
            progress(digest, out.descriptor.size, out.descriptor.size)
        return
    source = ""
    if out.origin.startswith(f"docker://{registry.host}/"):
        source = out.origin.removeprefix(f"docker://{registry.host}/")
        if source == repository:
            source = ""
    upload(registry, repository, out, source, progress)
