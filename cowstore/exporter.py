"""Images on their way out: OCI layouts, archives of them, docker's archives, plain trees.

What came in goes out to the bit: manifests and configurations as they are kept, layers from their
kept blob or put together from the manifest. Only where a compressed blob was not kept, or another
compression is asked for, a layer is compressed anew and the manifest tells its new digest.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import IO, TYPE_CHECKING, Any

from cowstore import digest as digests
from cowstore import oci
from cowstore.codec import deflater, read_chunks
from cowstore.errors import Damaged, NotFound, Refused, StoreError
from cowstore.layers import payload_of
from cowstore.layout import fsync_directory
from cowstore.manifest import LINK, Entry
from cowstore.merge import walk
from cowstore.reference import check_ref_name, local_name
from cowstore.tarwrite import header, padding, trailer
from cowstore.types import Image, ImageRef, Progress

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


# -- targets -----------------------------------------------------------------------------


def export(
    store: Store,
    image: Image,
    ref: ImageRef,
    *,
    compression: str | None,
    progress: Progress | None,
) -> str:
    """See ``Store.export_image``."""
    if ref.transport == "docker":
        return store.push(image.id, ref, progress=progress)
    if compression is not None and ref.transport in ("rootfs", "docker-archive"):
        raise StoreError(
            f"--compression: layers have none in {ref.transport}:",
            "rootfs:FILE.tar.gz and .zst compress the whole" if ref.transport == "rootfs" else "",
        )
    if ref.transport == "rootfs":
        _write_target(ref.place, _rootfs(store, image, ref.place))
        return ""
    with ExitStack() as stack:
        if ref.transport == "docker-archive":
            _write_target(ref.place, _docker_archive(store, image, ref.tag, progress))
            return image.id
        if ref.transport not in ("oci", "oci-archive"):
            raise StoreError(
                f"{ref.transport}: nothing can be exported to that",
                "oci, oci-archive, docker-archive, rootfs, docker",
            )
        packed = package(store, image, stack, compression)
        _deliver(packed.top(), packed.blobs(), ref, progress)
        return packed.digest


def export_index(
    store: Store,
    name: str,
    ref: ImageRef,
    *,
    compression: str | None,
    progress: Progress | None,
) -> str:
    """Write the index that a name stands for with all its images, to the bit; its digest.

    Raises:
        StoreError: not all of it is here, or not as it came.
    """
    if ref.transport == "docker":
        return store.push(name, ref, compression=compression, all_platforms=True, progress=progress)
    if ref.transport not in ("oci", "oci-archive"):
        raise StoreError(f"{ref.transport}: no place for an index", "oci, oci-archive, docker")
    with ExitStack() as stack:
        top, documents, packed = package_index(store, name, stack, compression)
        blobs = [blob for one in packed for blob in one.blobs()]
        _deliver(top, [*blobs, *documents], ref, progress)
    return top.digest


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


def _write_target(path: str, pieces: Iterator[bytes]) -> None:
    """Write where somebody wants it: ``-`` is standard output; a pipe or device is written to.

    A symlink stays one: what it leads to is replaced.
    """
    if path == "-":
        if sys.stdout.isatty():
            raise StoreError("an archive is not for a terminal", "redirect it, or name a file")
        for data in pieces:
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    real = os.path.realpath(path)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        mode = stat.S_IFREG  # nothing there yet, or nothing to be had: told when it is written
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        _write_file(real, pieces)
        return
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb") as file:
            for data in pieces:
                file.write(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None


def _write_file(path: str, pieces: Iterator[bytes]) -> None:
    """Write a file wholly or not at all."""
    _check_parent(path)
    draft = f"{path}.{os.urandom(4).hex()}.part"
    try:
        with open(draft, "wb") as file:
            for data in pieces:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(draft, path)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _check_parent(path: str) -> None:
    """Raises ``StoreError`` if the directory that is to have ``path`` is not there."""
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise StoreError(f"{parent}: no such directory", "make it first")
    if os.path.isdir(path):
        raise StoreError(f"{path}: a directory", "name a file in it")


def _checked(outgoing: Outgoing, progress: Progress | None) -> Iterator[bytes]:
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


def _deliver(
    top: oci.Descriptor, blobs: list[Outgoing], ref: ImageRef, progress: Progress | None
) -> None:
    """Write a manifest or an index, with all blobs of it, as an OCI layout or an archive of one."""
    if ref.transport == "oci":
        _to_layout(top, blobs, ref.place, ref.tag, progress)
    else:
        _write_target(ref.place, _oci_archive(top, blobs, ref.tag, progress))


def _index_entry(top: oci.Descriptor, tag: str) -> dict[str, Any]:
    return replace(top, annotations={oci.REF_NAME: tag} if tag else {}).json()


def _to_layout(
    top: oci.Descriptor,
    outgoing_blobs: list[Outgoing],
    path: str,
    tag: str,
    progress: Progress | None,
) -> None:
    """Add an image to an OCI layout, which is made if it is not there. The index goes last."""
    blobs = os.path.join(path, "blobs", "sha256")
    check_ref_name(tag)
    _check_layout(path)
    try:
        os.makedirs(blobs, exist_ok=True)
        for outgoing in outgoing_blobs:
            target = os.path.join(blobs, digests.hex_of(outgoing.descriptor.digest))
            if not _is_whole(target, outgoing.descriptor):
                _write_file(target, _checked(outgoing, progress))
        _write_file(os.path.join(path, "oci-layout"), iter((_LAYOUT,)))
        fsync_directory(blobs)
        _add_to_index(top, path, tag)
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror}") from None


def _is_whole(path: str, described: oci.Descriptor) -> bool:
    """Whether a blob of that digest is there; what another program was cut off at is none."""
    hashed = sha256()
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != described.size:
                return False
            for data in read_chunks(file.fileno()):
                hashed.update(data)
    except OSError:
        return False  # not there, or nothing to be read: told when it is written
    return f"sha256:{hashed.hexdigest()}" == described.digest


def _add_to_index(top: oci.Descriptor, path: str, tag: str) -> None:
    """Give an OCI layout's index one entry more, or another for the same tag."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # another export may be adding to it
        index_path = os.path.join(path, "index.json")
        entries: list[Any] = []
        if os.path.exists(index_path):
            with open(index_path, "rb") as file:
                found = oci.loads(file.read(oci.MAX_JSON), index_path).get("manifests")
            if not isinstance(found, list):
                raise Refused(f"{index_path} has no list of manifests")
            entries = [e for e in found if not _same_place(e, top.digest, tag)]
        entries.append(_index_entry(top, tag))
        index = {"schemaVersion": 2, "mediaType": oci.OCI_INDEX, "manifests": entries}
        _write_file(index_path, iter((oci.dumps(index),)))
        os.fsync(fd)
    finally:
        os.close(fd)


def _check_layout(path: str) -> None:
    """Raises ``StoreError`` if no OCI layout is at ``path`` and none can be made there."""
    parent = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(parent):
        raise StoreError(f"{parent}: no such directory", "make it first")
    if not os.path.lexists(path) or os.path.exists(os.path.join(path, "oci-layout")):
        return
    if not os.path.isdir(path):
        raise StoreError(f"{path}: not a directory", "oci-archive:FILE writes a file")
    if os.listdir(path):
        raise StoreError(f"{path}: not empty, and not an OCI layout", "name a new directory")


def _same_place(entry: Any, digest: str, tag: str) -> bool:
    if not isinstance(entry, dict):
        return True
    name = (entry.get("annotations") or {}).get(oci.REF_NAME)
    return name == tag if tag else entry.get("digest") == digest and name is None


_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


def _file_member(name: str, size: int) -> bytes:
    return header(Entry(os.fsencode(name), stat.S_IFREG, 0o644, size=size))


def _small(name: str, data: bytes) -> bytes:
    return _file_member(name, len(data)) + data + padding(len(data))


def _oci_archive(
    top: oci.Descriptor, blobs: list[Outgoing], tag: str, progress: Progress | None
) -> Iterator[bytes]:
    check_ref_name(tag)
    yield _small("oci-layout", _LAYOUT)
    index = {"schemaVersion": 2, "manifests": [_index_entry(top, tag)]}
    yield _small("index.json", oci.dumps(index))
    yield header(Entry(b"blobs", stat.S_IFDIR, 0o755))
    yield header(Entry(b"blobs/sha256", stat.S_IFDIR, 0o755))
    seen = set()
    for outgoing in blobs:
        digest, size = outgoing.descriptor.digest, outgoing.descriptor.size
        if digest not in seen:
            seen.add(digest)
            yield _file_member(f"blobs/sha256/{digests.hex_of(digest)}", size)
            yield from _checked(outgoing, progress)
            yield padding(size)
    yield trailer()


def _docker_archive(
    store: Store, image: Image, tag: str, progress: Progress | None
) -> Iterator[bytes]:
    """As ``docker save`` writes it since 1.10: manifest.json, the configuration, plain layers."""
    if not image.config:
        raise StoreError("an artifact has no place in a docker archive", "export it to oci:")
    config = store.blob(image.config_digest)
    names = [local_name(tag)] if tag else image.names
    layers = [f"{digests.hex_of(diff_id)}.tar" for diff_id in image.layers]
    manifest = [
        {
            "Config": f"{digests.hex_of(image.config_digest)}.json",
            "RepoTags": list(names),
            "Layers": layers,
        }
    ]
    yield _small(f"{digests.hex_of(image.config_digest)}.json", config)
    for diff_id in dict.fromkeys(image.layers):
        holder = store.holder_of_layer(diff_id)
        (size,) = holder.database.rows("SELECT size FROM layers WHERE diff_id=?", diff_id)[0]
        described = oci.Descriptor(oci.OCI_LAYER, diff_id, size)
        yield _file_member(f"{digests.hex_of(diff_id)}.tar", size)
        opener = lambda holder=holder, diff_id=diff_id: holder.layers.archive(diff_id)  # noqa: E731
        yield from _checked(Outgoing(described, opener), progress)
        yield padding(size)
    yield _small("manifest.json", json.dumps(manifest).encode())
    yield trailer()


def _rootfs(store: Store, image: Image, path: str) -> Iterator[bytes]:
    kind = "gzip" if path.endswith("gz") else "zstd" if path.endswith("zst") else "none"
    if path.endswith((".xz", ".txz", ".bz2", ".tbz2", ".lz", ".lzma", ".lz4", ".Z")):
        raise StoreError(f"{path}: not a compression that is written", "end it in .gz or .zst")
    return compressed(_merged_archive(store, image), kind)


def _merged_archive(store: Store, image: Image) -> Iterator[bytes]:
    """The merged tree as one archive; further names of a file are hard links."""
    first: dict[int, bytes] = {}
    for path, node in walk(store.merged(image.layers)):
        entry = node.entry._replace(path=path)
        if node.nlink > 1 and node.children is None:
            if id(node) in first:
                yield header(entry._replace(kind=LINK, target=first[id(node)], xattrs=()))
                continue
            first[id(node)] = path
        yield header(entry)
        if entry.payload:
            yield from payload_of(_layout_with(store, entry.object), entry)
            yield padding(entry.payload)
    yield trailer()


def _layout_with(store: Store, name: str) -> Any:
    for holder in store.holders():
        if os.path.exists(holder.layout.object(name)):
            return holder.layout
    return store.layout
