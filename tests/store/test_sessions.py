"""Sessions, what they hold, and who sweeps them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cowstore import NotFound, Snapshot, Store, StoreError
from cowstore.collect import collect
from cowstore.endings import bury_session
from cowstore.fsck import check
from cowstore.layers import write_blobs
from cowstore.layout import remove_tree
from cowstore.locks import Lock, Session, check_snapshot_free, dead_sessions, take_lent
from cowstore.mounting import find_mountable, hold, release
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


def test_a_burial_that_was_cut_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is left of it, the next command finds it."""
    session = Session(store.layout)
    for number in range(5):
        Path(session.place(f"staged{number}")).write_bytes(b"1")
    session.abandon()
    left = 3
    unlink = os.unlink

    def few(path: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        unlink(path)

    monkeypatch.setattr(os, "unlink", few)
    with pytest.raises(KeyboardInterrupt):
        store.open()
    monkeypatch.undo()
    assert os.path.exists(session.place("lock"))
    store.open()
    assert not os.path.exists(session.path)
    old = Session(store.layout)  # as an earlier program left it
    Path(old.place("staged")).write_bytes(b"1")
    old.abandon()
    os.unlink(old.place("lock"))
    store.open()
    assert not os.path.exists(old.path)


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


def test_a_snapshot_that_went_before_it_could_be_held(store: Store, add: AddImage) -> None:
    add(tar([M("a", b"1")]), name="img")
    store.snapshot_create("img", "s")
    found = find_mountable(store, "s")
    store.snapshot_remove("s")
    with pytest.raises(NotFound, match="no snapshot is called s"):
        hold(store, found)
    assert "snapshot-s" not in os.listdir(store.layout.path("locks"))


def test_a_snapshot_that_was_cloned_before_it_could_be_held(store: Store, add: AddImage) -> None:
    """What was found as its upper is a base of both by then."""
    add(tar([M("a", b"1")]), name="img")
    (store.snapshot_create("img", "s").upper / "new").write_bytes(b"2")
    found = find_mountable(store, "s")
    store.snapshot_clone("s", "t")
    with pytest.raises(StoreError, match="just been cloned"):
        hold(store, found)
    release(hold(store, find_mountable(store, "s")))


def test_a_lock_is_lent_to_one_who_knows_it(
    store: Store, add: AddImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cowstore.locks._ENDING", 0)
    add(tar([M("a", b"1")]), name="img")
    found = store.snapshot_create("img", "s")
    assert isinstance(found, Snapshot)
    lock = check_snapshot_free(store.layout, "s")
    inode = os.fstat(lock.fd).st_ino
    with pytest.raises(StoreError, match="in use"):
        take_lent(lock.path, inode, "s")
    lock.lend()
    with take_lent(lock.path, inode, "s"), pytest.raises(StoreError, match="in use"):
        check_snapshot_free(store.layout, "s")
    store.snapshot_clone("s", "t")  # takes the lock meanwhile, and its file away
    with pytest.raises(StoreError, match="in use"):
        take_lent(lock.path, inode, "s")
    lock.release()


def test_who_has_just_unmounted_need_not_wait(
    store: Store, add: AddImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon that holds the lock is about to end."""
    monkeypatch.setattr("cowstore.locks._ENDING", 60)
    add(tar([M("a", b"1")]), name="img")
    store.snapshot_create("img", "s")
    begun, end = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        os.close(end[1])
        with check_snapshot_free(store.layout, "s"):
            os.write(begun[1], b"1")
            os.read(end[0], 1)  # until the other end is closed: a moment after it is wanted
        os._exit(0)
    os.read(begun[0], 1)
    closer = threading.Timer(0.05, os.close, (end[1],))
    closer.start()
    store.snapshot_remove("s")
    assert os.waitpid(pid, 0)[1] == 0
    closer.join()
    for fd in (*begun, end[0]):
        os.close(fd)


def test_a_burial_meets_whoever_ends_the_session(store: Store) -> None:
    """A container's supervisor has let go of its session's lock, and removes the directory."""
    session = Session(store.layout)
    session.abandon()
    for name in dead_sessions(store.layout):
        assert name == session.name
        remove_tree(session.path)
        bury_session(store, name)
    assert not os.path.exists(session.path)
