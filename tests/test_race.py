"""What threads may do to each other, at named points, without ever sleeping.

The long work outside the monitor (``copyup.copy_data``, the scan for hard links)
is replaced by one that stops at an event; another thread then does what it does
in the middle of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.conftest import OpenRig
from tests.helpers import Rig
from tests.layers import Dir, File, Link
from unionfs import copyup, hardlinks

LARGE = b"0123456789abcdef" * (40 << 10)
#: No event is ever waited for longer; a test that hangs fails.
PATIENCE = 20.0


class Gate:
    """A point in one thread that another waits for, and lets go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.passes = 0

    def stop_here(self) -> None:
        """Called at the point."""
        self.passes += 1
        self.reached.set()
        assert self.go.wait(PATIENCE), "nobody opened the gate"

    def wait(self) -> None:
        """Until a thread is at the point."""
        assert self.reached.wait(PATIENCE), "the point was not reached"


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Every copy of a large lower file stops before it begins, the monitor given up."""
    gate = Gate()
    copy = copyup.copy_data

    def stop(source: int, target: int, length: int) -> None:
        if length == len(LARGE):
            gate.stop_here()
        copy(source, target, length)

    monkeypatch.setattr(copyup, "copy_data", stop)
    yield gate
    gate.go.set()


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that have ended when the test has."""
    with ThreadPoolExecutor(4) as pool:
        yield pool


def waiting(
    rig: Rig, function: Callable[..., Any], *arguments: Any
) -> tuple[Gate, Callable[[], Any]]:
    """``function`` as a request; the gate says when it waits for an inode that is busy."""
    asleep = Gate()
    asleep.go.set()
    idle = rig.union.monitor.wait_idle

    def request() -> Any:
        here = threading.get_ident()

        def wait_idle() -> None:
            if threading.get_ident() == here:
                asleep.reached.set()
            idle()

        rig.union.monitor.wait_idle = wait_idle  # type: ignore[method-assign]
        return rig.call(function, *arguments)

    return asleep, request


def done(future: Future[Any]) -> Any:
    """Its result, soon."""
    return future.result(PATIENCE)


def test_reads_of_a_file_being_copied_up_are_served(
    rig: OpenRig, copying: Gate, threads: ThreadPoolExecutor
) -> None:
    union = rig({b"f": File(LARGE)})
    assert union.read(b"f")[:4] == b"0123"
    ino = union.ino(b"f")
    writer = threads.submit(union.write, b"f", 2, b"NEW")
    copying.wait()
    assert union.pread(ino) == LARGE
    assert union.fstat(ino).size == len(LARGE)
    copying.go.set()
    done(writer)
    assert union.read(b"f") == b"01NEW" + LARGE[5:]


def test_other_inodes_are_served_during_a_copy_up(
    rig: OpenRig, copying: Gate, threads: ThreadPoolExecutor
) -> None:
    union = rig({b"f": File(LARGE), b"g": File(b"small"), b"d/h": File(b"deep")})
    ino = union.ino(b"f")
    writer = threads.submit(union.pwrite, ino, 0, b"X")
    copying.wait()
    union.write(b"g", 5, b" and grown")
    union.rename(b"d", b"e")
    union.create(b"e/new", 0o644)
    assert union.names(b"") == [b"e", b"f", b"g"]
    assert union.read(b"g") == b"small and grown"
    copying.go.set()
    done(writer)
    assert union.pread(ino)[:2] == b"X1"


def test_a_second_writer_waits_for_the_copy_up_and_copies_nothing(
    rig: OpenRig, copying: Gate, threads: ThreadPoolExecutor
) -> None:
    union = rig({b"f": File(LARGE)})
    ino = union.ino(b"f")
    first = threads.submit(union.pwrite, ino, 0, b"A")
    copying.wait()
    write = partial(union.ops.write, kill_suidgid=False)
    asleep, request = waiting(union, write, ino, 1, memoryview(b"B"))
    second = threads.submit(request)
    asleep.wait()
    copying.go.set()
    done(first)
    done(second)
    assert union.pread(ino)[:3] == b"AB2"
    assert copying.passes == 1


def test_unlink_waits_for_the_copy_up_of_the_file(
    rig: OpenRig, copying: Gate, threads: ThreadPoolExecutor
) -> None:
    union = rig({b"f": File(LARGE)})
    ino = union.open(b"f")
    writer = threads.submit(union.pwrite, ino, 0, b"A")
    copying.wait()
    asleep, request = waiting(union, union.ops.unlink, 1, b"f")
    unlink = threads.submit(request)
    asleep.wait()
    assert not unlink.done()
    copying.go.set()
    done(writer)
    done(unlink)
    del union.dentries[1, b"f"]
    assert union.fstat(ino).nlink == 0
    assert union.pread(ino) == b"A" + LARGE[1:]
    assert union.names(b"") == []
    union.release(ino)


def test_rename_waits_for_the_copy_up_of_the_file(
    rig: OpenRig, copying: Gate, threads: ThreadPoolExecutor
) -> None:
    union = rig({b"f": File(LARGE)})
    ino = union.ino(b"f")
    writer = threads.submit(union.pwrite, ino, 0, b"A")
    copying.wait()
    asleep, request = waiting(union, union.ops.rename, 1, b"f", 1, b"g", 0)
    rename = threads.submit(request)
    asleep.wait()
    assert not rename.done()
    copying.go.set()
    done(writer)
    done(rename)
    union.dentries[1, b"g"] = union.dentries.pop((1, b"f"))
    assert union.lstat(b"g").ino == ino
    assert union.read(b"g")[:2] == b"A1"
    assert union.names(b"") == [b"g"]


def test_a_file_renamed_over_during_its_copy_up_is_replaced_whole(
    rig: OpenRig, copying: Gate, threads: ThreadPoolExecutor
) -> None:
    union = rig({b"f": File(LARGE), b"g": File(b"the new f")})
    ino = union.open(b"f")
    other = union.ino(b"g")
    writer = threads.submit(union.pwrite, ino, 0, b"A")
    copying.wait()
    asleep, request = waiting(union, union.ops.rename, 1, b"g", 1, b"f", 0)
    rename = threads.submit(request)
    asleep.wait()
    copying.go.set()
    done(writer)
    done(rename)
    union.dentries[1, b"f"] = union.dentries.pop((1, b"g"))
    assert union.lstat(b"f").ino == other
    assert union.read(b"f") == b"the new f"
    assert union.fstat(ino).nlink == 0
    assert union.pread(ino)[:2] == b"A1"
    union.release(ino)


@pytest.mark.parametrize("redirect_dir", ["copy", "on"])
def test_rename_of_an_ancestor_during_a_copy_up(
    rig: OpenRig, copying: Gate, threads: ThreadPoolExecutor, redirect_dir: str
) -> None:
    union = rig({b"d/e/f": File(LARGE), b"d/e/g": File(b"small")}, redirect_dir=redirect_dir)
    ino = union.ino(b"d/e/f")
    writer = threads.submit(union.pwrite, ino, 0, b"A")
    copying.wait()
    if redirect_dir == "on":
        union.rename(b"d", b"moved")
        copying.go.set()
    else:
        # Everything beneath has to go up first: the busy file is waited for.
        asleep, request = waiting(union, union.ops.rename, 1, b"d", 1, b"moved", 0)
        rename = threads.submit(request)
        asleep.wait()
        copying.go.set()
        done(rename)
        union.dentries[1, b"moved"] = union.dentries.pop((1, b"d"))
    done(writer)
    assert union.names(b"") == [b"moved"]
    assert union.names(b"moved/e") == [b"f", b"g"]
    assert union.lstat(b"moved/e/f").ino == ino
    assert union.read(b"moved/e/f") == b"A" + LARGE[1:]
    assert copying.passes == 1


def test_forget_during_a_copy_up_drops_the_inode_after_it(
    rig: OpenRig, copying: Gate, threads: ThreadPoolExecutor
) -> None:
    union = rig({b"f": File(LARGE)})
    ino = union.ino(b"f")
    inode = union.union.get(ino)
    copy_up = threads.submit(union.call, copyup.copy_up, union.union, inode)
    copying.wait()
    union.forget(ino)
    assert ino in union.union.table
    copying.go.set()
    done(copy_up)
    assert ino not in union.union.table
    assert union.lstat(b"f").ino == ino
    assert union.union.get(ino).upper


def test_an_error_while_copying_wakes_those_that_wait(
    rig: OpenRig, monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor
) -> None:
    union = rig({b"f": File(LARGE)})
    ino = union.ino(b"f")
    gate = Gate()

    def fail(source: int, target: int, length: int) -> None:
        gate.stop_here()
        raise OSError(28, "no space left")

    monkeypatch.setattr(copyup, "copy_data", fail)
    writer = threads.submit(union.pwrite, ino, 0, b"A")
    gate.wait()
    asleep, request = waiting(union, union.ops.unlink, 1, b"f")
    unlink = threads.submit(request)
    asleep.wait()
    gate.go.set()
    with pytest.raises(OSError, match="no space left"):
        done(writer)
    done(unlink)
    del union.dentries[1, b"f"]
    assert union.names(b"") == []


def test_a_link_made_while_the_layer_is_scanned_is_not_lost(
    rig: OpenRig, monkeypatch: pytest.MonkeyPatch, threads: ThreadPoolExecutor
) -> None:
    union = rig({b"a": File(b"data"), b"d/b": Link(b"a"), b"e": Dir()})
    gate = Gate()
    scan = hardlinks.scan_layer

    def stop(*arguments: Any) -> Any:
        gate.stop_here()
        return scan(*arguments)

    monkeypatch.setattr(hardlinks, "scan_layer", stop)
    ino = union.ino(b"a")
    writer = threads.submit(union.pwrite, ino, 0, b"D")
    gate.wait()
    asleep, request = waiting(union, union.ops.unlink, union.ino(b"d"), b"b")
    unlink = threads.submit(request)
    asleep.wait()
    gate.go.set()
    done(writer)
    done(unlink)
    union.dentries.pop((union.ino(b"d"), b"b"), None)
    assert union.names(b"d") == []
    assert union.lstat(b"a").nlink == 1
    assert union.read(b"a") == b"Data"


def test_a_directory_emptied_while_it_is_cut_off_is_seen(
    rig: OpenRig, copying: Gate, threads: ThreadPoolExecutor
) -> None:
    """make_pure gives up the monitor while it copies; names may come and go meanwhile."""
    union = rig({b"d/f": File(LARGE), b"d/g": File(b"g"), b"d/s/t": File(b"t")})
    union.ino(b"d/f")
    rename = threads.submit(union.call, union.ops.rename, 1, b"d", 1, b"moved", 0)
    copying.wait()
    union.unlink(b"d/g")
    union.create(b"d/new", 0o644)
    union.mkdir(b"d/s/u", 0o755)
    copying.go.set()
    done(rename)
    union.dentries[1, b"moved"] = union.dentries.pop((1, b"d"))
    assert union.names(b"") == [b"moved"]
    assert union.names(b"moved") == [b"f", b"new", b"s"]
    assert union.names(b"moved/s") == [b"t", b"u"]
    union.remount()
    assert union.names(b"moved") == [b"f", b"new", b"s"]
    assert union.names(b"moved/s") == [b"t", b"u"]


def test_many_threads_at_one_tree(rig: OpenRig, threads: ThreadPoolExecutor) -> None:
    """No gate: the same small files from four threads, each in its own names."""
    union = rig({b"d%d/f%d" % (top, name): File(b"x") for top in range(4) for name in range(8)})

    def work(number: int) -> None:
        above = union.call(union.ops.lookup, 1, b"d%d" % number)
        assert above is not None
        for name in range(8):
            attr = union.call(union.ops.lookup, above.ino, b"f%d" % name)
            assert attr is not None
            payload = memoryview(b"%d-%d" % (number, name))
            union.call(union.ops.write, attr.ino, 0, payload, kill_suidgid=False)
            union.call(union.ops.rename, above.ino, b"f%d" % name, 1, b"%d-%d" % (number, name), 0)
            union.call(union.ops.forget, attr.ino, 1)
        union.call(union.ops.forget, above.ino, 1)

    for future in [threads.submit(work, number) for number in range(4)]:
        done(future)
    for number in range(4):
        assert union.names(b"d%d" % number) == []
        for name in range(8):
            assert union.read(b"%d-%d" % (number, name)) == b"%d-%d" % (number, name)
