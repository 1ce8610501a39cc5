"""Values that the store hands out: images, layers, snapshots, and what a union needs of them.

Plain, frozen data without behaviour. Digests are text, ``sha256:`` and 64 hex
digits; paths are :class:`pathlib.Path`; times are UTC in RFC 3339 as the image
specification writes them, or seconds since 1970 where a name ends in ``_at``.
"""

from __future__ import annotations

from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    #: Called while bytes move: (what, done, total); total is 0 where it is not known.
    Progress = Callable[[str, int, int], None]
else:
    Progress = object


class Layer(Record):
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


class Image(Record):
    """One image: a manifest, its configuration, and its layers.

    Attributes:
        id: digest of the manifest; what names point to.
        config_digest: digest of the configuration (docker's and podman's "image ID").
        media_type: of the manifest.
        layers: diff ids, the lowest first.
        chain: chain id of the topmost layer.
        names: the names that point here, sorted.
        size: bytes of the files in all layers.
        created_at: when it came into the store.
        config_path: where the configuration is kept.
    """

    id: str
    config_digest: str
    media_type: str
    layers: tuple[str, ...]
    chain: str
    names: tuple[str, ...] = ()
    size: int = 0
    created_at: float = 0.0
    config_path: str = ""

    @property
    def short_id(self) -> str:
        """Twelve hex digits, for people."""
        return self.id.partition(":")[2][:12]

    @property
    def digests(self) -> tuple[str, ...]:
        """What a session keeps of it: its layers, and their chain."""
        return (*self.layers, self.chain)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration as parsed JSON (image-spec config.md); empty for an artifact.

        Raises:
            Damaged: it is not there, or no JSON.
        """
        from cowstore.oci import read_config

        return read_config(self.config_path)

    @property
    def process(self) -> dict[str, Any]:
        """The ``config`` part: Env, Cmd, Entrypoint, User, WorkingDir, … (may be empty)."""
        part = self.config.get("config")
        return part if isinstance(part, dict) else {}


class Lowers(Record):
    """What a union is given for an image.

    Attributes:
        places: ``paths`` as text.
        options: ``-o`` words that these lowers need, such as ``xattr_permissions=2``.
        view: one of them is a view: the union needs ``cowstore.viewlayer.opener``.
    """

    places: tuple[str, ...]
    options: tuple[str, ...] = ()
    view: bool = False

    @property
    def paths(self) -> tuple[Path, ...]:
        """For ``lowerdir``, the topmost first: directories, or the index of a view."""
        from pathlib import Path

        return tuple(map(Path, self.places))


class Snapshot(Record):
    """A writable copy of an image: an upper and a work directory of its own.

    Attributes:
        id: its name in the store.
        image: id of the image it started from.
        place: the directory that has ``upper`` and ``work``.
        lowers: what lies beneath.
        parent: id of the snapshot it was cloned from.
        created_at: seconds since 1970.
    """

    id: str
    image: str
    place: str
    lowers: Lowers
    parent: str = ""
    created_at: float = 0.0

    @property
    def upper(self) -> Path:
        """The directory of its changes."""
        from pathlib import Path

        return Path(self.place, "upper")

    @property
    def work(self) -> Path:
        """The union's work directory."""
        from pathlib import Path

        return Path(self.place, "work")

    @property
    def options(self) -> tuple[str, ...]:
        """``-o`` words for the union, lowers, upper and work directory included."""
        return (
            f"lowerdir={':'.join(map(escaped, self.lowers.places))}",
            f"upperdir={escaped(self.place)}/upper",
            f"workdir={escaped(self.place)}/work",
            *self.lowers.options,
        )


def escaped(path: str) -> str:
    """A path as an option of mount takes it."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


class CommitOptions(Record):
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
    annotations: tuple[tuple[str, str], ...] = ()


class ImageRef(Record):
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
