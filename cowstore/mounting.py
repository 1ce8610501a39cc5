"""Unions of images and snapshots: the store's side of a mount.

A mounted snapshot is a held lock, a mounted image a session with leases; both are
descriptors that the union's daemon inherits, and so end with it.
"""

from __future__ import annotations

from cowstore import early
from cowstore.errors import NotFound, StoreError
from cowstore.locks import Lock, Session, check_snapshot_free, lock_of_snapshot
from cowstore.types import Image, Lowers, Snapshot, escaped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowstore.store import Store
    from unionfs.options import MountOptions


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
    if isinstance(found, Snapshot) and not foreground:
        code = _mount_early(found, store, mountpoint, options)
        if code is not None:
            return code
    early.dismiss()
    held = hold(store, found)
    try:
        return _mount(found, store, mountpoint, options, foreground)
    finally:
        release(held)


def hold(store: Store, what: Snapshot | Image) -> Lock | Session | None:
    """Keep what is about to be mounted from being removed, as long as this process (or a child).

    Raises:
        StoreError: the snapshot is mounted already.
    """
    if isinstance(what, Snapshot):
        return check_snapshot_free(store.layout, what.id)
    if store.layout.read_only:
        return None
    session = Session(store.layout)
    try:
        for diff_id in store.database.lease_image(session.name, what.layers, what.chain):
            store.holder_of_layer(diff_id)  # one that is only read has it
    except BaseException:
        session.close()
        raise
    return session


def release(held: Lock | Session | None) -> None:
    """Let go of what ``hold`` gave."""
    if isinstance(held, Session):
        held.close()
    elif held is not None:
        held.release()


def _mount(
    what: Snapshot | Image,
    store: Store,
    mountpoint: str,
    words: Sequence[str],
    foreground: bool,
) -> int:
    from unionfs.daemon import mount as mount_union

    below: Lowers
    if isinstance(what, Snapshot):
        below, name = what.lowers, what.id
        told = [*what.options, *words]
    else:
        below, name = store.lowers(what), (what.names or (what.short_id,))[0]
        listed = ":".join(map(escaped, below.places))
        told = [f"lowerdir={listed}", *below.options, *words]
    _check_words(words)
    roots = _roots_of(store) if below.view else []
    options = union_options(told, mountpoint, f"cowstore:{name}", roots, foreground=foreground)
    if isinstance(what, Snapshot) and _has_quota(what):
        from cowstore import quota

        quota.obey()
    # The connection to the database does not survive the fork that follows.
    store.close()
    return mount_union(options)


def _mount_early(what: Snapshot, store: Store, mountpoint: str, words: Sequence[str]) -> int | None:
    """Have a process that was forked early mount; None: there is none."""
    _check_words(words)
    return early.hand_over(
        {
            "words": [*what.options, *words],
            "mountpoint": mountpoint,
            "fsname": f"cowstore:{what.id}",
            "roots": _roots_of(store) if what.lowers.view else [],
            "lock": lock_of_snapshot(store.layout, what.id),
            "snapshot": what.id,
            "quota": _has_quota(what),
        }
    )


def _has_quota(what: Snapshot) -> bool:
    from cowstore import quota

    return bool(quota.project_of(what.place))


def _roots_of(store: Store) -> list[str]:
    """Roots of all stores that a store looks into."""
    return [holder.layout.root for holder in store.holders()]


def _check_words(words: Sequence[str]) -> None:
    for word in ",".join(words).split(","):
        if word.partition("=")[0] in ("lowerdir", "upperdir", "workdir"):
            raise StoreError(f"-o {word}: the layers are the image's", "pyunion mount takes others")


def union_options(
    words: list[str], mountpoint: str, fsname: str, roots: Sequence[str], *, foreground: bool
) -> MountOptions:
    """What the union's daemon is told; ``roots`` of stores, if one of the lowers is a view."""
    from unionfs import options as mount_options

    options = mount_options.build(words, lowers=[], upper=None, work=None, mountpoint=mountpoint)
    if roots:
        from cowstore.viewlayer import opener

        options = options.replace(union=options.union.replace(open_layer=opener(roots)))
    if options.unknown:
        raise StoreError(f"unknown option: {', '.join(options.unknown)}", "man pyunion-mount")
    return mount_options.check(
        options.replace(foreground=foreground, fsname=options.fsname or fsname)
    )
