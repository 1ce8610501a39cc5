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


def _store() -> Store:
    try:
        from cowstore import Store
    except ImportError as error:
        raise RunError(f"the image store is not installed: {error}") from None
    place = os.environ.get("PYUNION_STORE", "")
    from pathlib import Path

    return Store(Path(place)) if place else Store()


def find(name: str, pull: str = "missing", platform: str = "") -> tuple[str, dict[str, Any]]:
    """An image's id and the ``config`` part of its configuration; pulled if it is missing.

    Raises:
        RunError: not there, and not to be pulled.
        StoreError: what the store says.
    """
    from cowstore import NotFound

    if pull not in ("missing", "always", "never", "newer"):
        raise RunError(f"--pull {pull}: unknown", "expected always, missing, newer or never")
    with _store().open() as store:
        if pull not in ("always", "newer"):
            try:
                image = store.resolve(name)
                return image.id, dict(image.process)
            except NotFound as error:
                if pull == "never":
                    raise RunError(f"no image {name}", error.hint or "pyrun images") from None
        try:
            image = store.pull(name if "://" in name else f"docker://{name}", progress=None)
        except NotFound as error:
            raise RunError(f"no image {name}", error.hint or f"pyrun pull {name}") from None
        return image.id, dict(image.process)


def snapshot(image: str, container: str) -> Source:
    """A writable snapshot of an image, named after its container."""
    with _store().open() as store:
        made = store.snapshot_create(store.resolve(image), id=container[:32])
        return Source(
            lowers=tuple(str(path) for path in made.lowers.paths),
            upper=str(made.upper),
            work=str(made.work),
            options=tuple(made.lowers.options),
            view=made.lowers.view,
            snapshot=made.id,
        )


def remove_snapshot(name: str) -> None:
    """Give a snapshot back; one that is gone is fine."""
    from cowstore import NotFound

    with _store().open() as store:
        try:
            store.snapshot_remove(name)
        except NotFound:
            pass


def commit(name: str, reference: str, author: str, message: str, changes: tuple[str, ...]) -> str:
    """An image of a snapshot's changes; its id."""
    from cowstore import CommitOptions

    with _store().open() as store:
        options = CommitOptions(author=author, message=message, changes=changes)
        return str(store.commit(store.snapshot(name), reference, options).id)


def describe(name: str) -> dict[str, Any] | None:
    """An image for ``inspect``; None if there is none of that name."""
    try:
        from cowstore import NotFound
    except ImportError:
        return None
    try:
        with _store().open() as store:
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


def open_union(options: Any) -> Any:
    """The union of a view: ``unionfs.daemon.open_union`` with the store's own kind of layer."""
    from unionfs import daemon

    opener: Any = __import__("cowstore.view", fromlist=["view"]).open_layer
    union: Any = daemon.open_union
    return union(options, opener)


def changes(source: Source) -> list[Any]:
    """The changes of a snapshot over a view, as ``unionfs.diff.Change``.

    Raises:
        RunError: the store cannot tell.
    """
    raise RunError("the changes over an indexed image cannot be listed yet")
