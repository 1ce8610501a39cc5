"""Helpers killed at any moment, also while a container begins: what is left can be put in order."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import launch
from runtime.channel import pair
from tests.runtime.conftest import PATIENCE, Pyrun

_PR_SET_CHILD_SUBREAPER = 36
_SECONDS = PATIENCE


def _parents() -> dict[int, tuple[int, str]]:
    """(parent, state) of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
                found[int(name)] = (int(fields[1]), fields[0].decode())
    return found


def _descendants() -> list[int]:
    """Living processes beneath this one."""
    parents = _parents()
    ours = {os.getpid()}
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in parents.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    return sorted(pid for pid in ours - {os.getpid()} if parents[pid][1] != "Z")


@pytest.fixture
def reaper() -> Iterator[None]:
    """Orphans become this process's children, so that they can be found."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    yield
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 0)
    _reap()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.mark.parametrize("seed", range(8))
def test_any_process_killed_at_any_moment(any_pyrun: Pyrun, reaper: None, seed: int) -> None:
    dice = random.Random(seed)
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    rm = ("--rm",) if dice.random() < 0.5 else ()
    words = ["run", "-d", *rm, "--network", "none", *single, "--name", "x"]
    before = set(_descendants())
    with subprocess.Popen(
        [*any_pyrun.command, *words, "--rootfs", str(any_pyrun.rootfs), "sleep", "1000"],
        env=any_pyrun.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        wanted = dice.randint(1, 6)
        end = time.monotonic() + _SECONDS
        most: list[int] = []
        while len(most) < wanted and process.poll() is None and time.monotonic() < end:
            most = [pid for pid in _descendants() if pid not in before]
        if most:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(dice.choice(most), signal.SIGKILL)
        _, said = process.communicate(timeout=_SECONDS)
    assert b"Traceback" not in said, said
    shown = any_pyrun("ps", "-a", "--format", "{{.Status}}").stdout.split("\n")
    assert set(shown) <= {"running", "exited", "created", ""}, shown
    any_pyrun("rm", "--force", "--all")
    assert any_pyrun("ps", "-aq").stdout == ""
    end = time.monotonic() + _SECONDS
    left = set(_descendants()) - before
    while left and time.monotonic() < end:
        _reap()
        left = set(_descendants()) - before
    assert not left, left
    for name in ("containers", "names"):  # a supervisor may have been about to remove them
        assert list((any_pyrun.place / "pyrun").glob(f"{name}/*")) == []
    assert str(any_pyrun.place) not in Path("/proc/self/mountinfo").read_text()


def test_a_name_whose_container_is_gone_is_given_back(any_pyrun: Pyrun) -> None:
    any_pyrun("ps")
    names = any_pyrun.place / "pyrun/names"
    any_pyrun.start("kept", "sleep", "100")
    stale = names / "stale"
    stale.symlink_to("0" * 64)
    os.lchown(stale, names.stat().st_uid, names.stat().st_gid)
    any_pyrun("ps")
    assert [path.name for path in names.iterdir()] == ["kept"]


def test_a_name_is_free_whose_container_was_to_be_removed(any_pyrun: Pyrun) -> None:
    """Its supervisor could not, and no other command has come by."""
    any_pyrun.start("st", "sleep", "1000", options=("--rm",))
    (state,) = (any_pyrun.place / "pyrun").glob("containers/*/state.json")
    os.kill(json.loads(state.read_text())["supervisor"], signal.SIGKILL)
    end = time.monotonic() + _SECONDS
    while any_pyrun.run("true", options=("--name", "st"), code=None).returncode:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_first_process_that_dies_unheard_is_noticed() -> None:
    """Others have the channel open, too: its end is not the channel's."""
    for said in (b"", b"last word"):
        ours, theirs = pair()
        pid = os.fork()
        if pid == 0:
            try:
                if said:
                    theirs.send(said)
            finally:
                os._exit(0)
        process = os.pidfd_open(pid)
        os.waitpid(pid, 0)
        try:
            assert launch._tells_more(ours, process) == bool(said)
        finally:
            os.close(process)
            ours.close()
            theirs.close()


def test_what_was_said_last_is_heard_though_not_all_was_read() -> None:
    """The kernel tells ECONNRESET first (unix_release_sock)."""
    ours, theirs = pair()
    ours.send(b"for nobody")
    theirs.send(b"the end")
    theirs.close()
    assert ours.receive() == (b"the end", [])
    assert ours.receive() == (b"", [])
    ours.close()
