"""Manifests, indexes and configurations: what we read of them and what we write.

Source: image-spec manifest.md, image-index.md, config.md; Docker's "Image Manifest V2,
Schema 2". Their bytes are kept as they came; here they are only understood.
"""

from __future__ import annotations

import json
import platform as host
from dataclasses import dataclass, field
from typing import Any, Final

from cowstore import digest as digests
from cowstore.errors import Damaged, NotFound, Refused, StoreError

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
MANIFESTS: Final = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES: Final = (OCI_INDEX, DOCKER_LIST)
REF_NAME: Final = "org.opencontainers.image.ref.name"
#: More than any registry takes for a manifest (distribution-spec, "Pushing Manifests": 4 MiB).
MAX_JSON: Final = 4 << 20
_MAX_CONFIG: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Descriptor:
    """image-spec descriptor.md."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = field(default_factory=dict)
    platform: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """As it is written."""
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.annotations:
            found["annotations"] = self.annotations
        if self.platform:
            found["platform"] = self.platform
        return found


@dataclass(frozen=True, slots=True)
class ManifestDoc:
    """A manifest as parsed. ``is_image``: its configuration is one of an image, its layers tars.

    (Attestations of builds have an image's configuration over layers that are JSON.)
    """

    digest: str
    media_type: str
    data: bytes
    config: Descriptor
    layers: tuple[Descriptor, ...]
    raw: dict[str, Any]

    @property
    def is_image(self) -> bool:
        return self.config.media_type in (OCI_CONFIG, DOCKER_CONFIG) and not any(
            layer.media_type and ".tar" not in layer.media_type for layer in self.layers
        )


def loads(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refused: it is none.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused(f"{what} is not JSON") from None
    if not isinstance(found, dict):
        raise Refused(f"{what} is not a JSON object")
    return found


def dumps(value: object) -> bytes:
    """JSON, the same bytes for the same value."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def descriptor(value: object, what: str) -> Descriptor:
    """A descriptor.

    Raises:
        Refused: malformed.
    """
    if not isinstance(value, dict):
        raise Refused(f"{what} is not a descriptor")
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise Refused(f"{what} has no size, or one that nothing has")
    digest = digests.check(value.get("digest"), what)
    media_type = value.get("mediaType", "")
    notes, platform = value.get("annotations") or {}, value.get("platform") or {}
    if not (isinstance(media_type, str) and isinstance(notes, dict) and isinstance(platform, dict)):
        raise Refused(f"{what} is malformed")
    if not all(isinstance(value, str) for value in notes.values()):
        raise Refused(f"{what} has an annotation that is no text")
    return Descriptor(media_type, digest, size, notes, platform)


def parse_manifest(data: bytes, media_type: str = "") -> ManifestDoc:
    """A manifest.

    Raises:
        Refused: malformed, an index, or of a form that is not known.
    """
    raw = loads(data, "the manifest")
    media_type = str(raw.get("mediaType") or media_type or OCI_MANIFEST)
    if raw.get("schemaVersion") != 2 or media_type not in MANIFESTS:
        raise Refused(
            f"a manifest of type {media_type!r}, version {raw.get('schemaVersion')!r}, is not known"
        )
    layers = raw.get("layers")
    if not isinstance(layers, list):
        raise Refused("the manifest has no list of layers")
    return ManifestDoc(
        digests.of(data),
        media_type,
        data,
        descriptor(raw.get("config"), "the manifest's config"),
        tuple(descriptor(layer, "a layer of the manifest") for layer in layers),
        raw,
    )


def parse_index(data: bytes) -> tuple[Descriptor, ...]:
    """The manifests of an index (of an OCI layout too)."""
    entries = loads(data, "the index").get("manifests")
    if not isinstance(entries, list):
        raise Refused("the index has no list of manifests")
    return tuple(descriptor(entry, "an entry of the index") for entry in entries)


def diff_ids(config: dict[str, Any], layers: int) -> list[str]:
    """The diff ids of an image's configuration; one for every layer.

    Raises:
        Refused: there are not as many.
    """
    rootfs = config.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or len(found) != layers:
        raise Refused("the configuration's diff ids do not match the manifest's layers")
    return [digests.check(item, "a diff id") for item in found]


def read_config(path: str) -> dict[str, Any]:
    """An image's configuration from where the store keeps it; empty if that is nowhere.

    Raises:
        Damaged: it is gone, or no JSON any more.
    """
    if not path:
        return {}
    try:
        with open(path, "rb") as file:
            return loads(file.read(_MAX_CONFIG), "the configuration")
    except (OSError, Refused):
        raise Damaged(f"the configuration {path} is damaged", "cowstore fsck --repair") from None


_MACHINES: Final = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
}


def host_platform() -> str:
    """``OS/ARCH[/VARIANT]`` of this machine, in Go's words."""
    arch, variant = _MACHINES.get(host.machine(), (host.machine(), ""))
    return f"linux/{arch}" + (f"/{variant}" if variant else "")


def choose(entries: tuple[Descriptor, ...], wanted: str) -> Descriptor:
    """The entry of an index for a platform ``OS/ARCH[/VARIANT]``.

    Raises:
        NotFound: none fits.
    """
    os_name, _, rest = wanted.partition("/")
    arch, _, variant = rest.partition("/")
    fitting = [
        entry
        for entry in entries
        if entry.media_type in (*MANIFESTS, "")
        and entry.platform.get("os") == os_name
        and entry.platform.get("architecture") == arch
        and (not variant or entry.platform.get("variant", variant) == variant)
    ]
    if fitting:
        # A variant named outright before one left open; then the newest, as engines choose.
        return max(fitting, key=lambda entry: str(entry.platform.get("variant", "")))
    plain = [entry for entry in entries if not entry.platform and entry.media_type in MANIFESTS]
    if len(plain) == 1:
        return plain[0]
    there = ", ".join(sorted({platform_name(entry) for entry in entries if entry.platform}))
    raise NotFound(f"the index has no image for {wanted}", f"--platform: {there}" if there else "")


def platform_name(entry: Descriptor) -> str:
    """``OS/ARCH[/VARIANT]`` of an index's entry; the start of its digest if it tells none."""
    parts = (entry.platform.get(key) for key in ("os", "architecture", "variant"))
    return "/".join(str(part) for part in parts if part) or entry.digest[7:19]


def check_platform(text: str) -> str:
    """A platform as an option names it.

    Raises:
        StoreError: not ``OS/ARCH[/VARIANT]``.
    """
    parts = text.split("/")
    if len(parts) not in (2, 3) or not all(p.isascii() and p.isalnum() for p in parts):
        raise StoreError(f"--platform {text}: not a platform", "OS/ARCH[/VARIANT]: linux/arm64")
    return text


def platform_of(config: dict[str, Any]) -> str:
    """``OS/ARCH[/VARIANT]`` of an image's configuration; empty if it does not tell."""
    parts = (config.get(key) for key in ("os", "architecture", "variant"))
    return "/".join(str(part) for part in parts if part)


def time_text(seconds: int) -> str:
    """A time as configurations write it (RFC 3339, UTC); outside of 1970 to 9999 the nearest."""
    import datetime

    when = datetime.datetime.fromtimestamp(min(max(seconds, 0), 253402300799), datetime.UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


def new_config(
    diff_id_list: list[str], created: str, platform: str, *, created_by: str
) -> dict[str, Any]:
    """The configuration of an image made from a tree."""
    os_name, _, rest = platform.partition("/")
    arch, _, variant = rest.partition("/")
    config: dict[str, Any] = {"created": created, "architecture": arch}
    if variant:
        config["variant"] = variant
    config |= {
        "os": os_name,
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_id_list},
        "history": [{"created": created, "created_by": created_by}],
    }
    return config


def new_manifest(
    config: bytes, layers: list[Descriptor], annotations: dict[str, str] | None = None
) -> bytes:
    """An OCI manifest over a configuration and layers."""
    described = Descriptor(OCI_CONFIG, digests.of(config), len(config))
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described.json(),
        "layers": [layer.json() for layer in layers],
    }
    if annotations:
        document["annotations"] = annotations
    return dumps(document)


def check_size(size: int, what: str, *, config: bool = False) -> None:
    """Refuse a document that is larger than any in use.

    Raises:
        Refused: it is.
    """
    if size > (_MAX_CONFIG if config else MAX_JSON):
        raise Refused(f"{what} of {size} bytes is larger than any in use")
