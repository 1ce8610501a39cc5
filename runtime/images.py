"""Where the store of images is joined; nothing else of the runtime knows more than its layers.

Nothing of the store is imported before an image is needed.
"""

from __future__ import annotations

import os

from runtime.errors import RunError
from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cowstore import Image, Snapshot, Store
    from cowstore.layout import Layout
    from cowstore.locks import Session
    from cowstore.ready import Ready


class Source(Record):
    """What a container's root is made of: see ``plan.RootPlan``.

    ``snapshot`` is its name in the store; ``session`` the directory of the store's session that
    keeps an image's layers for a container that has no snapshot. ``storage`` is what the root is
    made with, once that is settled.
    """

    lowers: tuple[str, ...]
    upper: str
    work: str
    options: tuple[str, ...] = ()
    view: bool = False
    snapshot: str = ""
    roots: tuple[str, ...] = ()
    session: str = ""
    storage: str = ""


class _Opened:
    """The store, open from its first use until ``release``: opening it costs 10 ms.

    A database must not cross a fork, so each process has its own; what it has inherited is
    neither used nor closed.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.store: Store | None = None
        self.inherited: list[Store] = []

    def __enter__(self) -> Store:
        if self.store is not None and self.pid != os.getpid():
            self.inherited.append(self.store)
            self.store = None
        if self.store is None:
            _check_installed()
            from cowstore import Store

            place = os.environ.get("PYUNION_STORE", "")
            self.store = Store(place or None).open()
            self.pid = os.getpid()
        return self.store

    def __exit__(self, *_error: object) -> None:
        """It stays open."""

    def release(self) -> None:
        """Close it, before a fork."""
        if self.store is not None and self.pid == os.getpid():
            store, self.store = self.store, None  # a signal may end this in between
            store.close()


_opened = _Opened()
release = _opened.release


def opened() -> _Opened:
    """The store, for a ``with``."""
    return _opened


def _check_installed() -> None:
    try:
        import cowstore  # noqa: F401
    except ImportError as error:
        raise RunError(f"the image store is not installed: {error}") from None


class _Found:
    """What ``find`` knows of an image: for the ``lease`` that may follow.

    ``state`` is that of the database before it was opened; ``known`` is all that is needed.
    """

    def __init__(self, layout: Layout, name: str) -> None:
        from cowstore import ready

        self.layout = layout
        self.name = name
        self.state = ready.state(layout)
        self.known = ready.find(layout, name, self.state)
        self.process: dict[str, Any] = {}


_found: dict[str, _Found] = {}


def find(name: str, pull: str = "missing", platform: str = "") -> tuple[str, dict[str, Any]]:
    """An image's id and the ``config`` part of its configuration; pulled if it is missing.

    Raises:
        RunError: not there, and not to be pulled.
        StoreError: what the store says.
    """
    if pull not in ("missing", "always", "never", "newer"):
        raise RunError(f"--pull {pull}: unknown", "expected always, missing, newer or never")
    _check_installed()
    found = None
    if pull in ("missing", "never") and _opened.store is None:
        from cowstore.layout import Layout, default_root

        found = _Found(Layout(default_root()), name)
        if found.known is not None:
            _found[found.known.image] = found
            return found.known.image, found.known.process
    from cowstore import NotFound, StoreError

    with _opened as store:
        if pull not in ("always", "newer"):
            try:
                image = store.resolve(name)
                process = _process(image)
                if found is not None:
                    found.process = process
                    _found[image.id] = found
                return image.id, process
            except NotFound as error:
                if pull == "never":
                    raise RunError(f"no image {name}", error.hint or "pyrun images") from None
        reference = name if "://" in name else f"docker://{name}"
        try:
            image = store.pull(reference, platform=platform or None, progress=None)
        except StoreError as error:
            raise RunError(
                f"no image {name} here, and it cannot be pulled: {error}", "pyrun images"
            ) from None
        return image.id, _process(image)


def _process(image: Image) -> dict[str, Any]:
    """``image.process`` without the price of ``json``."""
    from runtime import jsonio

    try:
        with open(image.config_path, "rb") as file:
            part = jsonio.loads(file.read()).get("config")
    except (OSError, ValueError, AttributeError):
        part = image.process  # which says what is wrong
    from runtime.imageconfig import checked

    return checked(part)


class NoQuota(Exception):
    """The store's filesystem cannot keep a snapshot to a size."""


def snapshot(image: str, container: str, most: int = 0) -> Source:
    """A writable snapshot of an image, named after its container.

    ``most`` bytes may change; 0: no limit.

    Raises:
        NoQuota: that cannot be enforced.
    """
    with _opened as store:
        found = store.resolve(image)
        if most:
            from cowstore import StoreError

            try:
                made = store.snapshot_create(found, id=container[:32], quota=most)
            except StoreError as error:
                raise NoQuota(str(error)) from None
        else:
            made = store.snapshot_create(found, id=container[:32])
        return Source(
            lowers=tuple(made.lowers.places),
            upper=f"{made.place}/upper",
            work=f"{made.place}/work",
            options=tuple(made.lowers.options),
            view=made.lowers.view,
            snapshot=made.id,
            roots=_roots(store),
        )


def lease(image: str, upper: str, work: str) -> tuple[Source, int]:
    """An image beneath an upper that goes with its container: nothing has to be written out.

    The layers are kept as long as the descriptor is open, which holds the session's lock.
    """
    from cowstore.uppers import look_like

    known, session = held(image)
    try:
        for path in (upper, work):
            os.mkdir(path, 0o755)
        look_like(upper, known.root)
    except BaseException:
        session.close()
        raise
    source = Source(
        lowers=(known.view,),
        upper=upper,
        work=work,
        options=known.options,
        view=True,
        roots=(session.layout.root,),
        session=session.path,
    )
    return source, session.fd


def held(image: str) -> tuple[Ready, Session]:
    """What is known of an image, and what keeps it; the database is asked if need be."""
    found = _found.pop(image, None)
    if found is not None and found.known is not None and _opened.store is None:
        from cowstore import ready

        session = ready.hold(found.layout, found.known)
        if session is not None:
            return found.known, session
    from cowstore.locks import Session
    from cowstore.mounting import hold
    from cowstore.ready import Ready, keep
    from cowstore.viewformat import root_of

    with _opened as store:
        resolved = store.resolve(image)
        made = hold(store, resolved)
        assert isinstance(made, Session)  # the store itself is never only read
        try:
            below = store.lowers(resolved)  # held already: nobody sweeps what this finds or makes
            (view,) = below.places
            known = Ready(b"", image, {}, resolved.digests, view, below.options, root_of(view))
        except BaseException:
            made.close()
            raise
        if found is not None and found.state is not None and found.known is None:
            told = known._replace(state=found.state, process=found.process)
            keep(found.layout, found.name, told)
        return known, made


def hold(source: Source) -> int:
    """A descriptor that keeps a snapshot from being mounted or removed; -1: there is none.

    Raises:
        StoreError: it is mounted already.
    """
    if not source.snapshot:
        return -1
    from cowstore.locks import check_snapshot_free

    with _opened as store:
        return check_snapshot_free(store.layout, source.snapshot).fd


def end_lease(session: str) -> None:
    """Remove a session's directory; one that is left behind the store sweeps by itself."""
    if session:
        from unionfs.trees import remove_tree

        try:
            parent = os.open(os.path.dirname(session), os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        remove_tree(parent, os.path.basename(session))
        os.close(parent)


def usage(size_of: Callable[[str], int]) -> tuple[int, int]:
    """How many images there are, and bytes that the store takes, with the containers' snapshots.

    Raises:
        StoreError: what the store says.
    """
    try:
        from cowstore.layout import default_root
    except ImportError:
        return 0, 0

    if not os.path.isdir(default_root()):
        return 0, 0  # looking would make it
    with _opened as store:
        return len(store.images()), size_of(store.layout.root)


def _roots(store: Store) -> tuple[str, ...]:
    """Of all stores in which the contents of a view may be."""
    return tuple(holder.layout.root for holder in store.holders())


def unknown_source(name: str) -> dict[str, Any]:
    """What is known of a container's part in the store by nothing but its snapshot's whole name."""
    try:
        from cowstore.layout import default_root
    except ImportError:
        return {}
    if not os.path.isdir(default_root()):
        return {}  # looking would make it
    with _opened as store:
        places = [f"{found.place}" for found in store.snapshots() if found.id == name]
    if not places:
        return {}
    upper, work = f"{places[0]}/upper", f"{places[0]}/work"
    return {"snapshot": name, "upper": upper, "work": work, "storage": "kernel"}


def remove_snapshot(name: str) -> None:
    """Give a snapshot back; one that is gone is fine."""
    from cowstore import NotFound

    with _opened as store:
        try:
            store.snapshot_remove(name)
        except NotFound:
            pass


def _changed(store: Store, source: Source, image: str) -> Snapshot:
    """What a container has changed of its image, as a snapshot of it."""
    if source.snapshot:
        return store.snapshot(source.snapshot)
    from cowstore.types import Lowers, Snapshot

    below = Lowers(source.lowers, source.options, source.view)
    return Snapshot("", image, os.path.dirname(source.upper), below)


def commit(
    source: Source, image: str, reference: str, author: str, message: str, changes: tuple[str, ...]
) -> str:
    """An image of a container's changes; its id.

    Of one on the kernel's overlayfs it is for who is root of the container's ids.
    """
    from cowstore import CommitOptions

    with _opened as store:
        options = CommitOptions(author=author, message=message, changes=changes)
        return str(store.commit(_changed(store, source, image), reference, options).id)


def describe(name: str) -> dict[str, Any] | None:
    """An image for ``inspect``; None if there is none of that name."""
    try:
        from cowstore import NotFound
    except ImportError:
        return None
    try:
        with _opened as store:
            image = store.resolve(name)
    except NotFound:
        return None
    return {
        "Id": image.id,
        "Names": list(image.names),
        "Created": image.config.get("created", ""),
        "Architecture": image.config.get("architecture", ""),
        "Os": image.config.get("os", ""),
        "Size": image.size,
        "Layers": list(image.layers),
        "Config": image.process,
    }


def changes(source: Source, image: str) -> list[dict[str, str]]:
    """What a container has changed of its image, as ``Kind`` and ``Path``."""
    from cowstore.report import diff

    with _opened as store:
        if not source.snapshot:
            changed, known = _changed(store, source, image), store.snapshot
            # It has no name in the store: none stands for it.
            store.snapshot = lambda id: known(id) if id else changed  # type: ignore[method-assign]
        return [
            {"Kind": str(item["kind"]), "Path": str(item["path"])}
            for item in diff(store, image, source.snapshot)
        ]
