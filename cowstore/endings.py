"""What sessions leave that did not end by themselves.

A session's journal says that it put something into the store before it was recorded; what only
has leases leaves nothing behind, and needs no collection. Every command that opens a store may have
to do this, such as one that a container waits for: little is imported here.
"""

from __future__ import annotations

import os

from cowstore.locks import JOURNAL, Session, remove_staging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowstore.store import Store

#: Leases that keep the finished layers of an interrupted pull belong to this "session".
RESUME = "resume"


def bury_session(store: Store, name: str) -> None:
    """Sweep what a dead session left; the caller holds its lock."""
    path = store.layout.path("tmp", name)
    _end_leases(store, name, resumable=os.path.exists(os.path.join(path, RESUME)))
    if os.path.exists(os.path.join(path, JOURNAL)):
        from cowstore.collect import collect

        collect(store, ending=name)
    remove_staging(path)


def undo_session(store: Store, session: Session) -> None:
    """A session failed: as if it had never been, but for what a pull can go on with."""
    session.clear()  # first: where the disk is full, even removing needs some room
    _end_leases(store, session.name, resumable=os.path.exists(session.place(RESUME)))
    if os.path.exists(session.place(JOURNAL)):
        from cowstore.collect import collect

        collect(store, ending=session.name)


def _end_leases(store: Store, name: str, *, resumable: bool) -> None:
    if not store.database.row("SELECT 1 FROM leases WHERE session=?", name):
        return
    with store.database.write() as db:
        if resumable:
            db.execute("UPDATE OR IGNORE leases SET session=? WHERE session=?", (RESUME, name))
        db.execute("DELETE FROM leases WHERE session=?", (name,))
