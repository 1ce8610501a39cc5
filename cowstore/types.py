"""Values that the store hands out: images, layers, snapshots, and what a union needs of them.

Plain, frozen data without behaviour. Digests are text, ``sha256:`` and 64 hex
digits; paths are :class:`pathlib.Path`; times are UTC in RFC 3339 as the image
specification writes them, or seconds since 1970 where a name ends in ``_at``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Called while bytes move: (what, done, total); total is 0 where it is not known.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the store.

    Attributes:
        diff_id: sha256 of the uncompressed tar archive (image-spec config.md, "DiffID").
        size: bytes of that archive.
        content: bytes of the files in it.
        entries: members of the archive.
    """

    diff_id: str
    size: int
    content: int
    entries: int


@dataclass(frozen=True, slots=True)
class Image:
    """One image: a manifest, its configuration, and its layers.

    Attributes:
        id: digest of the manifest; what names point to.
        config_digest: digest of the configuration (docker's and podman's "image ID").
        media_type: of the manifest.
        config: the configuration as parsed JSON (image-spec config.md); empty for an artifact.
        layers: diff ids, the lowest first.
        names: the names that point here, sorted.
        size: bytes of the files in all layers.
        created_at: when it came into the store.
    """

    id: str
    config_digest: str
    media_type: str
    config: dict[str, Any]
    layers: tuple[str, ...]
    names: tuple[str, ...] = ()
    size: int = 0
    created_at: float = 0.0

    @property
    def short_id(self) -> str:
        """Twelve hex digits, for people."""
        return self.id.partition(":")[2][:12]

    @property
    def process(self) -> dict[str, Any]:
        """The ``config`` part: Env, Cmd, Entrypoint, User, WorkingDir, … (may be empty)."""
        part = self.config.get("config")
        return part if isinstance(part, dict) else {}


@dataclass(frozen=True, slots=True)
class Lowers:
    """What a union is given for an image.

    Attributes:
        paths: for ``lowerdir``, the topmost first; directories, or the one index of a view.
        options: ``-o`` words that these lowers need, such as ``xattr_permissions=2``.
        view: ``paths`` names a view: pass ``cowstore.view.open_layer`` to the union.
    """

    paths: tuple[Path, ...]
    options: tuple[str, ...] = ()
    view: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A writable copy of an image: an upper and a work directory of its own.

    Attributes:
        id: its name in the store.
        image: id of the image it started from; empty if it started from nothing.
        upper, work: directories of its changes, for a union.
        lowers: what lies beneath.
        parent: id of the snapshot it was cloned from.
        created_at: seconds since 1970.
    """

    id: str
    image: str
    upper: Path
    work: Path
    lowers: Lowers
    parent: str = ""
    created_at: float = 0.0

    @property
    def options(self) -> tuple[str, ...]:
        """``-o`` words for the union, lowers, upper and work directory included."""
        below = ":".join(escaped(path) for path in self.lowers.paths)
        return (
            f"lowerdir={below}",
            f"upperdir={escaped(self.upper)}",
            f"workdir={escaped(self.work)}",
            *self.lowers.options,
        )


def escaped(path: Path) -> str:
    """A path as an option of mount takes it."""
    return str(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


@dataclass(frozen=True, slots=True)
class CommitOptions:
    """What a commit writes beside the layer.

    Attributes:
        author, message: of the history entry.
        created: RFC 3339 time of image and history; the newest time in the layer if None.
        changes: ``Dockerfile`` instructions (CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD,
            STOPSIGNAL, USER, VOLUME, WORKDIR) applied to the configuration.
        cache_key: kept with the layer; ``Store.cached`` finds the image by it.
        created_by: the command of the history entry.
        annotations: of the manifest.
    """

    author: str = ""
    message: str = ""
    created: str | None = None
    changes: tuple[str, ...] = ()
    cache_key: str = ""
    created_by: str = ""
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image is: a transport, a place, and a tag or digest in it.

    ``str()`` gives back what ``parse`` takes. Transports: ``oci``, ``oci-archive``,
    ``docker-archive``, ``docker``, ``rootfs``, ``dir``, ``host``.
    """

    transport: str
    place: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> ImageRef:
        """A source or target as the command line takes it.

        Raises:
            StoreError: not understood.
        """
        from cowstore.reference import parse_ref

        return parse_ref(text)

    def __str__(self) -> str:
        from cowstore.reference import format_ref

        return format_ref(self)
