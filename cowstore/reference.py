"""Names of images and of places: what people type, and how it is understood.

Grammar of repository names and tags: distribution-spec, "Pulling manifests"; the
transports' forms are those of containers-transports(5).
"""

from __future__ import annotations

import re
from typing import Final

from cowstore.digest import is_digest
from cowstore.errors import StoreError
from cowstore.types import ImageRef

TRANSPORTS: Final = ("oci", "oci-archive", "docker-archive", "docker", "rootfs", "dir", "host")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:\[\]-]*")


def parse_ref(text: str) -> ImageRef:
    """See ``ImageRef.parse``."""
    transport, colon, rest = text.partition(":")
    if not colon or transport not in TRANSPORTS:
        raise StoreError(
            f"{text}: no transport", f"one of {', '.join(t + ':' for t in TRANSPORTS)} in front"
        )
    if transport == "docker":
        if not rest.startswith("//"):
            raise StoreError(f"{text}: not understood", "docker://REGISTRY/NAME[:TAG|@DIGEST]")
        return _registry_ref(rest[2:], text)
    if transport == "host":
        return ImageRef("host", rest or "/")
    if not rest:
        raise StoreError(f"{text}: no path")
    if transport in ("rootfs", "dir"):
        return ImageRef(transport, rest)
    place, tag = _split_tag(rest)
    return ImageRef(transport, place, tag)


def _split_tag(rest: str) -> tuple[str, str]:
    """``PATH[:TAG]``; a tag may itself have colons (``oci-archive:f:name:1``), a path none."""
    place, _, tag = rest.partition(":")
    return place, tag


def _registry_ref(rest: str, text: str) -> ImageRef:
    hint = "docker://REGISTRY/NAME[:TAG|@DIGEST]"
    rest, at, digest = rest.partition("@")
    if at and not is_digest(digest):
        raise StoreError(f"{text}: {digest!r} is not a sha256 digest", hint)
    host, slash, path = rest.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, path = "docker.io", rest
    path, colon, tag = path.partition(":")
    if host == "docker.io" and "/" not in path:
        path = f"library/{path}"
    if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(path):
        raise StoreError(f"{text}: not a registry and a name", hint)
    if colon and not _TAG.fullmatch(tag):
        raise StoreError(f"{text}: {tag!r} is not a tag", hint)
    if not tag and not digest:
        tag = "latest"
    return ImageRef("docker", f"{host}/{path}", tag, digest)


def format_ref(ref: ImageRef) -> str:
    """See ``ImageRef.__str__``."""
    if ref.transport == "docker":
        tag = f":{ref.tag}" if ref.tag else ""
        digest = f"@{ref.digest}" if ref.digest else ""
        return f"docker://{ref.place}{tag}{digest}"
    return f"{ref.transport}:{ref.place}" + (f":{ref.tag}" if ref.tag else "")


def local_name(text: str) -> str:
    """A name as the store keeps it: with a tag, ``latest`` if none is given.

    Raises:
        StoreError: not a name.
    """
    last = text.rpartition("/")[2]
    name = text if ":" in last else f"{text}:latest"
    tag = name.rpartition(":")[2]
    if not _NAME.fullmatch(name) or not _TAG.fullmatch(tag) or "//" in name:
        raise StoreError(f"{text!r}: not a name for an image", "for example debian:12")
    return name


def name_for(ref: ImageRef) -> str | None:
    """The name an image gets if none is given: what its source calls it."""
    if ref.transport == "docker":
        return f"{ref.place}:{ref.tag}" if ref.tag else None
    if ref.transport in ("rootfs", "dir"):
        base = ref.place.rstrip("/").rpartition("/")[2]
        for suffix in (".gz", ".zst", ".xz", ".bz2", ".tgz", ".tar"):
            base = base.removesuffix(suffix)
        clean = re.sub(r"[^a-z0-9._-]+", "-", base.lower()).strip("-._")
        return f"{clean or 'rootfs'}:latest"
    return "host:latest" if ref.transport == "host" else None
