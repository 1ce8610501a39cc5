"""``exec`` and limits: what is executed counts, and nothing else does."""

from __future__ import annotations

import subprocess
from pathlib import Path

from runtime import cgroups
from tests.runtime.conftest import Pyrun
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
