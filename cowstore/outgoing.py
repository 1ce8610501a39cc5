"""What leaves the store: an image or an index as its documents and blobs, ready to be written.

What came in goes out to the bit: manifests and configurations as they are kept, layers from their
kept blob or put together from the manifest. Only where a compressed blob was not kept, or another
compression is asked for, a layer is compressed anew and the manifest tells its new digest.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import IO, TYPE_CHECKING

from cowstore import digest as digests
from cowstore import oci
from cowstore.codec import deflater, read_chunks
from cowstore.errors import Damaged, NotFound, StoreError
from cowstore.types import Image, Progress

if TYPE_CHECKING:
    from cowstore.store import Store

_SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One blob to be written: ``open`` may be called more than once."""

    descriptor: oci.Descriptor
    open: Callable[[], Iterator[bytes]]
    diff_id: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Package:
    """An image ready to go."""

    manifest: bytes
    media_type: str
    config: bytes
    config_type: str
    layers: tuple[Outgoing, ...]

    @property
    def digest(self) -> str:
        return digests.of(self.manifest)

    def top(self) -> oci.Descriptor:
        """Of the manifest."""
        return oci.Descriptor(self.media_type, self.digest, len(self.manifest))

    def documents(self) -> list[Outgoing]:
        """The configuration as a blob."""
        config = oci.Descriptor(self.config_type, digests.of(self.config), len(self.config))
        return [Outgoing(config, lambda: iter((self.config,)))]

    def blobs(self) -> list[Outgoing]:
        """All of it, the manifest last."""
        manifest = Outgoing(self.top(), lambda: iter((self.manifest,)))
        return [*self.layers, *self.documents(), manifest]


def package(store: Store, image: Image, stack: ExitStack, compression: str | None) -> Package:
    """Everything of an image, layers compressed as they were or as asked.

    Raises:
        Damaged: something of it is missing.
    """
    data = store.blob(image.id)
    document = oci.parse_manifest(data)
    config = store.blob(document.config.digest)
    if not document.is_image:
        layers = tuple(
            Outgoing(d, lambda d=d: _file(store, d.digest))  # type: ignore[misc]
            for d in document.layers
        )
        return Package(data, document.media_type, config, document.config.media_type, layers)
    out = [
        _layer(store, described, diff_id, stack, compression)
        for described, diff_id in zip(document.layers, image.layers, strict=True)
    ]
    if any(new.descriptor != old for new, old in zip(out, document.layers, strict=True)):
        raw = dict(document.raw)
        raw["layers"] = [
            {**old, **new.descriptor.json()} for old, new in zip(raw["layers"], out, strict=True)
        ]
        data = oci.dumps(raw)
    return Package(data, document.media_type, config, document.config.media_type, tuple(out))


def package_index(
    store: Store, name: str, stack: ExitStack, compression: str | None
) -> tuple[oci.Descriptor, list[Outgoing], list[Package]]:
    """(the index, its documents, itself the last, and its images) that a name stands for.

    Raises:
        StoreError: not all of it is here, or not as it came.
    """
    if compression is not None:
        raise StoreError("--compression: an index and its images leave as they came")
    documents: list[Outgoing] = []
    packed: dict[str, Package] = {}
    top = _pack_index(store, store.index_of(name), stack, documents, packed)
    return top, documents, list(packed.values())


def _pack_index(
    store: Store,
    digest: str,
    stack: ExitStack,
    documents: list[Outgoing],
    packed: dict[str, Package],
) -> oci.Descriptor:
    data = store.blob(digest)
    for entry in oci.parse_index(data):
        if entry.digest in packed:
            continue
        try:
            image = store.resolve(entry.digest)
        except NotFound:
            if entry.media_type in oci.INDEXES:
                _pack_index(store, entry.digest, stack, documents, packed)
                continue
            raise StoreError(
                f"the index's image for {oci.platform_name(entry)} is not here",
                "cowstore import --all-platforms brings all of them",
            ) from None
        one = package(store, image, stack, None)
        if one.digest != entry.digest:
            raise StoreError(
                f"a compressed layer for {oci.platform_name(entry)} was not kept: the index cannot"
                " be as it was",
                "import it again with --blobs keep",
            )
        packed[entry.digest] = one
    media_type = str(oci.loads(data, "the index").get("mediaType") or oci.OCI_INDEX)
    described = oci.Descriptor(media_type, digest, len(data))
    documents.append(Outgoing(described, lambda: iter((data,))))
    return described


def _file(store: Store, digest: str) -> Iterator[bytes]:
    for holder in store.holders():
        try:
            fd = os.open(holder.layout.blob(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            yield from read_chunks(fd, 1 << 20)
        finally:
            os.close(fd)
        return
    raise Damaged(f"blob {digest} is missing", "cowstore fsck --repair")


def _compression_of(media_type: str) -> str:
    if media_type.endswith(("+gzip", ".gzip")):
        return "gzip"
    return "zstd" if media_type.endswith("+zstd") else "none"


def _layer(
    store: Store,
    described: oci.Descriptor,
    diff_id: str,
    stack: ExitStack,
    compression: str | None,
) -> Outgoing:
    holder = store.holder_of_layer(diff_id)
    row = store.database.row("SELECT source FROM blobs WHERE digest=?", described.digest)
    origin = (row[0] or "") if row else ""
    now = _compression_of(described.media_type)
    if compression in (None, now):
        if described.digest == diff_id:
            opener = lambda: holder.layers.archive(diff_id)  # noqa: E731
            return Outgoing(described, opener, diff_id, origin)
        if any(os.path.exists(s.layout.blob(described.digest)) for s in store.holders()):
            return Outgoing(described, lambda: _file(store, described.digest), diff_id, origin)
    return _recompressed(holder, described, diff_id, stack, compression or now, origin)


def _recompressed(
    holder: Store,
    described: oci.Descriptor,
    diff_id: str,
    stack: ExitStack,
    compression: str,
    origin: str,
) -> Outgoing:
    base = oci.OCI_LAYER
    if described.media_type.startswith("application/vnd.docker."):
        base = "application/vnd.docker.image.rootfs.diff.tar"
    suffix = _SUFFIX[compression]
    media_type = base + (suffix.replace("+", ".") if "docker" in base else suffix)
    if compression == "none":
        size = holder.database.rows("SELECT size FROM layers WHERE diff_id=?", diff_id)[0][0]
        fresh = replace(described, media_type=media_type, digest=diff_id, size=size)
        return Outgoing(fresh, lambda: holder.layers.archive(diff_id), diff_id, origin)
    spool = stack.enter_context(_spool())
    hashed, size = sha256(), 0
    for data in compressed(holder.layers.archive(diff_id), compression):
        hashed.update(data)
        size += len(data)
        spool.write(data)
    spool.flush()
    fresh = replace(
        described, media_type=media_type, digest=f"sha256:{hashed.hexdigest()}", size=size
    )
    return Outgoing(fresh, lambda: _from_start(spool), diff_id, origin)


def _spool() -> IO[bytes]:
    return tempfile.TemporaryFile(dir=os.environ.get("TMPDIR") or "/var/tmp")


def _from_start(spool: IO[bytes]) -> Iterator[bytes]:
    offset = 0
    while data := os.pread(spool.fileno(), 1 << 20, offset):
        offset += len(data)
        yield data


def compressed(pieces: Iterator[bytes], kind: str) -> Iterator[bytes]:
    """A stream, compressed; ``none`` leaves it."""
    if kind == "none":
        yield from pieces
        return
    packer = deflater(kind)
    for piece in pieces:
        if data := packer.compress(piece):
            yield data
    yield packer.flush()


def checked(outgoing: Outgoing, progress: Progress | None) -> Iterator[bytes]:
    """A blob's bytes; what is not what its digest says does not leave the store unnoticed."""
    hashed, count = sha256(), 0
    described = outgoing.descriptor
    for data in outgoing.open():
        hashed.update(data)
        count += len(data)
        if progress is not None:
            progress(described.digest, count, described.size)
        yield data
    if f"sha256:{hashed.hexdigest()}" != described.digest or count != described.size:
        raise Damaged(
            f"blob {described.digest} is not what it was when it came in", "cowstore fsck --repair"
        )
