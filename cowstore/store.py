"""The store: what a program or a command does with it, one method each.

Cheap to make and to open: nothing is read before it is asked for, and what only
some methods need (archives, compression, HTTP) is imported there.
"""

from __future__ import annotations

import os

from cowstore.database import Database, unpack
from cowstore.errors import NotFound, StoreError
from cowstore.layout import Layout, default_root
from cowstore.locks import dead_sessions
from cowstore.types import CommitOptions, Image, ImageRef, Layer, Lowers, Progress, Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import Any

    from cowstore.layers import Layers
    from cowstore.locks import Session
    from cowstore.manifest import Entry
    from cowstore.merge import Node
    from cowstore.rules import Limits


class Store:
    """A store of images, and optionally others that are only read.

    Args:
        root: its directory; None: the user's own.
        stores: further stores, never written, whose images and layers are used where they are.
        durability: ``full``: what a method has done survives a power cut; ``none``: it may not.
        blobs: see ``cowstore.layers.Policy``.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        stores: Sequence[str | os.PathLike[str]] = (),
        durability: str = "full",
        blobs: str = "auto",
        limits: Limits | None = None,
    ) -> None:
        self.layout = Layout(os.fspath(root) if root is not None else default_root())
        self.durable = durability != "none"
        self.database = Database(self.layout, durable=self.durable)
        self.others = [
            Store._reader(os.fspath(other))
            for other in stores
            if os.path.realpath(other) != os.path.realpath(self.layout.root)
        ]
        self._blobs = blobs
        self._limits = limits
        self._layers: Layers | None = None

    @classmethod
    def _reader(cls, root: str) -> Store:
        store = cls(root)
        store.layout.read_only = True
        return store

    # -- opening ----------------------------------------------------------------------

    def open(self) -> Store:
        """Make the store if it is not there, and sweep what dead processes left.

        Raises:
            StoreError: it cannot be made or is of a newer format.
        """
        self.layout.prepare()
        for other in self.others:
            other.layout.prepare()
        if not self.layout.read_only:
            for name in dead_sessions(self.layout):
                from cowstore.endings import bury_session

                bury_session(self, name)
        return self

    def close(self) -> None:
        """Close the databases."""
        self.database.close()
        for other in self.others:
            other.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def session(self) -> AbstractContextManager[Session]:
        """A staging directory and leases for one piece of work; disk-full becomes a clear error."""
        from cowstore.work import working

        return working(self)

    @property
    def layers(self) -> Layers:
        """Layers of this store."""
        if self._layers is None:
            from cowstore.layers import Layers, Policy
            from cowstore.rules import Limits

            policy = Policy(self._limits or Limits(), self._blobs, self.durable)
            self._layers = Layers(self.layout, self.database, policy)
        return self._layers

    # -- looking ----------------------------------------------------------------------

    def holders(self) -> list[Store]:
        """This store and those it only reads."""
        return [self, *self.others]

    def images(self) -> list[Image]:
        """All images, the newest first; of several stores the first that has one."""
        found: dict[str, Image] = {}
        for store in self.holders():
            names: dict[str, list[str]] = {}
            for name, image in store.database.rows("SELECT name, image FROM names"):
                names.setdefault(image, []).append(name)
            for row in store.database.rows(f"SELECT {_IMAGE} FROM images"):
                if row[0] not in found:
                    found[row[0]] = store._image(row, names.get(row[0], []))
        return sorted(found.values(), key=lambda image: (-image.created_at, image.id))

    def resolve(self, name: str) -> Image:
        """The image of a name, of a digest (manifest or configuration), or of the start of one.

        Raises:
            NotFound: none, or several by the start of a digest.
        """
        for store in self.holders():
            image = store._resolve_here(name)
            if image is not None:
                return image
        raise NotFound(f"no image is called {name}", "cowstore images")

    def _resolve_here(self, name: str) -> Image | None:
        # A whole digest is never a name, whatever a store of earlier days may have.
        for candidate in () if name.startswith("sha256:") else candidates(name):
            row = self.database.row("SELECT image FROM names WHERE name=?", candidate)
            if row is not None:
                return self._image_by_id(row[0])
        start = name.removeprefix("sha256:")
        if len(start) >= 4 and all(char in "0123456789abcdef" for char in start):
            rows = self.database.rows(
                "SELECT id FROM images WHERE id LIKE ? OR config_digest LIKE ? LIMIT 3",
                f"sha256:{start}%",
                f"sha256:{start}%",
            )
            if len(rows) > 1:
                raise NotFound(f"{name}: several images begin like that", "give more digits")
            if rows:
                return self._image_by_id(rows[0][0])
        return None

    def _image_by_id(self, image: str) -> Image | None:
        row = self.database.row(f"SELECT {_IMAGE} FROM images WHERE id=?", image)
        if row is None:
            return None
        names = self.database.rows("SELECT name FROM names WHERE image=?", image)
        return self._image(row, [name for (name,) in names])

    def _image(self, row: tuple[Any, ...], names: list[str]) -> Image:
        image, config_digest, media_type, layers, chain, content, created_at, artifact = row
        return Image(
            image,
            config_digest,
            media_type,
            tuple(unpack(layers)),
            chain,
            tuple(sorted(names)),
            content,
            created_at,
            "" if artifact else self.layout.blob(config_digest),
        )

    def layer_list(self) -> list[Layer]:
        """All layers."""
        return [
            Layer(*row)
            for store in self.holders()
            for row in store.database.rows(
                "SELECT diff_id, size, content, entries FROM layers ORDER BY created_at"
            )
        ]

    def blob(self, digest: str) -> bytes:
        """A small blob that is kept.

        Raises:
            StoreError: it is not.
        """
        for store in self.holders():
            try:
                with open(store.layout.blob(digest), "rb") as file:
                    return file.read()
            except FileNotFoundError:
                continue
        from cowstore.errors import Damaged

        raise Damaged(f"blob {digest} is missing", "cowstore fsck --repair")

    def holder_of_layer(self, diff_id: str) -> Store:
        """The store that has a layer.

        Raises:
            Damaged: none has.
        """
        for store in self.holders():
            if store.database.has_layer(diff_id):
                return store
        from cowstore.errors import Damaged

        raise Damaged(f"layer {diff_id} is missing", "cowstore fsck --repair")

    def merged(self, diff_ids: Sequence[str], beneath: Sequence[Entry] = ()) -> Node:
        """The merged tree of a chain of layers, the lowest first, on a layer of ``beneath``."""
        from cowstore.merge import merge_layers

        def entries(diff_id: str) -> Any:
            with self.holder_of_layer(diff_id).layers.manifest(diff_id) as manifest:
                return manifest.entries()

        return merge_layers([*([beneath] if beneath else []), *map(entries, diff_ids)])

    # -- in and out ----------------------------------------------------------------------

    def import_image(
        self,
        source: str | ImageRef,
        name: str | None = None,
        *,
        platform: str | None = None,
        all_platforms: bool = False,
        progress: Progress | None = None,
        **options: Any,
    ) -> Image:
        """Bring an image in; of an archive with several the first is returned.

        Args:
            source: where it is; see ``ImageRef``.
            name: what it is called here; None: as the source calls it.
            platform: ``OS/ARCH[/VARIANT]`` to choose from an index; None: this machine's.
            all_platforms: bring the other images of the index in too; the name keeps them.
            options: of ``pull``, where the source is a registry.

        Raises:
            StoreError: see ``cowstore.errors``; nothing of the image is there then.
        """
        ref = ImageRef.parse(source) if isinstance(source, str) else source
        if platform is not None:
            from cowstore.oci import check_platform as check_text

            check_text(platform)
        if ref.transport == "docker":
            return self.pull(
                ref, name, platform=platform, all_platforms=all_platforms, progress=progress,
                **options,
            )  # fmt: skip
        from contextlib import ExitStack

        from cowstore.importer import check_platform, import_found
        from cowstore.reference import local_name, name_for
        from cowstore.sources import open_source

        with ExitStack() as stack, self.session() as session:
            found = open_source(
                ref, stack, platform, everything=all_platforms, limits=self._limits,
                hidden=[store.layout.root for store in self.holders()],
            )  # fmt: skip
            first = ""
            for item in found:
                names = [local_name(n) for n in item.names if _is_name(n)]
                if name is not None:
                    names = [local_name(name)] if not first else []
                elif not names and not first and (fallback := name_for(ref)):
                    names = [fallback]
                item.place = item.place or ref.place
                if platform is not None:
                    check_platform(item, platform)
                image = import_found(self, session, item, names, progress)
                first = first or image
        return self.made_ready(first)

    def made_ready(self, image: str) -> Image:
        """An image that just came in, its view built: whoever starts it is in a hurry."""
        found = self.resolve(image)
        if found.layers:
            self.lowers(found)
        return found

    def pull(
        self,
        ref: str | ImageRef,
        name: str | None = None,
        *,
        platform: str | None = None,
        all_platforms: bool = False,
        progress: Progress | None = None,
        **options: Any,
    ) -> Image:
        """Bring an image in from a registry; see ``cowstore.registry.transfer.pull``."""
        from cowstore.registry.transfer import pull

        parsed = ImageRef.parse(ref) if isinstance(ref, str) else ref
        return pull(
            self, parsed, name, platform=platform, all_platforms=all_platforms, progress=progress,
            **options,
        )  # fmt: skip

    def push(
        self,
        name: str,
        ref: str | ImageRef,
        *,
        progress: Progress | None = None,
        **options: Any,
    ) -> str:
        """Send an image to a registry; the digest it has there.

        ``options``: see ``cowstore.registry.transfer.push``.
        """
        from cowstore.registry.transfer import push

        parsed = ImageRef.parse(ref) if isinstance(ref, str) else ref
        return push(self, name, parsed, progress=progress, **options)

    def export_image(
        self,
        name: str,
        target: str | ImageRef,
        *,
        compression: str | None = None,
        all_platforms: bool = False,
        progress: Progress | None = None,
    ) -> str:
        """Write an image somewhere; the digest of the manifest written (empty for a rootfs).

        ``all_platforms``: write the index that the name stands for, with all its images.
        """
        from cowstore.exporter import export, export_index

        parsed = ImageRef.parse(target) if isinstance(target, str) else target
        if all_platforms:
            return export_index(self, name, parsed, compression=compression, progress=progress)
        return export(self, self.resolve(name), parsed, compression=compression, progress=progress)

    def index_of(self, name: str) -> str:
        """Digest of the index from which the image of a name came.

        Raises:
            NotFound: no such name, or it came as a single image.
        """
        if found := self._index_digest(name):
            return found
        self.resolve(name)
        raise NotFound(
            f"{name} stands for a single image, not for an index",
            "cowstore import --all-platforms brings an index in whole",
        )

    def _index_digest(self, name: str) -> str:
        for store in self.holders():
            for candidate in candidates(name):
                row = store.database.row("SELECT index_digest FROM names WHERE name=?", candidate)
                if row is not None:
                    return row[0] or ""
        return ""

    # -- names ------------------------------------------------------------------------------

    def tag(self, name: str, new: str) -> None:
        """Give an image one name more; a name that is taken moves."""
        from cowstore.database import set_name
        from cowstore.reference import local_name

        image = self.resolve(name)
        target = local_name(new)
        index = self._index_digest(name) or None
        with self.database.write() as db:
            if not db.execute("SELECT 1 FROM images WHERE id=?", (image.id,)).fetchone():
                raise StoreError(f"{name} is in a store that is only read", "import it first")
            set_name(db, target, image.id, index)

    def remove(self, name: str, *, force: bool = False) -> list[str]:
        """Take a name away, or by its id an image with all its names; what went, in words."""
        from cowstore.collect import remove_image

        return remove_image(self, name, force=force)

    # -- unions --------------------------------------------------------------------------------

    def lowers(self, image: Image | str, *, view: bool = True) -> Lowers:
        """What a union of an image lies on: its view, or a directory tree; made if need be."""
        from cowstore.snapshots import lowers

        return lowers(self, image if isinstance(image, Image) else self.resolve(image), view=view)

    def tree(self, image: Image | str, flavour: str = "") -> Lowers:
        """An image as directories, made if need be, with what mount(8) is told of them.

        Args:
            flavour: ``plain``, ``override``, or ``data``: attributes alone, for the kernel's
                overlayfs over the store's objects; empty: plain if any owner can be given.

        Raises:
            StoreError: the kernel has no data-only lowers, an owner or device cannot be given.
        """
        from cowstore.snapshots import tree

        return tree(self, image if isinstance(image, Image) else self.resolve(image), flavour)

    def snapshot_create(
        self, image: Image | str, id: str | None = None, *, quota: int = 0
    ) -> Snapshot:
        """A new writable copy of an image.

        Args:
            id: what it is called; None: something random.
            quota: bytes that its changes may take; 0: no bound.

        Raises:
            StoreError: the id is taken; the filesystem has no quotas.
        """
        from cowstore.snapshots import create

        found = image if isinstance(image, Image) else self.resolve(image)
        return create(self, found, id, quota)

    def snapshot(self, id: str) -> Snapshot:
        """A snapshot by its id or the start of one."""
        from cowstore.snapshots import find

        return find(self, id)

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, the oldest first."""
        from cowstore.snapshots import all_snapshots

        return all_snapshots(self)

    def snapshot_clone(self, id: str, new: str | None = None) -> Snapshot:
        """A second writable copy of a snapshot as it is now, which must not be mounted."""
        from cowstore.snapshots import clone

        return clone(self, id, new)

    def snapshot_remove(self, id: str) -> None:
        """Remove a snapshot and its changes; it must not be mounted."""
        from cowstore.snapshots import remove

        remove(self, id)

    def commit(
        self, snapshot: Snapshot | str, name: str | None, options: CommitOptions | None = None
    ) -> Image:
        """An image of a snapshot: the layers beneath and its changes as one more."""
        from cowstore.commit import commit

        found = self.snapshot(snapshot) if isinstance(snapshot, str) else snapshot
        return commit(self, found, name, options or CommitOptions())

    def cached(self, parent: Image | str, key: str) -> Image | None:
        """The image that a commit with this cache key made of ``parent`` (a name, or empty)."""
        if isinstance(parent, str):
            parent_id = self.resolve(parent).id if parent else ""
        else:
            parent_id = parent.id
        row = self.database.row("SELECT image FROM cache WHERE parent=? AND key=?", parent_id, key)
        return self._image_by_id(row[0]) if row else None

    def mount(self, what: str, mountpoint: str, *, options: Sequence[str] = ()) -> int:
        """Mount an image (read-only) or a snapshot; returns when it answers. The exit code."""
        from cowstore.mounting import mount

        return mount(self, what, mountpoint, options)


_IMAGE = "id, config_digest, media_type, layers, chain, content, created_at, artifact"


def candidates(name: str) -> list[str]:
    """The names that a short one may stand for, the most likely first."""
    tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
    return list(
        dict.fromkeys(
            (
                tagged,
                f"localhost/{tagged}",
                f"docker.io/{tagged}",
                f"docker.io/library/{tagged}",
            )
        )
    )


def _is_name(text: str) -> bool:
    from cowstore.reference import local_name

    try:
        local_name(text)
    except StoreError:
        return False
    return True
