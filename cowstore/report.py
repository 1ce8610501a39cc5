"""What the store can tell: history, inspection, sharing, space, differences."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

from cowstore import oci
from cowstore.errors import NotFound
from cowstore.types import Image, Snapshot

if TYPE_CHECKING:
    from cowstore.store import Store
    from cowstore.view import View

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def inspect(store: Store, name: str) -> dict[str, Any]:
    """Everything about an image, a snapshot, or a layer (by the start of its diff id).

    Raises:
        NotFound: nothing is called that.
    """
    try:
        image = store.resolve(name)
    except NotFound:
        try:
            return snapshot_data(store.snapshot(name))
        except NotFound:
            return _inspect_layer(store, name)
    manifest = oci.loads(store.blob(image.id), "the manifest")
    return {
        "id": image.id,
        "config_digest": image.config_digest,
        "names": image.names,
        "created_at": image.created_at,
        "size": image.size,
        "layers": [_layer(store, diff_id) for diff_id in image.layers],
        "manifest": manifest,
        "config": image.config,
    }


def snapshot_data(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot for scripts."""
    from cowstore.quota import usage

    bound = usage(snapshot.place)
    return {
        "id": snapshot.id,
        "image": snapshot.image,
        "parent": snapshot.parent,
        "upper": str(snapshot.upper),
        "work": str(snapshot.work),
        "lowers": snapshot.lowers.places,
        "view": snapshot.lowers.view,
        "options": list(snapshot.options),
        "created_at": snapshot.created_at,
        "quota": None if bound is None else bound.to_data(),
    }


def _inspect_layer(store: Store, name: str) -> dict[str, Any]:
    start = name.removeprefix("sha256:")
    found = [layer for layer in store.layer_list() if layer.diff_id[7:].startswith(start)]
    if len(start) < 4 or len(found) != 1:
        raise NotFound(f"no image, snapshot or layer is called {name}", "cowstore images")
    return _layer(store, found[0].diff_id)


def _layer(store: Store, diff_id: str) -> dict[str, Any]:
    holder = store.holder_of_layer(diff_id)
    row = holder.database.row(
        "SELECT size, content, entries, created_at FROM layers WHERE diff_id=?", diff_id
    )
    assert row is not None
    blobs = holder.database.rows(
        "SELECT digest, size, compression, kept, source FROM blobs WHERE diff_id=?", diff_id
    )
    return {
        "diff_id": diff_id,
        "size": row[0],
        "content": row[1],
        "entries": row[2],
        "created_at": row[3],
        "blobs": [
            {"digest": b[0], "size": b[1], "compression": b[2], "kept": bool(b[3]), "source": b[4]}
            for b in blobs
        ],
    }


def history(store: Store, image: Image) -> list[dict[str, Any]]:
    """History entries, the oldest first, each with its layer (empty for one without)."""
    entries = image.config.get("history")
    listed: list[Any] = entries if isinstance(entries, list) else []
    lines = []
    pending = list(image.layers)
    for entry in listed:
        line = dict(entry) if isinstance(entry, dict) else {}
        layer = pending.pop(0) if pending and not line.get("empty_layer") else ""
        lines.append({**line, "layer": layer, "content": _content(store, layer)})
    # Layers that the history does not speak of.
    lines += [{"layer": layer, "content": _content(store, layer)} for layer in pending]
    return lines


def _content(store: Store, diff_id: str) -> int:
    if not diff_id:
        return 0
    content: int = _layer(store, diff_id)["content"]
    return content


def tree(store: Store) -> list[dict[str, Any]]:
    """Layers by what they lie on, each with the images that end there."""
    roots: list[dict[str, Any]] = []
    for image in sorted(store.images(), key=lambda image: image.layers):
        level = roots
        node: dict[str, Any] | None = None
        for diff_id in image.layers:
            node = next((n for n in level if n["layer"] == diff_id), None)
            if node is None:
                content = _content(store, diff_id)
                node = {"layer": diff_id, "content": content, "images": [], "above": []}
                level.append(node)
            level = node["above"]
        if node is not None:
            node["images"] += list(image.names) or [image.short_id]
    return roots


# -- space -------------------------------------------------------------------------------


def usage(store: Store) -> dict[str, Any]:
    """Bytes: of each image, shared with others and its own; and of each folder on disk."""
    sizes: dict[str, int] = {}
    users: dict[str, set[str]] = {}
    contents: dict[str, set[str]] = {}
    for image in store.images():
        names: set[str] = set()
        for diff_id in image.layers:
            holder = store.holder_of_layer(diff_id)
            with holder.layers.manifest(diff_id) as manifest:
                for entry in manifest.entries():
                    if entry.object:
                        names.add(entry.object)
                        sizes[entry.object] = entry.payload
        contents[image.id] = names
        for name in names:
            users.setdefault(name, set()).add(image.id)
    images = []
    for image in store.images():
        names = contents[image.id]
        total = sum(sizes[name] for name in names)
        unique = sum(sizes[name] for name in names if len(users[name]) == 1)
        images.append(
            {
                "name": (image.names or (image.short_id,))[0],
                "id": image.id,
                "size": image.size,
                "content": total,
                "shared": total - unique,
                "unique": unique,
            }
        )
    folders = ("objects", "blobs", "layers", "views", "trees", "snapshots", "partial", "tmp")
    disk = {name: _folder(store.layout.path(name)) for name in folders}
    return {"images": images, "disk": disk, "content": sum(sizes.values())}


def _folder(path: str) -> dict[str, int]:
    """Files and allocated bytes beneath a directory; links counted once."""
    files = total = 0
    seen: set[tuple[int, int]] = set()
    for above, _, names in os.walk(path):
        for name in names:
            try:
                st = os.lstat(os.path.join(above, name))
            except OSError:
                continue
            if st.st_nlink > 1:
                if (st.st_dev, st.st_ino) in seen:
                    continue
                seen.add((st.st_dev, st.st_ino))
            files += 1
            total += st.st_blocks * 512
    return {"files": files, "bytes": total}


# -- differences -------------------------------------------------------------------------


def diff(store: Store, one: str, two: str) -> list[dict[str, Any]]:
    """What must be done to ``one`` to get ``two``: A, D and M, sorted by path.

    Either may be an image or a snapshot; of a snapshot, what it changed is looked at too.
    """
    with _tree_of(store, one) as old, _tree_of(store, two) as new:
        changes = []
        for path in sorted(old.keys() | new.keys()):
            before, after = old.get(path), new.get(path)
            if before is None or after is None:
                here = after or before
                assert here is not None
                kind = "A" if before is None else "D"
                changes.append(_change(kind, path, here[0], []))
                continue
            what = [w for w, a, b in zip(_WHAT, before, after, strict=True) if a != b]
            if what:
                changes.append(_change("M", path, after[0], what))
    return changes


_WHAT = ("type", "mode", "owner", "time", "size", "target", "device", "xattrs", "content", "links")


def _change(kind: str, path: bytes, type_: int, what: list[str]) -> dict[str, Any]:
    shown = path.decode("utf-8", "surrogateescape")
    return {"kind": kind, "type": _TYPES.get(type_, "?"), "path": "/" + shown, "what": what}


class _tree_of(dict[bytes, tuple[Any, ...]]):
    """Attributes of every path of an image or a snapshot."""

    def __init__(self, store: Store, name: str) -> None:
        super().__init__()
        from cowstore.caches import view_path
        from cowstore.view import View

        self._view: View | None = None
        try:
            snapshot = store.snapshot(name)
        except NotFound:
            image = store.resolve(name)
            self._view = View(view_path(store, image.layers, image.chain))
            self._from_view(self._view)
        else:
            self._from_snapshot(store, snapshot)

    def __enter__(self) -> _tree_of:
        return self

    def __exit__(self, *_: object) -> None:
        if self._view is not None:
            self._view.close()

    def _from_view(self, view: View) -> None:
        for path, index in view.walk():
            entry = view.entry(index, path)
            nlink = view.attr(index)[10] if entry.kind != stat.S_IFDIR else 0
            self[path] = _facts(entry, nlink)

    def _from_snapshot(self, store: Store, snapshot: Snapshot) -> None:
        """The image's layers and what would be committed, merged."""
        from cowstore.commit import staged_entries
        from cowstore.merge import merge_layers, walk

        image = store.resolve(snapshot.image)
        with store.session() as session:
            layers: list[Any] = [
                store.holder_of_layer(d).layers.manifest(d).entries() for d in image.layers
            ]
            layers += staged_entries(store, session, snapshot)
            for path, node in walk(merge_layers(layers)):
                nlink = node.nlink if node.children is None else 0
                self[path] = _facts(node.entry, nlink)


def _facts(entry: Any, nlink: int) -> tuple[Any, ...]:
    return (
        entry.kind,
        entry.mode,
        (entry.uid, entry.gid),
        (entry.mtime, entry.mtime_ns),
        entry.size,
        entry.target,
        (entry.major, entry.minor),
        tuple(sorted(entry.xattrs)),
        entry.object,
        nlink,
    )
