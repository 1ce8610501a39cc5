"""Snapshots: writable copies of an image, each an upper and a work directory.

Creating one makes two directories and a row, in one transaction, so that a crash leaves
neither or a directory without a row, which the next collection takes. The row says which
*place* (a directory in ``snapshots/``) has the changes. Cloning moves nothing: the place so far
becomes a *base*, a lower of both, and both get a new place.
"""

from __future__ import annotations

import os
import time

from cowstore.database import pack, unpack
from cowstore.errors import NotFound, StoreError
from cowstore.layout import owns_all
from cowstore.locks import JOURNAL, check_snapshot_free, commit_lock
from cowstore.types import Image, Lowers, Snapshot, escaped
from cowstore.uppers import look_like
from cowstore.viewformat import root_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from typing import Any

    from cowstore.store import Store

_COLUMNS = "id, image, layers, chain, bases, parent, created_at, place"
#: What a union over any image is told: an upper then never refers to what lies beneath it,
#: and a commit reads nothing else.
_OPTIONS = ("redirect_dir=copy",)


def lowers(store: Store, image: Image, *, view: bool) -> Lowers:
    """See ``Store.lowers``."""
    return _lowers_of(store, image.layers, image.chain, view=view)


def _lowers_of(store: Store, layers: Sequence[str], chain: str, *, view: bool) -> Lowers:
    from cowstore import caches

    all_owners = owns_all()
    words = _OPTIONS if all_owners else (*_OPTIONS, "xattr_permissions=2")
    if view:
        return Lowers((caches.view_path(store, layers, chain),), words, True)
    flavour = "plain" if all_owners else "override"
    return Lowers((caches.tree_path(store, layers, chain, flavour),), words, False)


#: First kernels with data-only lowers, and with those led to by marks of users (overlayfs.rst).
_DATA_ONLY, _USERS_DATA_ONLY = (6, 5), (6, 16)


def tree(store: Store, image: Image, flavour: str) -> Lowers:
    """See ``Store.tree``."""
    from cowstore import caches

    flavour = flavour or ("plain" if owns_all() else "override")
    if flavour != "data":
        path = caches.tree_path(store, image.layers, image.chain, flavour)
        return Lowers((path,), () if flavour == "plain" else ("xattr_permissions=2",), False)
    root = owns_all()
    needed, have = _DATA_ONLY if root else _USERS_DATA_ONLY, _kernel()
    if have < needed:
        wanted = ".".join(map(str, needed))
        raise StoreError(
            f"the kernel's overlayfs has no such data-only lowers before Linux {wanted}",
            "make a plain tree",
        )
    flavour = "data" if root else "userdata"
    path = caches.tree_path(store, image.layers, image.chain, flavour)
    objects = [holder.layout.path("objects") for holder in store.holders()]
    lowerdir = "::".join(map(escaped, (path, *objects)))
    words = () if have >= _USERS_DATA_ONLY else ("metacopy=on",)
    return Lowers((path,), (f"lowerdir={lowerdir}", *words, *(() if root else ("userxattr",))))


def _kernel() -> tuple[int, int]:
    major, minor, *_ = os.uname().release.split(".")
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def _is_id(text: str) -> bool:
    rest = text.replace("_", "").replace(".", "").replace("-", "")
    return len(text) <= 64 and text.isascii() and text[:1].isalnum() and rest.isalnum()


def check_id(text: str) -> str:
    """A snapshot's id.

    Raises:
        StoreError: not one.
    """
    if not _is_id(text):
        raise StoreError(
            f"{text!r}: not an id for a snapshot", "letters, digits, '.', '_' and '-', 64 at most"
        )
    return text


def create(store: Store, image: Image, id: str | None, quota: int = 0) -> Snapshot:
    """See ``Store.snapshot_create``."""
    name = check_id(id) if id is not None else os.urandom(6).hex()
    if quota:
        from cowstore.quota import check

        check(store.layout.root)
    below = lowers(store, image, view=True)
    place, made = _insert(store, name, image, below.places[0], quota)
    return _snapshot(store, name, image.id, [], "", made, place, below)


def _insert(store: Store, name: str, image: Image, view: str, quota: int) -> tuple[str, float]:
    """The row and the directories; (place, time)."""
    now = time.time()
    with store.database.write() as db:
        if db.execute("SELECT 1 FROM snapshots WHERE id=?", (name,)).fetchone():
            raise StoreError(f"there is a snapshot {name} already", "choose another --id")
        if not db.execute("SELECT 1 FROM images WHERE id=?", (image.id,)).fetchone():
            # In a store that is only read: its layers cannot vanish from here.
            store.resolve(image.id)
        place = _new_place(store, name)
        look_like(store.layout.path("snapshots", place, "upper"), root_of(view))
        if quota:
            _limit(store, place, quota)
        chain = (pack(image.layers), image.chain)
        _add_row(db, name, image.id, chain, [], "", now, place)
    return place, now


def _limit(store: Store, place: str, size: int, project: int = 0) -> None:
    """Bound a place that was just made; it goes again if that fails."""
    from cowstore.quota import limit

    path = store.layout.snapshot(place)
    try:
        limit(path, size, project)
    except BaseException:
        from cowstore.layout import remove_tree

        remove_tree(path)
        raise


def _add_row(
    db: sqlite3.Connection,
    name: str,
    image: str,
    chain: tuple[str, str],
    bases: list[str],
    parent: str,
    now: float,
    place: str,
) -> None:
    db.execute(
        "INSERT INTO snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (name, image, *chain, pack(bases), parent, now, place),
    )


def _new_place(store: Store, name: str) -> str:
    """Make the directories of a snapshot; called in the transaction that records them."""
    place = name
    if os.path.lexists(store.layout.snapshot(place)):
        place = f"{name}~{os.urandom(4).hex()}"  # an older one of that name is a base now
    _make_directories(store.layout.snapshot(place))
    return place


def _make_directories(path: str) -> None:
    os.mkdir(path, 0o700)
    # The upper shows through as the root of the container: everybody may enter it.
    os.mkdir(f"{path}/upper", 0o755)
    os.chmod(f"{path}/upper", 0o755)
    os.mkdir(f"{path}/work", 0o700)


def _snapshot(
    store: Store,
    name: str,
    image: str,
    bases: list[str],
    parent: str,
    created_at: float,
    place: str,
    below: Lowers,
) -> Snapshot:
    if bases:
        frozen = tuple(f"{store.layout.snapshot(base)}/upper" for base in bases)
        below = Lowers((*frozen, *below.places), below.options, below.view)
    return Snapshot(name, image, store.layout.snapshot(place), below, parent, created_at)


def _from_row(store: Store, row: tuple[Any, ...]) -> Snapshot:
    name, image, layers, chain, bases, parent, created_at, place = row
    below = _lowers_of(store, unpack(layers), chain, view=True)
    return _snapshot(store, name, image, unpack(bases), parent, created_at, place, below)


def find(store: Store, id: str) -> Snapshot:
    """See ``Store.snapshot``.

    Raises:
        NotFound: none, or several begin like that.
    """
    row = store.database.row(f"SELECT {_COLUMNS} FROM snapshots WHERE id=?", id)
    if row is None and _is_id(id):
        rows = store.database.rows(
            f"SELECT {_COLUMNS} FROM snapshots WHERE substr(id, 1, ?)=? LIMIT 2", len(id), id
        )
        if len(rows) > 1:
            raise NotFound(f"several snapshots begin with {id}", "give more of the id")
        row = rows[0] if rows else None
    if row is None:
        raise NotFound(f"no snapshot is called {id}", "cowstore snapshot list")
    return _from_row(store, row)


def all_snapshots(store: Store) -> list[Snapshot]:
    """See ``Store.snapshots``."""
    rows = store.database.rows(f"SELECT {_COLUMNS} FROM snapshots ORDER BY created_at")
    return [_from_row(store, row) for row in rows]


def clone(store: Store, id: str, new: str | None) -> Snapshot:
    """See ``Store.snapshot_clone``."""
    from cowstore.project import project_of
    from cowstore.quota import usage

    name = check_id(new) if new is not None else os.urandom(6).hex()
    original = find(store, id)
    bound = usage(original.place)
    with check_snapshot_free(store.layout, original.id) as lock:
        with store.database.write() as db:
            row = db.execute(
                "SELECT image, layers, chain, bases, place FROM snapshots WHERE id=?",
                (original.id,),
            ).fetchone()
            if row is None:
                raise NotFound(f"no snapshot is called {id}", "cowstore snapshot list")
            if db.execute("SELECT 1 FROM snapshots WHERE id=?", (name,)).fetchone():
                raise StoreError(f"there is a snapshot {name} already", "choose another --id")
            image, layers, chain, listed, place = row
            bases = unpack(listed)
            if os.listdir(store.layout.path("snapshots", place, "upper")):
                bases = [place, *bases]
                fresh = _new_place(store, original.id)
                _same_root(store, place, fresh)
                if bound is not None:
                    _limit(store, fresh, bound.limit, project_of(store.layout.snapshot(place)))
                db.execute(
                    "UPDATE snapshots SET bases=?, place=? WHERE id=?",
                    (pack(bases), fresh, original.id),
                )
            mine = _new_place(store, name)
            _same_root(store, place, mine)
            if bound is not None:
                _limit(store, mine, bound.limit)
            _add_row(db, name, image, (layers, chain), bases, original.id, time.time(), mine)
        lock.release(remove=True)
    return find(store, name)


def _same_root(store: Store, old: str, new: str) -> None:
    """A new upper's root looks like the old one's: owner, mode, attributes, but for our marks."""
    source, target = (store.layout.path("snapshots", place, "upper") for place in (old, new))
    st = os.stat(source)
    for text in os.listxattr(source):
        if not text.endswith((".opaque", ".origin", ".impure")):
            os.setxattr(target, text, os.getxattr(source, text))
    if (st.st_uid, st.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(target, st.st_uid, st.st_gid)
    os.chmod(target, st.st_mode & 0o7777)
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))


def live_places(db: sqlite3.Connection) -> set[str]:
    """Places that a snapshot has its changes in, now or as a base."""
    found: set[str] = set()
    for place, listed in db.execute("SELECT place, bases FROM snapshots").fetchall():
        found.add(place)
        found.update(unpack(listed))
    return found


def remove(store: Store, id: str) -> None:
    """See ``Store.snapshot_remove``."""
    from cowstore.collect import empty_trash, to_trash
    from cowstore.project import project_of
    from cowstore.quota import forget

    store.layout.use_reserve()
    row = store.database.row("SELECT id FROM snapshots WHERE id=?", id)
    name = row[0] if row else find(store, id).id
    with (
        check_snapshot_free(store.layout, name) as lock,
        commit_lock(store.layout, name, removing=True) as reading,
    ):
        with store.session() as session:
            # A crash between row and directories leaves them to the sweep, which a journal calls.
            with open(session.place(JOURNAL), "w", encoding="ascii"):
                pass
            with store.database.write() as db:
                before = live_places(db)
                db.execute("DELETE FROM snapshots WHERE id=?", (name,))
                gone = before - live_places(db)
            projects = {project_of(store.layout.snapshot(place)) for place in gone} - {0}
            for place in gone:
                to_trash(store, store.layout.snapshot(place))
        reading.release(remove=True)
        lock.release(remove=True)
    empty_trash(store)
    store.layout.keep_reserve()
    for project in projects:
        forget(store.layout.root, project)
