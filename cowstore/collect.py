"""Removing images, and what nothing refers to any more.

A session's journal says that it put something into the store before it was recorded; what only
has leases leaves nothing behind.

Mark: images, snapshots, leases and sessions keep layers and blobs; layers keep objects. Rows go
first, in one transaction; files after it. An object is left if its time is not older than the
oldest living session: that session wrote it, or found it and touched it. What goes is renamed into
``trash/`` and looked at once more there before it is unlinked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cowstore import digest as digests
from cowstore import ready
from cowstore.database import OF_NAMED_INDEX, unpack
from cowstore.endings import RESUME
from cowstore.errors import Damaged, NotFound, StoreError
from cowstore.layout import remove_tree
from cowstore.locks import JOURNAL, Lock, Session, kept
from cowstore.manifest import Manifest
from cowstore.objects import all_names
from unionfs.sys import calls

if TYPE_CHECKING:
    from cowstore.store import Store

_REALTIME_COARSE: Final = 5  # include/uapi/linux/time.h


@dataclass(slots=True)
class Freed:
    """What a collection removed."""

    layers: int = 0
    objects: int = 0
    blobs: int = 0
    others: int = 0
    bytes: int = 0


# -- sessions ----------------------------------------------------------------------------


@dataclass(slots=True)
class Living:
    """Sessions whose process lives.

    Attributes:
        names: of all.
        oldest: when the first of those began that put something in, in ns; or now.
        kept: digests of layers and chains that the others keep.
    """

    names: set[str]
    oldest: int
    kept: set[str]


def living_sessions(store: Store, now: int, ending: str = "") -> Living:
    """Those of now, but for one that is ``ending``."""
    found = Living(set(), now, set())
    for name in os.listdir(store.layout.path("tmp")):
        path = store.layout.path("tmp", name, "lock")
        if name == ending:
            continue
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            lock = Lock.acquire(path, wait=False, create=False)
            if lock is not None:
                lock.release()
                continue
            began = os.stat(path).st_mtime_ns
            found.names.add(name)
            if keeps := kept(store.layout, name):
                found.kept.update(keeps)
            else:
                found.oldest = min(found.oldest, began)
    return found


# -- the collection ----------------------------------------------------------------------


@dataclass(slots=True)
class _Marked:
    layers: set[str]
    blobs: set[str]
    chains: set[str]
    oldest: int


@contextlib.contextmanager
def sweeping(store: Store) -> Iterator[str]:
    """A session whose journal makes the next command finish what is interrupted in here."""
    store.layout.use_reserve()
    session = Session(store.layout)
    with open(session.place(JOURNAL), "w", encoding="ascii"):
        pass
    try:
        yield session.name
    except BaseException:
        session.abandon()
        raise
    session.close()
    store.layout.keep_reserve()


def collect(store: Store, *, resumable: bool = True, ending: str = "") -> Freed:
    """Remove what nothing refers to.

    Args:
        resumable: keep layers of interrupted pulls, so that they can go on.
        ending: a session that lives, but has given up what it made.
    """
    if not ending:
        with sweeping(store) as name:
            return collect(store, resumable=resumable, ending=name)
    freed = Freed()
    started = _now_of_files()
    with contextlib.ExitStack() as held, store.database.write() as db:
        # Sessions that come later find out what has gone.
        gate = Lock.acquire(store.layout.path("locks", "sessions"))
        assert gate is not None
        held.enter_context(gate)
        marked = _mark(db, living_sessions(store, started, ending), resumable)
        for (diff_id,) in db.execute("SELECT diff_id FROM layers").fetchall():
            if diff_id not in marked.layers:
                db.execute("DELETE FROM layers WHERE diff_id=?", (diff_id,))
                freed.layers += 1
        for (digest,) in db.execute("SELECT digest FROM blobs").fetchall():
            if digest not in marked.blobs:
                db.execute("DELETE FROM blobs WHERE digest=?", (digest,))
        db.execute("DELETE FROM cache WHERE image NOT IN (SELECT id FROM images)")
        db.execute(
            "DELETE FROM members WHERE image NOT IN (SELECT id FROM images) OR index_digest NOT IN"
            " (SELECT index_digest FROM names WHERE index_digest IS NOT NULL)"
        )
        _bury_snapshots(store, db)
        _sweep_caches(store, marked, freed)  # whoever wants one again has to wait for the gate
    ready.forget(store.layout)
    _sweep_layers(store)
    _sweep_blobs(store, marked, freed)
    _sweep_objects(store, marked, freed)
    empty_trash(store)
    return freed


def _now_of_files() -> int:
    """The time, in ns, once files that are touched from now on cannot look older.

    The kernel stamps them by a clock that goes in steps of up to 10 ms (CLOCK_REALTIME_COARSE).
    """
    now = time.time_ns()
    while time.clock_gettime_ns(_REALTIME_COARSE) < now:
        time.sleep(0.001)
    return now


def _mark(db: sqlite3.Connection, living: Living, resumable: bool) -> _Marked:
    for (session,) in db.execute("SELECT DISTINCT session FROM leases").fetchall():
        if session not in living.names and not (session == RESUME and resumable):
            db.execute("DELETE FROM leases WHERE session=?", (session,))
    layers: set[str] = set()
    blobs: set[str] = set()
    chains: set[str] = set(living.kept)
    for listed, listed_blobs in db.execute("SELECT layers, blobs FROM images").fetchall():
        chain = unpack(listed)
        layers.update(chain)
        blobs.update(unpack(listed_blobs))
        chains.add(digests.chain_of(chain))
    for (listed,) in db.execute("SELECT layers FROM snapshots").fetchall():
        chain = unpack(listed)
        layers.update(chain)
        chains.add(digests.chain_of(chain))
    leased = db.execute("SELECT kind, ref FROM leases").fetchall()
    for kind, ref in (*leased, *(("layer", digest) for digest in living.kept)):
        if kind == "layer":
            layers.add(ref)
            for (digest,) in db.execute("SELECT digest FROM blobs WHERE diff_id=?", (ref,)):
                blobs.add(digest)
        elif kind == "blob":
            blobs.add(ref)
        elif kind == "chain":  # of a mount by a version before 3
            chains.add(ref)
    for (index,) in db.execute("SELECT index_digest FROM names").fetchall():
        if index is not None:
            blobs.add(index)
    return _Marked(layers, blobs, chains, living.oldest)


def _bury_snapshots(store: Store, db: sqlite3.Connection) -> None:
    """Directories without a row: their creation or removal was cut off (both hold this lock)."""
    from cowstore.snapshots import live_places

    live = live_places(db)
    for name in os.listdir(store.layout.path("snapshots")):
        if name not in live:
            to_trash(store, store.layout.snapshot(name))


def _sweep_layers(store: Store) -> None:
    for name in os.listdir(store.layout.path("layers")):
        diff_id = f"sha256:{name}"
        if store.database.has_layer(diff_id):
            continue
        # Whoever holds the lock is just bringing this layer in.
        lock = Lock.acquire(store.layout.path("locks", f"layer-{name}"), wait=False)
        if lock is not None:
            if not store.database.has_layer(diff_id):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(store.layout.layer(diff_id))
            lock.release(remove=True)


def _sweep_caches(store: Store, marked: _Marked, freed: Freed) -> None:
    for kind in ("views", "trees"):
        for name in os.listdir(store.layout.path(kind)):
            if f"sha256:{name.partition('.')[0]}" in marked.chains:
                continue
            lock = Lock.acquire(store.layout.path("locks", f"{kind}-{name}"), wait=False)
            if lock is not None:
                to_trash(store, store.layout.path(kind, name))
                freed.others += 1
                lock.release(remove=True)


def _sweep_blobs(store: Store, marked: _Marked, freed: Freed) -> None:
    top = store.layout.path("blobs/sha256")
    for sub in os.listdir(top):
        for name in os.listdir(os.path.join(top, sub)):
            digest = f"sha256:{name}"
            path = os.path.join(top, sub, name)
            if digest in marked.blobs or store.database.row(
                "SELECT 1 FROM blobs WHERE digest=?", digest
            ):
                continue
            freed.blobs += _free(store, path, marked, freed)


def _free(store: Store, path: str, marked: _Marked, freed: Freed) -> bool:
    """Remove a file that nothing refers to, unless a session uses it; whether it went."""
    try:
        size = os.stat(path, follow_symlinks=False).st_size
        gone = _discard(store, path, marked.oldest)
    except FileNotFoundError:
        return False  # another sweep was quicker
    if gone:
        freed.bytes += size
    return gone


def _sweep_objects(store: Store, marked: _Marked, freed: Freed) -> None:
    live: set[str] = set()
    for (diff_id,) in store.database.rows("SELECT diff_id FROM layers"):
        try:
            with Manifest(store.layout.layer(diff_id)) as manifest:
                live.update(manifest.names())
        except Damaged:
            # What it kept is not known: nothing may be removed until it is mended.
            return
    for name in all_names(store.layout):
        if name not in live:
            freed.objects += _free(store, store.layout.object(name), marked, freed)


def _discard(store: Store, path: str, oldest: int) -> bool:
    """Unlink a file that no session younger than ``oldest`` has touched; whether it went."""
    if os.stat(path, follow_symlinks=False).st_mtime_ns >= oldest:
        return False
    trash = store.layout.path("trash", os.urandom(8).hex())
    os.rename(path, trash)
    if os.stat(trash, follow_symlinks=False).st_mtime_ns >= oldest:
        # Touched in between: back, unless its user has written another already.
        with contextlib.suppress(FileExistsError):
            calls.renameat2(-100, trash.encode(), -100, path.encode(), calls.RENAME_NOREPLACE)
        return False
    os.unlink(trash)
    return True


def to_trash(store: Store, path: str) -> None:
    """Take something out of its place at once; it is deleted when the trash is emptied."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, store.layout.path("trash", os.urandom(8).hex()))


def empty_trash(store: Store) -> None:
    """Delete what was taken out of its place; left to another process if one is at it."""
    lock = Lock.acquire(store.layout.path("locks", "trash"), wait=False)
    if lock is None:
        return  # another is at it
    with lock:
        for name in os.listdir(store.layout.path("trash")):
            path = store.layout.path("trash", name)
            try:
                if os.path.isdir(path) and not os.path.islink(path):
                    remove_tree(path)
                else:
                    os.unlink(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EBUSY, errno.EPERM, errno.EACCES):
                    raise


# -- images ------------------------------------------------------------------------------


def remove_image(store: Store, name: str, *, force: bool) -> list[str]:
    """See ``Store.remove``."""
    with sweeping(store) as session:
        with store.database.write() as db:
            said = _untag(db, name) or _remove_by_id(store, db, name, force)
        collect(store, ending=session)
    return said


def _untag(db: sqlite3.Connection, name: str) -> list[str]:
    """Take a name away, and the image if it was the last; nothing if there is no such name."""
    from cowstore.store import candidates

    for candidate in candidates(name):
        row = db.execute(
            "SELECT image, index_digest FROM names WHERE name=?", (candidate,)
        ).fetchone()
        if row is None:
            continue
        db.execute("DELETE FROM names WHERE name=?", (candidate,))
        said = [f"untagged {candidate}"]
        others = db.execute("SELECT image FROM members WHERE index_digest=?", (row[1],)).fetchall()
        for image in dict.fromkeys((row[0], *(image for (image,) in others))):
            if not _is_named(db, image) and not _in_use(db, image):
                db.execute("DELETE FROM images WHERE id=?", (image,))
                said.append(f"deleted {image}")
        return said
    return []


def _is_named(db: sqlite3.Connection, image: str) -> bool:
    query = f"SELECT 1 FROM names WHERE image=? UNION {OF_NAMED_INDEX} WHERE members.image=?"
    return db.execute(query, (image, image)).fetchone() is not None


def _in_use(db: sqlite3.Connection, image: str) -> bool:
    found = db.execute("SELECT 1 FROM snapshots WHERE image=?", (image,)).fetchone()
    return found is not None


def _remove_by_id(store: Store, db: sqlite3.Connection, name: str, force: bool) -> list[str]:
    found = store._resolve_here(name)
    if found is None:
        raise NotFound(f"no image is called {name}", "cowstore images")
    if len(found.names) > 1 and not force:
        raise StoreError(
            f"{found.short_id} has {len(found.names)} names: {', '.join(found.names)}",
            "remove one of them, or all with --force",
        )
    if _in_use(db, found.id):
        raise StoreError(
            f"{found.short_id} is used by a snapshot", "cowstore snapshot list tells which"
        )
    db.execute("DELETE FROM names WHERE image=?", (found.id,))
    db.execute("DELETE FROM images WHERE id=?", (found.id,))
    return [*(f"untagged {n}" for n in found.names), f"deleted {found.id}"]


def prune(store: Store) -> tuple[list[str], Freed]:
    """Remove images without a name that nothing uses, then collect; (their ids, what it freed)."""
    gone = []
    with sweeping(store) as session:
        with store.database.write() as db:
            rows = db.execute(
                "SELECT id FROM images WHERE id NOT IN (SELECT image FROM names)"
                f" AND id NOT IN ({OF_NAMED_INDEX})"
                " AND id NOT IN (SELECT image FROM snapshots)"
                " AND id NOT IN (SELECT ref FROM leases WHERE kind='image')"
            ).fetchall()
            for (image,) in rows:
                db.execute("DELETE FROM images WHERE id=?", (image,))
                gone.append(image)
        _drop_partials(store)
        return gone, collect(store, resumable=False, ending=session)


def _drop_partials(store: Store) -> None:
    """Remove beginnings of blobs that nobody is just fetching."""
    for name in os.listdir(store.layout.path("partial")):
        lock = Lock.acquire(store.layout.path("locks", f"partial-{name}"), wait=False)
        if lock is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(store.layout.path("partial", name))
            lock.release(remove=True)
