"""Views and trees of a chain of layers: made on demand, kept as long as an image needs them."""

from __future__ import annotations

import os

from cowstore.locks import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cowstore.store import Store


def view_path(store: Store, diff_ids: Sequence[str], chain: str) -> str:
    """The index of a chain's merged tree, built if no store has it."""
    for holder in store.holders():
        path = holder.layout.view(chain)
        if os.path.exists(path):
            return path
    path = store.layout.view(chain)

    def make(draft: str) -> None:
        from cowstore.viewbuild import build

        data = build(store.merged(diff_ids), chain)
        with open(draft, "wb") as file:
            file.writelines(data)
            if store.durable:
                file.flush()
                os.fdatasync(file.fileno())

    _once(store, f"views-{chain[7:]}", path, make)
    return path


def tree_path(store: Store, diff_ids: Sequence[str], chain: str, flavour: str) -> str:
    """The merged tree of a chain as a directory, built if no store has it.

    Args:
        flavour: ``plain``, with owners and devices as they are; ``override``, with both in
            ``user.containers.override_stat``; ``data`` and ``userdata``, attributes over the
            store's objects as a data-only lower, with marks of root and of a user namespace.
    """
    for holder in store.holders():
        path = holder.layout.tree(chain, flavour)
        if os.path.isdir(path):
            return path
    path = store.layout.tree(chain, flavour)

    def make(draft: str) -> None:
        from cowstore.tree import build_tree

        build_tree(store, store.merged(diff_ids), draft, flavour)

    _once(store, f"trees-{chain[7:]}.{flavour}", path, make)
    return path


def _once(store: Store, name: str, path: str, make: Callable[[str], None]) -> None:
    """Make something under a lock, in a session's directory, and rename it into its place."""
    lock = Lock.acquire(store.layout.path("locks", name))
    assert lock is not None
    try:
        if os.path.exists(path):
            return
        with store.session() as session:
            draft = session.place("draft")
            make(draft)
            if os.path.isdir(draft):
                from cowstore.layers import sync

                sync(store.layout, durable=store.durable)
            os.rename(draft, path)
    finally:
        lock.release(remove=True)
