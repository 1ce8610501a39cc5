"""Images on their way out: where to, and in which form."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from cowstore import oci
from cowstore.archivewrite import docker_archive, rootfs_archive
from cowstore.errors import StoreError
from cowstore.ocilayout import layout_archive, to_layout
from cowstore.outgoing import Outgoing, package, package_index
from cowstore.targets import write_target
from cowstore.types import Image, ImageRef, Progress

if TYPE_CHECKING:
    from cowstore.store import Store


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
        return store.push(image.id, ref, compression=compression, progress=progress)
    if compression is not None and ref.transport in ("rootfs", "docker-archive"):
        raise StoreError(
            f"--compression: layers have none in {ref.transport}:",
            "rootfs:FILE.tar.gz and .zst compress the whole" if ref.transport == "rootfs" else "",
        )
    if ref.transport == "rootfs":
        write_target(ref.place, rootfs_archive(store, image, ref.place))
        return ""
    with ExitStack() as stack:
        if ref.transport == "docker-archive":
            write_target(ref.place, docker_archive(store, image, ref.tag, progress))
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


def _deliver(
    top: oci.Descriptor, blobs: list[Outgoing], ref: ImageRef, progress: Progress | None
) -> None:
    """Write a manifest or an index, with all blobs of it, as an OCI layout or an archive of one."""
    if ref.transport == "oci":
        to_layout(top, blobs, ref.place, ref.tag, progress)
    else:
        write_target(ref.place, layout_archive(top, blobs, ref.tag, progress))
