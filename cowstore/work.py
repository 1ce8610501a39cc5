"""A piece of work on a store: staged in a session, undone if it fails; a layer at a time.

Apart from ``locks`` because ``contextlib`` is not to be loaded where a container is waited for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cowstore.errors import StoreError
from cowstore.layout import Layout
from cowstore.locks import Lock, Session

if TYPE_CHECKING:
    from cowstore.store import Store


@contextlib.contextmanager
def working(store: Store) -> Iterator[Session]:
    """See ``Store.session``."""
    if store.layout.read_only:
        raise StoreError(f"{store.layout.root}: this store is read-only")
    session = Session(store.layout)
    try:
        yield session
        store.database.end_leases(session.name)
    except BaseException as error:
        from cowstore.endings import undo_session

        try:
            undo_session(store, session)
        except (OSError, StoreError):
            session.abandon()
        else:
            session.close()
        if isinstance(error, OSError) and error.errno is not None:
            where = os.fsdecode(error.filename) if error.filename else store.layout.root
            raise StoreError(f"{where}: {error.strerror}") from error
        raise
    session.close()


@contextlib.contextmanager
def layer_lock(layout: Layout, diff_id: str) -> Iterator[None]:
    """One process at a time brings in (or removes) one layer; the others wait and find it there."""
    lock = Lock.acquire(layout.path("locks", f"layer-{diff_id[7:]}"))
    assert lock is not None
    try:
        yield
    finally:
        lock.release(remove=True)
