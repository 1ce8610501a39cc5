"""Limits that are lifted, raised and lowered; devices; processes born while others are moved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from runtime import cgroupfs, cgroups, state
from runtime.cli import resources
from runtime.errors import RunError
from runtime.plan import CgroupPlan
from runtime.request import RunRequest
from tests.runtime.conftest import Pyrun
from tests.runtime.test_limits import _needs_v1

_Values = tuple[tuple[str, str], ...]


def _asked(*, change: bool = False, **options: Any) -> dict[str, tuple[_Values, _Values]]:
    limits = cgroups.wanted(RunRequest(image="x", **options), change=change)
    return {option: (v1, v2) for option, _, _, v1, v2 in limits}


def test_what_is_lifted_is_written_only_over_what_was_there() -> None:
    for word in ("0", "-1"):
        assert _asked(pids_limit=word) == _asked(memory=word) == {}
        assert _asked(pids_limit=word, change=True)["--pids-limit"][0] == (("pids.max", "max"),)
        old, new = _asked(memory=word, change=True)["--memory"]
        assert old[-1] == ("memory.limit_in_bytes", "-1") and new[-1] == ("memory.max", "max")


def test_a_period_alone_is_a_limit_of_its_own_and_no_change() -> None:
    old, new = _asked(cpu_period="50000")["--cpu-period"]
    assert old == (("cpu.cfs_period_us", "50000"),) and new == (("cpu.max", "max 50000"),)
    with pytest.raises(RunError, match="changes nothing"):
        _asked(cpu_period="50000", change=True)


def test_memory_without_a_word_of_swap_has_as_much_swap() -> None:
    old, new = _asked(memory="1g")["--memory"]
    assert ("?memory.memsw.limit_in_bytes", str(2 << 30)) in old
    assert ("?memory.swap.max", str(1 << 30)) in new


def test_a_file_that_the_kernel_lacks_is_left_out_if_it_may(tmp_path: Path) -> None:
    plan = CgroupPlan(version="1", parent="", name="c", controllers=(f"memory:{tmp_path}",))
    (tmp_path / "c").mkdir()
    value = ("inner", "memory", "?memory.memsw.limit_in_bytes", "5")
    cgroupfs.write(plan, (value,))
    with pytest.raises(RunError, match="limit memory"):
        cgroupfs.write(plan, (("inner", "memory", "memory.x", "5"),))
    (tmp_path / "c/memory.memsw.limit_in_bytes").write_text("")
    cgroupfs.write(plan, (value,))
    assert (tmp_path / "c/memory.memsw.limit_in_bytes").read_text() == "5"


@pytest.mark.parametrize(
    "rule", ["", "c 1:3", "ab 1:3 r", "c 1 r", "c 1:x r", "c 1:3 rx", "c 1:² r", "c 1:3:4 r"]
)
def test_what_is_no_rule_for_devices(rule: str) -> None:
    with pytest.raises(RunError, match="--device-cgroup-rule"):
        _asked(device_cgroup_rule=(rule,))


def test_a_device_that_is_bound_whole_needs_no_rules() -> None:
    assert _asked(device=("/dev/null",)) == _asked(device=("/dev/null:/dev/x:rw",)) == {}
    rules = _asked(device=("/dev/null:/dev/x:r", "/dev/zero"))["--device /dev/null:/dev/x:r"][0]
    assert rules[0] == ("devices.deny", "a")
    assert ("devices.allow", "c 1:3 r") in rules and ("devices.allow", "c 1:5 rwm") in rules


def test_a_device_for_reading_is_not_written_to(root_pyrun: Pyrun) -> None:
    _needs_v1("devices")
    script = "(exec 3</dev/fuse) && echo r; (exec 3<>/dev/fuse) && echo rw; echo >/dev/null && echo"
    told = root_pyrun.out("sh", "-c", script, options=("--device", "/dev/fuse:/dev/fuse:r"))
    assert told == "r\n\n"
    told = root_pyrun.out("sh", "-c", script, options=("--device", "/dev/fuse"))
    assert told == "r\nrw\n\n"
    options = ("--device-cgroup-rule", "c 42:* rwm", "--device", "/dev/fuse:rw")
    assert root_pyrun.out("sh", "-c", script, options=options) == "r\nrw\n\n"


def test_an_access_that_nobody_watches_is_refused(any_pyrun: Pyrun) -> None:
    place = dict(cgroups.ask().controllers).get("devices", "")
    if any_pyrun.kind == "root" or (os.geteuid() != 0 and place and os.access(place, os.W_OK)):
        pytest.skip("here an ordinary user may set limits")
    done = any_pyrun.run("true", options=("--device", "/dev/null:/dev/x:r"), code=125)
    assert "--device /dev/null:/dev/x:r cannot be enforced" in done.stderr


def _file(controller: str, container: str, name: str) -> str:
    place = dict(cgroups.ask().controllers)[controller]
    return Path(f"{place}/pyrun-{container[:32]}/{name}").read_text().strip()


def test_limits_go_up_and_down_and_away(root_pyrun: Pyrun) -> None:
    _needs_v1("memory", "pids", "cpu")
    options = ("--memory", "64m", "--pids-limit", "5", "--cpus", "0.5")
    one = root_pyrun.start("one", "sleep", "100", options=options)
    for size in (200, 40):
        root_pyrun("update", "--memory", f"{size}m", "one")
        assert _file("memory", one, "memory.limit_in_bytes") == str(size << 20)
    root_pyrun("update", "--memory", "-1", "--pids-limit", "-1", "one")
    assert int(_file("memory", one, "memory.limit_in_bytes")) > 1 << 60
    assert _file("pids", one, "pids.max") == "max"
    assert "changes nothing" in root_pyrun("update", "--cpu-period", "50000", "one", code=1).stderr
    root_pyrun("update", "--cpu-quota", "20000", "one")
    assert _file("cpu", one, "cpu.cfs_quota_us") == "20000"
    # What has been changed is what it is started with, and contradicts nothing.
    root_pyrun("restart", "-t", "0", "one")
    assert _file("cpu", one, "cpu.cfs_quota_us") == "20000"
    root_pyrun("exec", "one", "true")


def test_a_container_that_was_paused_once_is_entered_after_its_next_start(
    root_pyrun: Pyrun,
) -> None:
    _needs_v1("freezer")
    root_pyrun.start("one", "sleep", "100")
    root_pyrun("pause", "one")
    root_pyrun("unpause", "one")
    root_pyrun("restart", "-t", "0", "one")
    root_pyrun("exec", "one", "true")


def test_what_is_born_while_others_are_moved_is_moved_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alive = [{10, 11}, {10, 11, 12}, {11, 12, 13}, {11, 12, 13}]
    moved: list[int] = []

    def now(_container: state.Container) -> list[dict[str, Any]]:
        return [{"Pid": pid} for pid in alive.pop(0)]

    def enter(_plan: CgroupPlan, pid: int, _union: int) -> None:
        moved.append(pid)
        if pid == 13:  # no process of ours has such a number: it has ended meanwhile
            raise RunError("cgroup: No such process")

    monkeypatch.setattr(resources, "processes", now)
    monkeypatch.setattr(cgroupfs, "enter", enter)
    monkeypatch.setattr(os.path, "exists", lambda _path: False)
    container = state.Container(str(tmp_path), "c")
    plan = CgroupPlan(version="1", parent="", name="c")
    resources._move_all(container, plan, 0)
    assert sorted(moved) == [10, 11, 12, 13] and not alive
