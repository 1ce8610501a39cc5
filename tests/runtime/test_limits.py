"""Limits: what is asked, what is refused, and what cgroup v1 of this host enforces."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import cgroups
from runtime.errors import RunError
from runtime.request import RunRequest
from tests.runtime.conftest import UID, Pyrun


def _asked(**options: str) -> dict[str, tuple[object, object]]:
    limits = cgroups.wanted(RunRequest(image="x", **options))  # type: ignore[arg-type]
    return {option: (v1, v2) for option, _, _, v1, v2 in limits}


def test_values_for_both_versions() -> None:
    assert _asked(cpus="1.5")["--cpus"] == (
        (("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "150000")),
        (("cpu.max", "150000 100000"),),
    )
    assert _asked(cpu_shares="1024")["--cpu-shares"][1] == (("cpu.weight", "39"),)
    told = _asked(memory="1g", memory_swap="2g")
    assert told["--memory"][1] == (("memory.max", str(1 << 30)),)
    assert told["--memory-swap"] == (
        (("memory.memsw.limit_in_bytes", str(2 << 30)),),
        (("memory.swap.max", str(1 << 30)),),
    )
    assert _asked(memory="1g", memory_swap="-1")["--memory-swap"][1] == (
        ("memory.swap.max", "max"),
    )
    assert _asked(pids_limit="-1") == {}


@pytest.mark.parametrize(
    "options",
    [
        {"cpus": "0"},
        {"cpus": "nan"},
        {"memory": "100k"},
        {"cpus": "1", "cpu_quota": "5000"},
        {"cpu_shares": "1"},
        {"memory": "1g", "memory_swap": "1m"},
        {"memory_swap": "1g"},
        {"pids_limit": "some"},
        {"cpuset_cpus": "a"},
        {"blkio_weight": "5"},
    ],
)
def test_values_that_make_no_sense(options: dict[str, str]) -> None:
    with pytest.raises(RunError):
        _asked(**options)


def test_a_device_that_is_none() -> None:
    with pytest.raises(RunError, match="--device-read-bps"):
        cgroups.wanted(RunRequest(image="x", device_read_bps=("/dev/null:1m",)))


def test_what_cannot_be_enforced_is_an_error_or_with_best_effort_a_warning(
    any_pyrun: Pyrun,
) -> None:
    if any_pyrun.kind == "root" or _writable("memory"):
        pytest.skip("here an ordinary user may set limits")
    done = any_pyrun.run("true", options=("--memory", "64m"), code=125)
    assert done.stderr.startswith("error: --memory cannot be enforced")
    assert "hint: " in done.stderr
    done = any_pyrun.run("true", options=("--memory", "64m", "--limits", "best-effort"))
    assert "--memory is not enforced" in done.stderr


def _place(controller: str) -> str:
    return dict(cgroups.ask().controllers).get(controller, "")


def _writable(controller: str) -> bool:
    place = _place(controller)
    return bool(place) and os.geteuid() != 0 and os.access(place, os.W_OK)


def _needs_v1(*controllers: str) -> None:
    for controller in controllers:
        place = _place(controller)
        if not place or not os.access(place, os.W_OK):
            pytest.skip(f"no cgroup v1 controller {controller} that can be used here")


def _ours() -> list[str]:
    found = []
    for _, place in cgroups.ask().controllers:
        found += [name for name in os.listdir(place) if name.startswith("pyrun-")]
    return found


def _too_much(pyrun: Pyrun, options: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """A command that wants more memory than it may have, what came of it, and of how many CPUs."""
    script = "head -c 100m /dev/zero | tail >/dev/null; echo $?; nproc"
    for _ in range(5):
        done = pyrun.run("sh", "-c", script, options=options, code=None)
        # While what it has killed gives its memory back, the kernel may choose process 1, too.
        if done.returncode != 137:
            break
    return done


def test_v1_limits_hold_and_nothing_is_left(root_pyrun: Pyrun) -> None:
    _needs_v1("memory", "pids", "cpu", "cpuset")
    before = _ours()
    options = ("--memory", "24m", "--cpuset-cpus", "0", "--cpus", "0.5")
    done = _too_much(root_pyrun, options)
    assert done.stdout.split() == ["137", "1"], done
    done = root_pyrun.run(
        "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done 2>&1; wait",
        options=("--pids-limit", "5"), code=None,
    )  # fmt: skip
    assert "fork" in (done.stdout + done.stderr).lower()
    assert _ours() == before


def test_limits_can_be_changed_while_it_runs(root_pyrun: Pyrun) -> None:
    _needs_v1("memory", "freezer")
    root_pyrun.start("u", "sleep", "100", options=("--memory", "100m"))
    root_pyrun("update", "--memory", "50m", "u")
    shown = root_pyrun("stats", "--format", "{{.MemoryLimit}}", "u").stdout
    assert shown.strip() == str(50 << 20)
    root_pyrun("pause", "u")
    assert root_pyrun("ps", "--format", "{{.Status}}").stdout == "paused\n"
    assert "paused" in root_pyrun("exec", "u", "true", code=125).stderr
    root_pyrun("unpause", "u")
    root_pyrun("exec", "u", "true")
    root_pyrun("stop", "-t", "0", "u")


@pytest.fixture
def delegated() -> Iterator[str]:
    """A v1 subtree that root has handed to the test's user."""
    if os.geteuid() != 0:
        pytest.skip("needs root to hand a cgroup over")
    _needs_v1("memory", "pids", "cpu")
    name = f"pyrun-test-{os.getpid()}"
    made = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        words = right.split()
        if words[0] == "cgroup" and {"memory", "pids", "cpu"} & set(words[2].split(",")):
            directory = Path(left.split()[4]) / name
            directory.mkdir()
            made.append(directory)
            for path in (directory, *directory.iterdir()):
                os.chown(path, UID, UID)
    yield name
    for directory in made:
        directory.rmdir()


def test_a_delegated_subtree_serves_an_ordinary_user(
    delegated: str, tmp_path: Path, tiny_root: Path, accounts: None
) -> None:
    from tests.runtime.conftest import make_pyrun

    pyrun = make_pyrun("user", tmp_path, tiny_root)
    options = ("--cgroup-parent", f"/{delegated}", "--memory", "24m", "--pids-limit", "50")
    done = _too_much(pyrun, options)
    assert done.stdout.split()[0] == "137", done
    # These count the union's daemon in, which has an id of its own later.
    for counted in (("--cpus", "0.5"), ("--cpus", "2", "--memory", "64m"), ()):
        for _ in range(3):
            pyrun.run("true", options=("--cgroup-parent", delegated, *counted))
    pyrun.clean()
    os.chown(tmp_path, 0, 0)


def _disk_of(path: str) -> str:
    """The whole disk that a directory is on, as /dev/NAME."""
    number = os.stat(path).st_dev
    place = os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if os.path.exists(f"{place}/partition"):
        place = os.path.dirname(place)
    return f"/dev/{os.path.basename(place)}"


def test_a_limit_of_bytes_a_second_holds_on_the_containers_root(root_pyrun: Pyrun) -> None:
    _needs_v1("blkio")
    disk = _disk_of(str(root_pyrun.place))
    if not os.path.exists(disk) or not os.path.exists(f"/sys/block/{os.path.basename(disk)}"):
        pytest.skip("this kernel has no disk beneath the temporary directory")
    lower = root_pyrun.rootfs / "big"
    lower.write_bytes(os.urandom(3 << 20))
    with lower.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    read = "dd if=/big of=/dev/null bs=64k"
    begun = time.monotonic()
    root_pyrun.run("sh", "-c", read, options=("--device-read-bps", f"{disk}:1m"))
    took = time.monotonic() - begun
    lower.unlink()
    assert took > 1.8, "three MiB at one a second"
    done = root_pyrun.run("true", options=("--device-write-bps", f"{disk}:1m"), code=125)
    assert "page cache" in done.stderr
