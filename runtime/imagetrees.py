"""Images as directory trees, for what cannot read an index: the kernel's overlayfs, and copies.

A tree for overlayfs is made once, beneath the containers that use it, and named after the chain
of layers and the ids it is written with. Where the kernel has data-only lowers that users may lead
to (Linux 6.16, overlayfs.rst), its files are empty and lead to the store's objects; else they are
whole. Whoever takes one holds the directory of trees shared until it is written down that it is
used; ``sweep`` holds it alone.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from binascii import crc32

from runtime import drafts, images, prepare
from runtime.errors import RunError
from runtime.removal import remove_directory
from runtime.userns import run_mapped
from unionfs import formats
from unionfs.errors import in_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cowstore import Store
    from cowstore.manifest import Entry
    from runtime.facts import HostFacts
    from runtime.images import Source

#: The first kernel in which marks of users lead to data-only lowers.
_USERS_DATA_ONLY = (6, 16)


def lock(root: str, *, shared: bool) -> int:
    """Descriptor of the directory of trees; -1: not ``shared``, and somebody uses it."""
    os.makedirs(f"{root}/trees", 0o700, exist_ok=True)
    fd = os.open(f"{root}/trees", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return -1
    return fd


def beneath(root: str, source: Source, image: str, host: HostFacts, *, single: bool) -> Source:
    """The same source for overlayfs: the image's tree in place of its index, made if need be.

    ``single``: all files are the caller's, who has one id. The caller has the ``lock``.

    Raises:
        RunError, StoreError, OSError: it cannot be made.
    """
    (view,) = source.lowers
    flavour = "userdata" if host.kernel >= _USERS_DATA_ONLY else "plain"
    who = host.callers
    ids = (who.uid, who.gid, who.sub_uids, who.sub_gids, who.own_uids, who.own_gids)
    mapping = "single" if single else f"{crc32(repr(ids).encode()):08x}"
    place = f"{root}/trees/{os.path.basename(view)}.{flavour}.{mapping}"
    if not os.path.isdir(place):
        with images.opened() as store:
            _make_once(store, image, place, flavour, single)
    _dress(source.upper, place)
    roots = source.roots if flavour == "userdata" else ()
    return source.replace(lowers=(place,), options=(), view=False, roots=roots, storage="kernel")


def copied(upper: str, image: str, *, single: bool, durable: bool) -> None:
    """Write all of an image to ``upper``, which is not there yet; ``durable``: it is on disk then.

    Raises:
        RunError, StoreError, OSError: it cannot be written; nothing of it stays.
    """
    _, session = images.held(image)
    try:
        with images.opened() as store:
            _make(store, image, upper, "plain", single, durable=durable)
    finally:
        session.close()


def _make_once(store: Store, image: str, place: str, flavour: str, single: bool) -> None:
    from cowstore.locks import Lock

    held = Lock.acquire(store.layout.path("locks", f"trees-{os.path.basename(place)}"))
    assert held is not None
    try:
        if not os.path.isdir(place):
            _make(store, image, place, flavour, single, durable=True)
    finally:
        held.release(remove=True)


def _make(
    store: Store, image: str, place: str, flavour: str, single: bool, *, durable: bool
) -> None:
    from cowstore.tree import build_tree
    from unionfs.sys.calls import syncfs

    found = store.resolve(image)
    if sys.stderr.isatty():
        name = found.names[0] if found.names else found.id
        sys.stderr.write(f"pyrun: laying out the files of {name}\n")
    merged = store.merged(found.layers, _places())
    draft = drafts.name(place)

    if os.path.lexists(draft):
        remove_directory(draft)  # of a process that had our number

    def make() -> None:
        try:
            build_tree(store, merged, draft, flavour, owners=not single, lenient=True)
        except OSError as error:
            raise RunError(f"{place}: the image cannot be laid out: {in_words(error)}") from None
        if durable:
            parent = os.open(os.path.dirname(place), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            syncfs(parent)
            os.close(parent)
        os.rename(draft, place)

    try:
        run_mapped(make)
    except BaseException:
        remove_directory(draft)
        raise


def _places() -> list[Entry]:
    """What an image may lack of ``prepare.places``: a lower beneath this one has no such leads."""
    from cowstore.manifest import Entry

    return [
        *(Entry(name.encode(), stat.S_IFDIR, 0o755) for name in prepare.PLACES),
        *(Entry(name.encode(), stat.S_IFREG, 0o644) for name in prepare.PLACES_OF_FILES),
    ]


def _dress(upper: str, place: str) -> None:
    """Give an upper the owner and mode of the tree's root: they are what overlayfs shows."""
    try:
        os.removexattr(upper, formats.OVERRIDE_STAT)
    except OSError:
        pass  # it has none

    def dress() -> None:
        like = os.stat(place)
        os.chown(upper, like.st_uid, like.st_gid)
        os.chmod(upper, stat.S_IMODE(like.st_mode))

    owner = os.stat(place)
    if (owner.st_uid, owner.st_gid) == (os.geteuid(), os.getegid()):
        dress()
    else:
        run_mapped(dress)


def sweep(root: str, used: Callable[[], Iterable[str]]) -> None:
    """Remove the trees of images that are no more, and what was cut off while it was made.

    ``used`` tells the paths of those that containers have, once nobody can take another.
    """
    if not drafts.listed(f"{root}/trees"):
        return
    held = lock(root, shared=False)
    if held < 0:
        return  # the next one does it
    try:
        kept = {os.path.basename(path) for path in used()}
        with images.opened() as store:
            chains = {image.chain.partition(":")[2] for image in store.images()}
        for name in os.listdir(f"{root}/trees"):
            if name.endswith(drafts.END) or (
                name not in kept and name.partition(".")[0] not in chains
            ):
                _remove(f"{root}/trees/{name}")
    finally:
        os.close(held)


def _remove(place: str) -> None:
    """It is gone at once, or not: who may not rename it is not its owner."""
    gone = drafts.name(place)

    def rename() -> None:
        os.rename(place, gone)

    try:
        rename()
    except PermissionError:
        run_mapped(rename)
    remove_directory(gone)
