"""Sessions, what they hold, and who sweeps them."""

from __future__ import annotations

import os

import pytest

from cowstore import Store
from cowstore.collect import collect
from cowstore.fsck import check
from cowstore.layers import write_blobs
from cowstore.layout import remove_tree
from cowstore.locks import Lock, Session, dead_sessions
from cowstore.mounting import hold, release
from tests.store.archives import M, digest, tar
from tests.store.conftest import AddImage


def test_new_sessions_do_not_wait_for_a_burial(store: Store) -> None:
    """A collection takes long; who wants a session then gets one."""
    for _ in range(40):  # more than are looked at together
        Session(store.layout).abandon()
    buried = []
    for name in dead_sessions(store.layout):
        buried.append(name)
        gate = Lock.acquire(store.layout.path("locks", "sessions"), shared=True, wait=False)
        assert gate is not None, "a session could begin now"
        gate.release()
        alone = Lock.acquire(store.layout.path("tmp", name, "lock"), wait=False)
        assert alone is None, "and this one is nobody else's to bury"
        remove_tree(store.layout.path("tmp", name))
    assert len(buried) == len(set(buried)) == 40
    assert os.listdir(store.layout.path("tmp")) == []


def test_a_blob_that_was_found_is_on_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wrote it may not have waited for that (--no-sync)."""
    synced: list[int] = []
    data = b"{}"
    told = {digest(data): data}
    with store.session() as session:
        write_blobs(store.layout, session, told, durable=False)
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
        write_blobs(store.layout, session, told, durable=True)
    assert os.stat(store.layout.blob(digest(data))).st_ino in synced
    collect(store)


def test_what_is_held_keeps_its_view(store: Store, add: AddImage) -> None:
    """Also from being swept between the hold and the mount, with the last name gone."""
    image = add(tar([M("a", b"1")]), name="x")
    view = store.lowers(image).places[0]
    held = hold(store, image)
    store.remove("x")
    collect(store)
    assert os.path.exists(view) and check(store, full=True) == []
    assert store.lowers(image).places == (view,)
    release(held)
    collect(store)
    assert not os.path.exists(view)
