"""Rows of containers: starting one, going into one, what one takes while it runs.

Each row is there twice: as root, and as an ordinary user (``-rootless``).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench import processes
from bench.account import as_root
from bench.engines import Engine, engine, remove_cgroups
from bench.stage import Stage
from bench.workload import CONTAINER, Row, Skipped, Workload, register

_PARALLEL: Final = 10
_START_SECONDS: Final = 60
#: What a container does after its start is over by then.
_SETTLE_SECONDS: Final = 0.5


def _suffix(stage: Stage) -> str:
    return "-rootless" if stage.order.workload.endswith("-rootless") else ""


def _prepare(stage: Stage) -> None:
    """Bring the image in, and try it: whatever fails here fails everywhere."""
    driver = engine(stage)
    driver.prepare()
    stage.call(driver.run("try", "true"), env=driver.environment)
    _clean()


def _clean() -> None:
    with as_root():
        remove_cgroups()


def _run(stage: Stage) -> None:
    driver = engine(stage)
    count = stage.sizes.starts
    commands = [driver.run(f"run{number}", "true") for number in range(count + 1)]
    # The first one after a while also pays for caches, and podman's for its state.
    stage.call(commands[0], env=driver.environment)
    with stage.measure(f"run{_suffix(stage)}", count):
        for command in commands[1:]:
            stage.call(command, env=driver.environment)
    _clean()


def _parallel(stage: Stage) -> None:
    driver = engine(stage)
    stage.call(driver.run("first", "true"), env=driver.environment)
    commands = [driver.run(f"run{number}", "true") for number in range(_PARALLEL)]
    with open(Path(stage.scratch) / "errors", "w+b") as errors:
        with stage.measure(f"run-parallel{_suffix(stage)}"):
            children = [
                subprocess.Popen(
                    command,
                    env=driver.environment,
                    cwd=stage.scratch,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                )
                for command in commands
            ]
            codes = [child.wait() for child in children]
        if any(codes):
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            # What failed is no figure.
            stage.result.measures.pop()
            failed = sum(map(bool, codes))
            raise OSError(0, f"{failed} of {_PARALLEL} failed: {' '.join(said)}")
    _clean()


def _inside(stage: Stage) -> None:
    """The time to go into a container that runs, and its memory."""
    driver = engine(stage)
    command = driver.start("bench")
    if driver.detaches:
        stage.call(command, env=driver.environment)
    else:
        subprocess.Popen(
            command,
            env=driver.environment,
            cwd=stage.scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    _wait_for_sleep()
    try:
        if driver.detaches:
            _exec(stage, driver)
        time.sleep(_SETTLE_SECONDS)
        stage.amount(f"container-memory{_suffix(stage)}", _memory())
    finally:
        if driver.detaches:
            stage.call(driver.stop("bench"), env=driver.environment)
        _clean()


def _exec(stage: Stage, driver: Engine) -> None:
    count, command = stage.sizes.starts, driver.exec("bench")
    stage.call(command, env=driver.environment)
    with stage.measure(f"exec{_suffix(stage)}", count):
        for _ in range(count):
            stage.call(command, env=driver.environment)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _wait_for_sleep() -> None:
    """Return when the container's command is there. Raises OSError if it is not in time."""
    deadline = time.monotonic() + _START_SECONDS
    while not any(_name(pid) == "sleep" for pid in processes.others()):
        if time.monotonic() > deadline:
            raise OSError(0, "the container's command did not start")
        time.sleep(0.005)


def _memory() -> int:
    """What the processes outside of the container take: supervisors, filesystems, networks."""
    with as_root():
        try:
            mine = processes.outside(processes.others())
            return sum(processes.proportional_memory(pid) for pid in mine)
        except PermissionError:
            raise Skipped("only root may look at the memory of some of its processes") from None


def _register(suffix: str, text: str) -> None:
    user = bool(suffix)
    ready = f"container{suffix}"
    register(Workload(ready, (), _prepare, "container", kind=CONTAINER, user=user))
    rows: tuple[tuple[str, Callable[[Stage], None], tuple[Row, ...]], ...] = (
        (
            "start",
            _run,
            (
                Row(
                    f"run{suffix}",
                    f"run true in a new container, {text}",
                    "ms",
                    podman_goal=0.35,
                    most=60,
                ),
            ),
        ),
        (
            "inside",
            _inside,
            (
                Row(
                    f"exec{suffix}",
                    f"run true in a running container, {text}",
                    "ms",
                    podman_goal=0.2,
                ),
                Row(
                    f"container-memory{suffix}",
                    f"memory (Pss) of all that runs outside of a container for it, {text}",
                    "MiB",
                    most=38,
                ),
            ),
        ),
        (
            "starts",
            _parallel,
            (
                Row(
                    f"run-parallel{suffix}",
                    f"{_PARALLEL} containers that run true at once, {text}",
                    "s",
                    podman_goal=0.35,
                ),
            ),
        ),
    )
    for name, run, made in rows:
        register(
            Workload(
                f"{name}{suffix}", made, run, "container", kind=CONTAINER, user=user, needs=ready
            )
        )


_register("", "by root")
_register("-rootless", "by an ordinary user")
