"""``exec`` and limits: what is executed counts, and nothing else does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime import cgroupfs, cgroups
from runtime.plan import CgroupPlan
from tests.runtime.conftest import UID, Pyrun
from tests.runtime.test_lifecycle import _state, _until
from tests.runtime.test_limits import _needs_v1


def _group(controller: str, container: str) -> Path:
    return Path(f"{dict(cgroups.ask().controllers)[controller]}/pyrun-{container[:32]}")


def test_who_calls_exec_does_not_count_in_the_container(root_pyrun: Pyrun) -> None:
    _needs_v1("pids")
    one = root_pyrun.start("one", "sleep", "100", options=("--pids-limit", "3"))
    # In its own cgroup namespace a member of the container's group is at the top.
    assert ":pids:/\n" in root_pyrun("exec", "one", "grep", "pids", "/proc/self/cgroup").stdout
    with subprocess.Popen(
        [*root_pyrun.command, "exec", "one", "sh", "-c", "echo up; exec sleep 100"],
        env=root_pyrun.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as caller:
        assert caller.stdout is not None and caller.stdout.readline() == "up\n"
        members = _group("pids", one).joinpath("cgroup.procs").read_text().split()
        assert len(members) == 3, "init, the command, and what exec has begun"
        assert str(caller.pid) not in members
        root_pyrun("rm", "-f", "one")
        assert caller.wait() == 137


def test_a_check_of_health_counts_too(root_pyrun: Pyrun) -> None:
    _needs_v1("pids")
    check = "grep -q ':pids:/$' /proc/self/cgroup"
    root_pyrun.start(
        "one", "sleep", "100",
        options=("--pids-limit", "4", "--health-cmd", check, "--health-interval", "50ms",
                 "--health-retries", "1"),
    )  # fmt: skip
    _until(root_pyrun, "health_status=")
    assert _state(root_pyrun, "one")["Health"] == "healthy"


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A v2 group that root has handed to the test's user, with a container's groups in it."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    tops = [line.split()[4] for line in mounts if " - cgroup2 " in line]
    if os.geteuid() != 0 or not tops:
        pytest.skip("needs root and cgroup v2 to hand a group over")
    group = Path(tops[0]) / f"pyrun-test-{os.getpid()}"
    made = [group, group / "caller", group / "box", group / "box/container", group / "box/union"]
    try:
        for directory in made:
            try:
                directory.mkdir()
            except OSError:
                pytest.skip("needs root that may make groups")
            os.chown(directory, UID, UID)
            os.chown(directory / "cgroup.procs", UID, UID)
        yield group
    finally:
        for directory in reversed(made):
            _remove(directory)


def _remove(directory: Path) -> None:
    """A group is empty a moment after its last process has been collected."""
    for left in range(100_000, -1, -1):
        try:
            directory.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError:
            if not left:
                raise


def _as_user(function: Callable[[], bool], group: Path | None) -> bool:
    """What a function says that is called by the test's user, from within a group."""
    pid = os.fork()
    if pid == 0:
        try:
            if group is not None:
                (group / "cgroup.procs").write_text("0")
            os.setgroups([])
            os.setresgid(UID, UID, UID)
            os.setresuid(UID, UID, UID)
            os._exit(0 if function() else 1)
        finally:
            os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1)
    return code == 0


def test_a_v2_group_is_entered_by_who_comes_from_beside_it(delegated: Path) -> None:
    """Without that exec asks systemd for a scope (cgroup-v2.rst, "Delegation Containment")."""
    plan = CgroupPlan(version="2", parent=str(delegated), name="box")

    def may() -> bool:
        return cgroupfs._may_enter(plan)

    def moves() -> bool:
        fd = os.open(f"{delegated}/box/container/cgroup.procs", os.O_WRONLY)
        os.write(fd, b"0")
        return f"{delegated.name}/box/container" in Path("/proc/self/cgroup").read_text()

    assert _as_user(may, delegated / "caller") and _as_user(moves, delegated / "caller")
    assert not _as_user(may, None)
    assert (delegated / "box/container/cgroup.procs").read_text() == ""
