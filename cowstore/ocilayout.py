"""Writing OCI layouts, as directories and as archives of one (image-spec image-layout.md)."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any, Final

from cowstore import digest as digests
from cowstore import oci
from cowstore.codec import read_chunks
from cowstore.errors import Refused, StoreError
from cowstore.layout import fsync_directory
from cowstore.manifest import Entry
from cowstore.outgoing import Outgoing, checked
from cowstore.reference import check_ref_name
from cowstore.targets import write_file
from cowstore.tarwrite import file_member, header, padding, small_member, trailer
from cowstore.types import Progress

_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'


def to_layout(
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
                write_file(target, checked(outgoing, progress))
        write_file(os.path.join(path, "oci-layout"), iter((_LAYOUT,)))
        fsync_directory(blobs)
        _add_to_index(top, path, tag)
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror}") from None


def layout_archive(
    top: oci.Descriptor, blobs: list[Outgoing], tag: str, progress: Progress | None
) -> Iterator[bytes]:
    """An archive of a layout that has this image, or index, alone."""
    check_ref_name(tag)
    yield small_member("oci-layout", _LAYOUT)
    index = {"schemaVersion": 2, "manifests": [_index_entry(top, tag)]}
    yield small_member("index.json", oci.dumps(index))
    yield header(Entry(b"blobs", stat.S_IFDIR, 0o755))
    yield header(Entry(b"blobs/sha256", stat.S_IFDIR, 0o755))
    seen = set()
    for outgoing in blobs:
        digest, size = outgoing.descriptor.digest, outgoing.descriptor.size
        if digest not in seen:
            seen.add(digest)
            yield file_member(f"blobs/sha256/{digests.hex_of(digest)}", size)
            yield from checked(outgoing, progress)
            yield padding(size)
    yield trailer()


def _index_entry(top: oci.Descriptor, tag: str) -> dict[str, Any]:
    return replace(top, annotations={oci.REF_NAME: tag} if tag else {}).json()


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
        write_file(index_path, iter((oci.dumps(index),)))
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
