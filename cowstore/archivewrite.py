"""Writing archives of images for programs that know no OCI layout: docker's, and plain trees."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cowstore import digest as digests
from cowstore import oci
from cowstore.errors import StoreError
from cowstore.layers import payload_of
from cowstore.layout import Layout
from cowstore.manifest import LINK
from cowstore.merge import walk
from cowstore.outgoing import Outgoing, checked, compressed
from cowstore.reference import local_name
from cowstore.tarwrite import file_member, header, padding, small_member, trailer
from cowstore.types import Image, Progress

if TYPE_CHECKING:
    from cowstore.store import Store


def docker_archive(
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
    yield small_member(f"{digests.hex_of(image.config_digest)}.json", config)
    for diff_id in dict.fromkeys(image.layers):
        holder = store.holder_of_layer(diff_id)
        (size,) = holder.database.rows("SELECT size FROM layers WHERE diff_id=?", diff_id)[0]
        described = oci.Descriptor(oci.OCI_LAYER, diff_id, size)
        yield file_member(f"{digests.hex_of(diff_id)}.tar", size)
        opener = lambda holder=holder, diff_id=diff_id: holder.layers.archive(diff_id)  # noqa: E731
        yield from checked(Outgoing(described, opener), progress)
        yield padding(size)
    yield small_member("manifest.json", json.dumps(manifest).encode())
    yield trailer()


def rootfs_archive(store: Store, image: Image, path: str) -> Iterator[bytes]:
    """The merged tree, compressed as the name of the file says.

    Raises:
        StoreError: in a way that is not written.
    """
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


def _layout_with(store: Store, name: str) -> Layout:
    for holder in store.holders():
        if os.path.exists(holder.layout.object(name)):
            return holder.layout
    return store.layout
