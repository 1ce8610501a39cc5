"""Where the store of images is joined; nothing else of the runtime knows it.

Nothing of the store is imported before an image is needed.
"""

from __future__ import annotations

import os

from runtime.errors import RunError
from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowstore import Store


class Source(Record):
    """What a container's root is made of: see ``plan.RootPlan``."""

    lowers: tuple[str, ...]
    upper: str
    work: str
    options: tuple[str, ...] = ()
    view: bool = False
    snapshot: str = ""
    roots: tuple[str, ...] = ()


class _Opened:
    """The store, open from its first use until ``release``: opening it costs 10 ms.

    A database must not cross a fork, so each process has its own.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.store: Store | None = None

    def __enter__(self) -> Store:
        if self.store is None or self.pid != os.getpid():
            try:
                from cowstore import Store
            except ImportError as error:
                raise RunError(f"the image store is not installed: {error}") from None
            from pathlib import Path

            place = os.environ.get("PYUNION_STORE", "")
            self.store = (Store(Path(place)) if place else Store()).open()
            self.pid = os.getpid()
        return self.store

    def __exit__(self, *_error: object) -> None:
        """It stays open."""

    def release(self) -> None:
        """Close it, before a fork."""
        if self.store is not None and self.pid == os.getpid():
            self.store.close()
        self.store = None


_opened = _Opened()
release = _opened.release


def find(name: str, pull: str = "missing", platform: str = "") -> tuple[str, dict[str, Any]]:
    """An image's id and the ``config`` part of its configuration; pulled if it is missing.

    Raises:
        RunError: not there, and not to be pulled.
        StoreError: what the store says.
    """
    from cowstore import NotFound, StoreError

    if pull not in ("missing", "always", "never", "newer"):
        raise RunError(f"--pull {pull}: unknown", "expected always, missing, newer or never")
    with _opened as store:
        if pull not in ("always", "newer"):
            try:
                image = store.resolve(name)
                return image.id, dict(image.process)
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
        return image.id, dict(image.process)


def snapshot(image: str, container: str) -> Source:
    """A writable snapshot of an image, named after its container."""
    with _opened as store:
        made = store.snapshot_create(store.resolve(image), id=container[:32])
        return Source(
            lowers=tuple(made.lowers.places),
            upper=str(made.upper),
            work=str(made.work),
            options=tuple(made.lowers.options),
            view=made.lowers.view,
            snapshot=made.id,
            roots=_roots(store) if made.lowers.view else (),
        )


def _roots(store: Store) -> tuple[str, ...]:
    """Of all stores in which the contents of a view may be."""
    from cowstore.viewlayer import roots_of

    return tuple(roots_of(store))


def remove_snapshot(name: str) -> None:
    """Give a snapshot back; one that is gone is fine."""
    from cowstore import NotFound

    with _opened as store:
        try:
            store.snapshot_remove(name)
        except NotFound:
            pass


def commit(name: str, reference: str, author: str, message: str, changes: tuple[str, ...]) -> str:
    """An image of a snapshot's changes; its id."""
    from cowstore import CommitOptions

    with _opened as store:
        options = CommitOptions(author=author, message=message, changes=changes)
        return str(store.commit(store.snapshot(name), reference, options).id)


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


def layer_opener(roots: tuple[str, ...]) -> Any:
    """What a union opens its lowers with where one of them is an index."""
    from cowstore.viewlayer import opener

    return opener(roots)


def changes(source: Source, image: str) -> list[dict[str, str]]:
    """What a snapshot changes of its image, as ``Kind`` and ``Path``."""
    from cowstore.report import diff

    with _opened as store:
        return [
            {"Kind": str(item["kind"]), "Path": str(item["path"])}
            for item in diff(store, image, source.snapshot)
        ]
