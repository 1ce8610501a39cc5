"""Unions of images and snapshots: the store's side of a mount.

A mounted snapshot is a held lock, a mounted image a session that keeps its layers; both are
descriptors that the union's daemon inherits, and so end with it.
"""

from __future__ import annotations

import os

from cowstore import early
from cowstore.errors import NotFound, StoreError
from cowstore.locks import Lock, Session, check_snapshot_free
from cowstore.project import project_of
from cowstore.types import Image, Snapshot, escaped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from cowstore.store import Store


def find_mountable(store: Store, what: str) -> Snapshot | Image:
    """A snapshot, or else an image, of that name.

    Raises:
        NotFound: neither.
    """
    try:
        return store.snapshot(what)
    except NotFound:
        pass
    try:
        return store.resolve(what)
    except NotFound:
        raise NotFound(
            f"neither a snapshot nor an image is called {what}", "cowstore snapshot list"
        ) from None


def mount(
    store: Store, what: str, mountpoint: str, options: Sequence[str], *, foreground: bool = False
) -> int:
    """See ``Store.mount``; with ``foreground`` it serves until unmounted.

    Raises:
        UserError: nothing is mounted then.
    """
    found = find_mountable(store, what)
    held = hold(store, found)
    try:
        task = _task(store, found, mountpoint, options, held)
        if foreground or not early.is_waiting():
            return _mount(store, task, foreground=foreground)
        if isinstance(held, Lock):
            held.lend()
        code = early.hand_over(task)
        if code == 0 and isinstance(held, Session):
            held.abandon()  # it is the daemon's
            held = None
        return code
    finally:
        release(held)


def hold(store: Store, what: Snapshot | Image) -> Lock | Session | None:
    """Keep what is about to be mounted from being removed, as long as this process (or a child).

    Raises:
        StoreError: the snapshot is mounted already, or is no more what it was when it was found.
    """
    if isinstance(what, Snapshot):
        return _hold_snapshot(store, what)
    if store.layout.read_only:
        return None
    session = Session(store.layout, what.digests)
    try:
        for diff_id in what.layers:
            store.holder_of_layer(diff_id)
    except BaseException:
        session.close()
        raise
    return session


def _hold_snapshot(store: Store, snapshot: Snapshot) -> Lock:
    lock = check_snapshot_free(store.layout, snapshot.id)
    try:
        row = store.database.row("SELECT place FROM snapshots WHERE id=?", snapshot.id)
        if row is None:
            lock.release(remove=True)
            raise NotFound(f"no snapshot is called {snapshot.id}", "cowstore snapshot list")
        if store.layout.snapshot(row[0]) != snapshot.place:
            # Its upper is a base of both now: nobody may write to that.
            raise StoreError(f"snapshot {snapshot.id} has just been cloned", "try again")
    except BaseException:
        lock.release()
        raise
    return lock


def release(held: Lock | Session | None) -> None:
    """Let go of what ``hold`` gave."""
    if isinstance(held, Session):
        held.close()
    elif held is not None:
        held.release()


def _mount(store: Store, task: dict[str, Any], *, foreground: bool) -> int:
    """Mount from this process, which holds what is to be held."""
    from cowstore.serving import union_options
    from unionfs.daemon import mount as mount_union

    options = union_options(
        task["words"], task["mountpoint"], task["fsname"], task["roots"], foreground=foreground
    )
    if task["quota"]:
        from cowstore import quota

        quota.obey()
    # The connection to the database does not survive the fork that follows.
    store.close()
    return mount_union(options)


def _task(
    store: Store,
    what: Snapshot | Image,
    mountpoint: str,
    words: Sequence[str],
    held: Lock | Session | None,
) -> dict[str, Any]:
    """What the union's daemon is to do; see ``cowstore.early.hand_over``."""
    _check_words(words)
    task: dict[str, Any] = {"mountpoint": mountpoint, "snapshot": "", "lock": "", "quota": False}
    if isinstance(held, Lock):
        task |= {"lock": held.path, "inode": os.fstat(held.fd).st_ino}
    elif held is not None:
        task["lock"] = held.lock
    if isinstance(what, Snapshot):
        below, name = what.lowers, what.id
        told = [*what.options, *words]
        task |= {"snapshot": what.id, "quota": bool(project_of(what.place))}
    else:
        below, name = store.lowers(what), (what.names or (what.short_id,))[0]
        told = [f"lowerdir={':'.join(map(escaped, below.places))}", *below.options, *words]
    roots = [holder.layout.root for holder in store.holders()] if below.view else []
    return task | {"words": told, "fsname": f"cowstore:{name}", "roots": roots}


def _check_words(words: Sequence[str]) -> None:
    for word in ",".join(words).split(","):
        if word.partition("=")[0] in ("lowerdir", "upperdir", "workdir"):
            raise StoreError(f"-o {word}: the layers are the image's", "pyunion mount takes others")
