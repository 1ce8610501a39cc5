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
_HEX = re.compile(r"[0-9a-f]{64}")
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
#: Of a whole name without its tag, as registries bound it (distribution-spec).
_LONGEST = 255
_REF_NAME = re.compile(r"[A-Za-z0-9]+(?:[-._:@/+]+[A-Za-z0-9]+)*")
#: What a name for an image is, for hints.
_GRAMMAR = "[REGISTRY/]NAME[:TAG], the name in lower case: letters, digits, and . _ - between them"


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
        raise StoreError(f"{text!r}: there is no path behind {transport}:")
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
    if not rest:
        raise StoreError(f"{text}: there is no registry and no name", hint)
    rest, at, digest = rest.partition("@")
    if at and not is_digest(digest):
        raise StoreError(f"{text}: {digest!r} is not a sha256 digest", hint)
    host, path = _split_host(rest)
    path, colon, tag = path.partition(":")
    if host in ("", "docker.io") and "/" not in path:
        path = f"library/{path}"
    host = host or "docker.io"
    if problem := _wrong(host, path, tag if colon else None):
        raise StoreError(f"{text}: {problem}", hint)
    if not tag and not digest:
        tag = "latest"
    return ImageRef("docker", f"{host}/{path}", tag, digest)


def _is_host(text: str) -> bool:
    """Whether this is ``HOST[:PORT]``."""
    port = text.rpartition(":")[2] if not text.endswith("]") and ":" in text else "443"
    return _HOST.fullmatch(text) is not None and len(port) < 6 and 0 < int(port) < 65536


def check_registry(text: str) -> str:
    """``HOST[:PORT]`` of a registry, as credentials are kept for it.

    Raises:
        StoreError: not one.
    """
    host = text.removeprefix("docker://").removeprefix("https://").rstrip("/")
    if not _is_host(host):
        raise StoreError(f"{text}: not a registry", "HOST[:PORT]")
    return host


def check_mirror(text: str) -> str:
    """``HOST[:PORT][/PREFIX]`` of a mirror.

    Raises:
        StoreError: not one.
    """
    host, slash, prefix = text.rstrip("/").partition("/")
    if not _is_host(host) or (slash and not _REPOSITORY.fullmatch(prefix)):
        raise StoreError(f"--mirror {text}: not a registry", "HOST[:PORT][/PREFIX]")
    return text.rstrip("/")


def format_ref(ref: ImageRef) -> str:
    """See ``ImageRef.__str__``."""
    if ref.transport == "docker":
        tag = f":{ref.tag}" if ref.tag else ""
        digest = f"@{ref.digest}" if ref.digest else ""
        return f"docker://{ref.place}{tag}{digest}"
    return f"{ref.transport}:{ref.place}" + (f":{ref.tag}" if ref.tag else "")


def _split_host(text: str) -> tuple[str, str]:
    """(registry, the rest); the first part is one if it has a dot or a port, or is localhost."""
    host, slash, path = text.partition("/")
    if slash and ("." in host or ":" in host or host == "localhost"):
        return host, path
    return "", text


def _wrong(host: str, path: str, tag: str | None) -> str:
    """What of a name breaks the grammar; empty: nothing."""
    if host and not _is_host(host):
        return f"{host!r} is not a registry"
    if not path:
        return "there is no name"
    if path != path.lower():
        return f"the name {path!r} has upper-case letters"
    if not _REPOSITORY.fullmatch(path):
        return f"{path!r} is not a name for an image"
    if not host and (path == "sha256" or _HEX.fullmatch(path)):
        return f"the name {path!r} would be taken for a digest"
    if tag is not None and not _TAG.fullmatch(tag):
        return f"{tag!r} is not a tag"
    if len(host) + 1 + len(path) > _LONGEST:
        return f"the name is longer than {_LONGEST} characters"
    return ""


def local_name(text: str) -> str:
    """A name as the store keeps it: with a tag, ``latest`` if none is given.

    Raises:
        StoreError: not a name by the grammar of the distribution-spec.
    """
    host, rest = _split_host(text)
    path, colon, tag = rest.partition(":")
    if problem := _wrong(host, path, tag if colon else None):
        raise StoreError(f"{text!r}: {problem}", _GRAMMAR)
    return text if colon else f"{text}:latest"


def check_ref_name(text: str) -> str:
    """A tag in an OCI layout (image-spec annotations.md, "org.opencontainers.image.ref.name").

    Raises:
        StoreError: not one.
    """
    if text and not _REF_NAME.fullmatch(text):
        raise StoreError(f"{text!r} is not a tag for an OCI layout", "letters, digits, and - . _ :")
    return text


def name_for(ref: ImageRef) -> str | None:
    """The name an image gets if none is given: what its source calls it."""
    if ref.transport == "docker":
        return f"{ref.place}:{ref.tag}" if ref.tag else None
    if ref.transport in ("rootfs", "dir"):
        base = ref.place.rstrip("/").rpartition("/")[2]
        for suffix in (".gz", ".zst", ".xz", ".bz2", ".tgz", ".tar"):
            base = base.removesuffix(suffix)
        clean = "-".join(re.findall(r"[a-z0-9]+(?:[._][a-z0-9]+)*", base.lower()))
        return f"{clean[:128] or 'rootfs'}:latest"
    return "host:latest" if ref.transport == "host" else None
