"""Where images come from: OCI layouts, archives of them, docker's archives, plain trees.

Each source becomes a ``Found``: documents as bytes and layers as streams that are not
opened yet. Archives are read in place where they can be sought; nothing of them is
unpacked, and only members with the names we ask for are looked at.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

from cowstore import digest as digests
from cowstore import oci
from cowstore.codec import read_chunks
from cowstore.errors import NotFound, Refused, StoreError
from cowstore.layers import LayerSource
from cowstore.rules import Limits
from cowstore.tar import ByteSource, TarReader
from cowstore.types import ImageRef


@dataclass(slots=True)
class Found:
    """One image of a source.

    Attributes:
        manifest: its bytes; empty if the source has none (then one is made).
        config: its bytes; empty if one is to be made.
        layers: the lowest first.
        others: blobs that are no layers: of artifacts.
        index: the index it was chosen from, if any.
        whole: all images of the index come in.
        nested: further indexes on the way to it.
        names: what the source calls it.
        place: the source in words, for errors.
        created_by: for the history of a configuration that is made.
        platform: of a configuration that is made; empty: this machine's.
        origin: as of ``LayerSource``, for the documents.
    """

    manifest: bytes = b""
    media_type: str = ""
    config: bytes = b""
    layers: list[LayerSource] = field(default_factory=list)
    others: list[LayerSource] = field(default_factory=list)
    index: bytes = b""
    whole: bool = False
    nested: tuple[bytes, ...] = ()
    names: list[str] = field(default_factory=list)
    place: str = ""
    created_by: str = ""
    platform: str = ""
    origin: str = ""


class Place(Protocol):
    """Blobs of an OCI layout, wherever it is."""

    def read(self, name: str, limit: int) -> bytes:
        """A small file, whole."""

    def stream(self, name: str) -> Iterator[bytes]:
        """A large one."""


class DirectoryPlace:
    """An OCI layout in a directory. No symlink in it is followed out of it."""

    def __init__(self, path: str, stack: ExitStack) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from None
        stack.callback(os.close, self._fd)

    def _open(self, name: str) -> int:
        from unionfs.sys import calls

        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            fd = calls.open_beneath(self._fd, os.fsencode(name), flags)
        except OSError as error:
            raise Refused(f"{self.path}: {name}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Refused(f"{self.path}: {name} is not a regular file")
        return fd

    def read(self, name: str, limit: int) -> bytes:
        fd = self._open(name)
        try:
            return _bounded(read_chunks(fd), limit, name)
        finally:
            os.close(fd)

    def stream(self, name: str) -> Iterator[bytes]:
        fd = self._open(name)
        try:
            yield from read_chunks(fd)
        finally:
            os.close(fd)


#: Members of an archive of images: blobs, and names of them. Memory holds a record of each.
_MEMBERS = 1 << 17


class ArchivePlace:
    """Members of a tar archive by name; a compressed one is inflated to a file first."""

    def __init__(self, path: str, stack: ExitStack, limits: Limits) -> None:
        from cowstore.archives import open_seekable

        self.path = path
        self._fd = open_seekable(path, stack, limits)
        self.members: dict[str, tuple[int, int]] = {}
        self.links: dict[str, str] = {}
        try:
            self._index()
        except Refused as error:
            raise Refused(f"{path}: {error}", error.hint) from None

    def _index(self) -> None:
        offset = count = 0
        end = os.fstat(self._fd).st_size
        while offset < end:
            count += 1
            if count > _MEMBERS:
                raise Refused(f"more than {_MEMBERS} members: no such archive is in use")
            # Payloads are skipped by seeking: a fresh reader at each header.
            source = ByteSource(_from(self._fd, offset, 64 << 10))
            reader = TarReader(source)
            member = next(iter(reader), None)
            if member is None:
                return
            start = offset + len(member.raw)
            name = os.fsdecode(member.name).removeprefix("./").rstrip("/")
            if member.kind == stat.S_IFREG:
                self.members[name] = (start, member.payload)
            elif member.kind == stat.S_IFLNK:
                self.links[name] = os.fsdecode(member.target)
            elif member.kind == 1:
                self.links[name] = "/" + os.fsdecode(member.target).removeprefix("./")
            offset = start + -(-member.payload // 512) * 512

    def _find(self, name: str) -> tuple[int, int]:
        for _ in range(8):
            if name in self.members:
                return self.members[name]
            target = self.links.get(name)
            if target is None:
                break
            # docker's oldest archives link equal layers: inside the archive, never out of it.
            base = "" if target.startswith("/") else os.path.dirname(name)
            name = os.path.normpath(os.path.join("/", base, target.lstrip("/"))).lstrip("/")
        raise Refused(f"{self.path}: {name} is not in the archive")

    def has(self, name: str) -> bool:
        """Whether there is such a member."""
        return name in self.members or name in self.links

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self._find(name)[1]

    def read(self, name: str, limit: int) -> bytes:
        start, size = self._find(name)
        if size > limit:
            raise Refused(f"{self.path}: {name} is larger than any such file in use")
        return b"".join(_from(self._fd, start, 1 << 20, size))

    def stream(self, name: str) -> Iterator[bytes]:
        start, size = self._find(name)
        return _from(self._fd, start, 1 << 18, size)


def _from(fd: int, offset: int, step: int, size: int | None = None) -> Iterator[bytes]:
    """Chunks of a file from an offset."""
    while size is None or size > 0:
        data = os.pread(fd, step if size is None else min(step, size), offset)
        if not data:
            if size is not None:
                raise Refused("the archive is cut short")
            return
        offset += len(data)
        if size is not None:
            size -= len(data)
        yield data


def _bounded(chunks: Iterator[bytes], limit: int, name: str) -> bytes:
    parts, have = [], 0
    for chunk in chunks:
        have += len(chunk)
        if have > limit:
            raise Refused(f"{name} is larger than any such file in use")
        parts.append(chunk)
    return b"".join(parts)


# -- OCI layouts -------------------------------------------------------------------------


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{digests.hex_of(digest)}"


def _layer_opener(place: Place, digest: str) -> Callable[[], Iterator[bytes]]:
    return lambda: place.stream(_blob_name(digest))


def from_layout(
    place: Place, tag: str, platform: str | None, *, everything: bool = False
) -> list[Found]:
    """The image with a tag of an OCI layout; the only one if no tag is given.

    ``everything``: with all other images of its index behind it.

    Raises:
        NotFound: no such tag, or several images and no tag.
        Refused: not a layout, or one that contradicts itself.
    """
    try:
        layout = oci.loads(place.read("oci-layout", 4096), "oci-layout")
    except Refused as error:
        raise Refused(f"{error}: this is no OCI layout", error.hint) from None
    if layout.get("imageLayoutVersion") != "1.0.0":
        raise Refused(f"an OCI layout of version {layout.get('imageLayoutVersion')!r} is not known")
    entries = oci.parse_index(place.read("index.json", oci.MAX_JSON))
    if tag:
        chosen = [entry for entry in entries if entry.annotations.get(oci.REF_NAME) == tag]
        if not chosen and digests.is_digest(tag):
            chosen = [entry for entry in entries if entry.digest == tag]
    else:
        chosen = list(entries)
    if len(chosen) != 1:
        tags = sorted(
            {
                entry.annotations[oci.REF_NAME]
                for entry in entries
                if oci.REF_NAME in entry.annotations
            }
        )
        what = f"no image is called {tag!r} there" if tag else f"{len(chosen)} images are there"
        raise NotFound(what, f"give a tag: {', '.join(tags)}" if tags else "")
    entry = chosen[0]
    name = entry.annotations.get(oci.REF_NAME, "")

    def fetch(wanted: oci.Descriptor) -> tuple[bytes, str]:
        return _document(place, wanted), wanted.media_type

    found = choose_images(fetch, entry, platform, everything=everything)
    for item in found:
        document = oci.parse_manifest(item.manifest, item.media_type)
        item.config = _document(place, document.config, config=True)
        fill_layers(item, document, lambda digest: _layer_opener(place, digest), "")
    found[0].names = [name] if name else []
    return found


def _document(place: Place, entry: oci.Descriptor, *, config: bool = False) -> bytes:
    oci.check_size(entry.size, "a document", config=config)
    data = place.read(_blob_name(entry.digest), entry.size + 1)
    if len(data) != entry.size or digests.of(data) != entry.digest:
        raise Refused(f"blob {entry.digest[:19]}… is not what its digest and size say")
    return data


Fetch = Callable[[oci.Descriptor], tuple[bytes, str]]
#: Images of one index; the largest in use have some thirty, and as many attestations.
_MOST = 1024


def choose_images(
    fetch: Fetch, entry: oci.Descriptor, platform: str | None, *, everything: bool = False
) -> list[Found]:
    """The image that a descriptor leads to, through indexes if need be; no configuration yet.

    Args:
        fetch: gives a document and its media type.
        everything: with all other images of the index behind it.

    Raises:
        NotFound: none for the platform.
        Refused: an index in an index in an index …
    """
    index = b""
    top, media_type = fetch(entry)
    data = top
    for _ in range(4):
        if not _is_index(data, media_type):
            break
        index = top
        try:
            entry = oci.choose(oci.parse_index(data), platform or oci.host_platform())
        except NotFound:
            if not everything or platform:
                raise
            entries = oci.parse_index(data)
            if not entries:
                raise
            entry = entries[0]  # none for this machine: any is as good
        data, media_type = fetch(entry)
    chosen = described(data, media_type)
    chosen.index = index
    if not everything or not index:
        return [chosen]
    nested: dict[str, bytes] = {}
    found = {digests.of(chosen.manifest): chosen}
    _add_all(fetch, top, found, nested, 4)
    for item in found.values():
        item.index, item.whole, item.nested = index, True, tuple(nested.values())
    return list(found.values())


def _is_index(data: bytes, media_type: str) -> bool:
    document = oci.loads(data, "the manifest")
    return (document.get("mediaType") or media_type) in oci.INDEXES or "manifests" in document


def _add_all(
    fetch: Fetch, index: bytes, found: dict[str, Found], nested: dict[str, bytes], depth: int
) -> None:
    """Every image of an index, each fetched once."""
    for entry in oci.parse_index(index):
        if entry.digest in found or entry.digest in nested:
            continue
        if not depth or len(found) + len(nested) > _MOST:
            raise Refused("an index of more images, or more deeply nested, than any in use")
        data, media_type = fetch(entry)
        if _is_index(data, media_type):
            nested[entry.digest] = data
            _add_all(fetch, data, found, nested, depth - 1)
        else:
            found[entry.digest] = described(data, media_type)


def described(data: bytes, media_type: str) -> Found:
    """A manifest's image, without configuration and layers yet."""
    document = oci.parse_manifest(data, media_type)
    return Found(manifest=data, media_type=document.media_type)


def fill_layers(
    found: Found,
    document: oci.ManifestDoc,
    opener: Callable[[str], Callable[[], Iterator[bytes]]],
    origin: str,
) -> None:
    """Set the layers (or, for an artifact, the other blobs) of a manifest."""
    if not document.is_image:
        found.others = [
            LayerSource(opener(d.digest), d.digest, d.size, d.media_type, None, origin)
            for d in document.layers
        ]
        return
    wanted = oci.diff_ids(oci.loads(found.config, "the configuration"), len(document.layers))
    for layer, diff_id in zip(document.layers, wanted, strict=True):
        found.layers.append(
            LayerSource(
                opener(layer.digest), layer.digest, layer.size, layer.media_type, diff_id, origin
            )
        )


# -- docker's archives -------------------------------------------------------------------

_V1_ID = re.compile(r"[0-9a-f]{64}")


def from_docker_archive(place: ArchivePlace, tag: str) -> list[Found]:
    """All images of an archive of ``docker save``, or the one with a tag.

    Three shapes: with ``manifest.json`` (docker since 1.10, podman), the same over an OCI
    layout (docker since 25), and before 1.10 one directory a layer, linked by ``parent``.
    """
    if place.has("manifest.json"):
        return _with_manifest(place, tag)
    if place.has("oci-layout"):
        return from_layout(place, tag, None)
    if place.has("repositories"):
        return _before_manifests(place, tag)
    raise Refused(f"{place.path}: neither an archive of docker save nor an OCI archive")


def _with_manifest(place: ArchivePlace, tag: str) -> list[Found]:
    import json

    try:
        images = json.loads(place.read("manifest.json", oci.MAX_JSON))
    except ValueError:
        images = None
    if not isinstance(images, list) or not images:
        raise Refused("manifest.json lists no image")
    found = []
    for image in images:
        if not isinstance(image, dict) or not isinstance(image.get("Config"), str):
            raise Refused("manifest.json is malformed")
        layers, names = image.get("Layers") or [], image.get("RepoTags") or []
        if not all(isinstance(item, str) for item in (*layers, *names)):
            raise Refused("manifest.json is malformed")
        if tag and tag not in names and f"{tag}:latest" not in names:
            continue
        config = place.read(image["Config"], oci.MAX_JSON)
        diff_ids = oci.diff_ids(oci.loads(config, "the configuration"), len(layers))
        made = Found(config=config, names=list(names))
        for path, diff_id in zip(layers, diff_ids, strict=True):
            made.layers.append(_archived_layer(place, path, diff_id))
        found.append(made)
    if not found:
        raise NotFound(f"no image is called {tag!r} there")
    return found


def _archived_layer(place: ArchivePlace, path: str, diff_id: str | None) -> LayerSource:
    name = os.path.normpath(path).lstrip("/")
    return LayerSource(lambda: place.stream(name), None, place.size(name), "", diff_id)


def _before_manifests(place: ArchivePlace, tag: str) -> list[Found]:
    repositories = oci.loads(place.read("repositories", oci.MAX_JSON), "repositories")
    found = []
    for repository, tags in repositories.items():
        if not isinstance(tags, dict):
            raise Refused("repositories is malformed")
        for name, top in tags.items():
            full = f"{repository}:{name}"
            if tag and tag not in (full, repository):
                continue
            found.append(_v1_image(place, str(top), full))
    if not found:
        raise NotFound(f"no image is called {tag!r} there" if tag else "no image is there")
    return found


def _v1_image(place: ArchivePlace, top: str, name: str) -> Found:
    """An image of the oldest shape: every layer has a ``json`` that names its parent."""
    chain: list[LayerSource] = []
    history: list[dict[str, object]] = []
    config: dict[str, object] = {}
    current = top
    while current:
        if not _V1_ID.fullmatch(current) or len(chain) > 512:
            raise Refused(f"{current!r:.80} is not the id of a layer, or there are too many")
        document = oci.loads(place.read(f"{current}/json", oci.MAX_JSON), f"{current}/json")
        config = config or document
        chain.append(_archived_layer(place, f"{current}/layer.tar", None))
        command = document.get("container_config")
        made_by = command.get("Cmd") if isinstance(command, dict) else None
        entry: dict[str, object] = {"created": document.get("created", "1970-01-01T00:00:00Z")}
        if isinstance(made_by, list):
            entry["created_by"] = " ".join(map(str, made_by))
        history.append(entry)
        current = str(document.get("parent") or "")
    keep = ("created", "author", "architecture", "variant", "os", "config")
    kept = {key: config[key] for key in keep if config.get(key)}
    kept["history"] = history[::-1]
    return Found(config=oci.dumps(kept), layers=chain[::-1], names=[name])


def open_source(
    ref: ImageRef,
    stack: ExitStack,
    platform: str | None = None,
    *,
    everything: bool = False,
    limits: Limits | None = None,
    hidden: Sequence[str] = (),
) -> list[Found]:
    """What is at a place that is no registry; the image asked for first.

    ``hidden``: directories that are no part of any tree: the stores.

    Raises:
        StoreError: nothing is there, or it cannot be read.
    """
    if ref.transport == "oci":
        place = DirectoryPlace(ref.place, stack)
        return from_layout(place, ref.tag, platform, everything=everything)
    if ref.transport == "oci-archive":
        archive = ArchivePlace(ref.place, stack, limits or Limits())
        return from_layout(archive, ref.tag, platform, everything=everything)
    if ref.transport == "docker-archive":
        archive = ArchivePlace(ref.place, stack, limits or Limits())
        return from_docker_archive(archive, ref.tag)
    if ref.transport == "rootfs":
        from cowstore.archives import open_any

        fd = open_any(ref.place, stack)
        layer = LayerSource(lambda: read_chunks(fd))
        # Without the file's name: the same archive is the same image, whatever it is called.
        return [Found(layers=[layer], created_by="cowstore import rootfs")]
    from cowstore.treesource import tree_source

    return [tree_source(ref, stack, hidden)]
