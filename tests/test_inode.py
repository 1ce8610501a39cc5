"""Inodes and their links, the table, descriptors, and the monitor."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from tests.conftest import OpenRig
from unionfs.engine import direct
from unionfs.fds import Descriptors
from unionfs.inode import Inode
from unionfs.monitor import Monitor
from unionfs.ops import Ops
from unionfs.types import EngineOptions

PATIENCE = 20.0


def directory(ino: int) -> Inode:
    """An inode to hang names on."""
    return Inode(ino, ino, stat.S_IFDIR)


def test_links_come_and_go_and_parents_count_them() -> None:
    top, other, file = directory(1), directory(2), Inode(5, 5, stat.S_IFREG)
    assert file.links() == []
    file.add_link(top, b"a")
    file.add_link(top, b"a")
    assert (file.links(), top.children) == ([(top, b"a")], 1)
    file.add_link(top, b"b")
    file.add_link(other, b"a")
    file.add_link(other, b"a")
    assert set(file.links()) == {(top, b"a"), (top, b"b"), (other, b"a")}
    assert (top.children, other.children) == (2, 1)
    file.drop_link(top, b"a")
    assert set(file.links()) == {(top, b"b"), (other, b"a")}
    file.drop_link(top, b"none")
    assert (top.children, other.children) == (1, 1)
    file.drop_link(other, b"a")
    file.drop_link(top, b"b")
    assert (file.links(), file.parent, top.children, other.children) == ([], None, 0, 0)
    file.add_link(other, b"c")
    assert (file.parent, file.name) == (other, b"c")


def test_a_table_that_has_shrunk_is_rebuilt(rig: OpenRig) -> None:
    union = rig().union
    first = union.table
    for number in range(2, 5002):
        first[number] = Inode(number, number, stat.S_IFREG)
    union.shrink()
    for number in range(500, 5002):
        del first[number]
    union.shrink()
    assert union.table is not first and union.table == first
    again = union.table
    union.shrink()
    assert union.table is again
    for number in range(2, 500):
        del again[number]


def open_file(fds: Descriptors, path: Path, number: int) -> Inode:
    """An inode with a data descriptor."""
    inode = Inode(number, number, stat.S_IFREG)
    fds.keep_data(inode, os.open(path, os.O_RDONLY), writable=False)
    return inode


def test_trimming_closes_the_oldest_but_none_in_use(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    fds = Descriptors(1 << 20)
    fds.max_data = 2
    inodes = [open_file(fds, tmp_path / "f", number) for number in range(6)]
    inodes[0].users = 1
    fds.pin(inodes[1])
    assert fds.over()
    fds.trim()
    assert not fds.over()
    assert inodes[0].fd >= 0
    assert inodes[1].fd >= 0
    assert [inode.fd >= 0 for inode in inodes[2:]] == [False, False, False, True]
    os.fstat(inodes[5].fd)
    for inode in inodes:
        fds.release(inode)
    assert (fds.pins, len(fds.data)) == (0, 0)


def test_a_new_descriptor_replaces_the_old(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    fds = Descriptors(1 << 20)
    inode = open_file(fds, tmp_path / "f", 1)
    old = inode.fd
    new = os.open(tmp_path / "f", os.O_RDWR)
    fds.keep_data(inode, new, writable=True)
    assert (inode.fd, inode.writable, len(fds.data)) == (new, True, 1)
    with pytest.raises(OSError):
        os.fstat(old)
    fds.drop_data(inode)
    fds.drop_data(inode)
    assert (inode.fd, inode.writable) == (-1, False)


def test_pins_are_counted_once_and_never_trimmed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    fds = Descriptors(1 << 20)
    inode = open_file(fds, tmp_path / "f", 1)
    fds.pin(inode)
    fds.pin(inode)
    fds.max_data = 0
    fds.trim()
    assert (fds.pins, inode.fd >= 0) == (1, True)
    fds.release(inode)
    assert (fds.pins, inode.fd) == (0, -1)


def test_deleted_files_are_closed_by_another_thread(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    fds = Descriptors(1 << 20)
    told: list[int] = []
    fds.on_dead = lambda: told.append(1)
    inodes = [open_file(fds, tmp_path / "f", number) for number in range(300)]
    descriptors = [inode.fd for inode in inodes]
    for inode in inodes:
        fds.pin(inode)
        fds.release(inode)
    assert (told, fds.pins, {inode.fd for inode in inodes}) == ([1], 0, {-1})
    for descriptor in descriptors[256:]:  # not without end
        with pytest.raises(OSError):
            os.fstat(descriptor)
    for descriptor in descriptors[:256]:
        os.fstat(descriptor)
    fds.close_dead()
    for descriptor in descriptors:
        with pytest.raises(OSError):
            os.fstat(descriptor)
    last = open_file(fds, tmp_path / "f", 1)
    fds.pin(last)
    fds.release(last)
    assert told == [1, 1]
    fds.close_all()


def test_others_run_while_the_monitor_is_given_up() -> None:
    monitor = Monitor()
    inside = threading.Event()
    events = []

    def other() -> None:
        with monitor:
            events.append("other")
            inside.set()

    thread = threading.Thread(target=other)
    with monitor:
        thread.start()
        events.append("holding")
        with monitor.released():
            assert inside.wait(PATIENCE)
        events.append("again")
    thread.join(PATIENCE)
    assert events == ["holding", "other", "again"]


def test_the_monitor_is_taken_back_after_an_error_outside_it() -> None:
    monitor = Monitor()
    with monitor:
        with pytest.raises(KeyError):
            with monitor.released():
                assert not monitor.lock.locked()
                raise KeyError
        assert monitor.lock.locked()
    assert not monitor.lock.locked()


def test_the_engine_is_told_before_a_thread_waits() -> None:
    monitor = Monitor()
    told = []
    monitor.on_release = lambda: told.append(monitor.lock.locked())
    busy = True
    waiting = threading.Event()

    def wait() -> None:
        with monitor:
            while busy:
                waiting.set()
                monitor.wait_idle()

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(PATIENCE)
    with monitor:
        busy = False
        monitor.notify_idle()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    with monitor, monitor.released():
        pass
    assert told and all(told)


def test_a_reader_that_gets_no_successor_stays_the_reader(
    rig: OpenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may allow no more threads: requests then wait, but not for ever."""

    def refuse(*arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    engine = direct.DirectEngine(Ops(rig().union), 0, EngineOptions())
    monkeypatch.setattr(direct, "start_new_thread", refuse)
    engine._worker.reader = True
    engine._reading.acquire()
    with engine.ops.monitor, engine.ops.monitor.released():
        assert engine._worker.reader
        assert engine._reading.locked()
    assert engine._threads == 0
    monkeypatch.setattr(direct, "start_new_thread", lambda *arguments: None)
    with engine.ops.monitor, engine.ops.monitor.released():
        assert not engine._worker.reader
        assert not engine._reading.locked()
    assert engine._threads == 1
