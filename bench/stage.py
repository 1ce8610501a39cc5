"""One peer, one workload, once: run as a process of its own in fresh namespaces.

The process is the first of its PID namespace, so every other process in it
after mounting belongs to the mount, is waited for at the end, and dies with
us; the mount namespace takes the mount along. ``run`` starts it with an ``Order`` on
standard input and reads one line, a ``Result``, from standard output.

Workloads for images and containers, where an ordinary user runs the bench, have no such
namespaces, since what they measure makes its own; what they leave is ended by us.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench import account, processes
from bench.account import Account
from bench.processes import Watch
from bench.workload import FILESYSTEM, PROVIDERS, REGISTRY, Sizes, Skipped, load
from runtime.sys.calls import set_child_subreaper
from unionfs.errors import UserError
from unionfs.ops import STATS_XATTR
from unionfs.sys import calls
from unionfs.sys.mountinfo import read_mounts

_DROP_CACHES: Final = "/proc/sys/vm/drop_caches"
_MOUNT_SECONDS: Final = 60
#: A command that has mounted and is still there after this time serves in the foreground.
_FOREGROUND_SECONDS: Final = 1
_END_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Order:
    """What a stage is to do.

    Attributes:
        command: mounts, fields filled in; empty: the stack is copied to ``mnt``. For
            workloads that are not for filesystems it is theirs to run.
        lowers: the stack, topmost first.
        place: an empty directory for the peer's files, on the disk that is measured.
        drop: whether caches may be dropped.
        peer: its name.
        home: a directory that lasts from one turn of the peer to the next; for workloads that
            are not for filesystems.
        run: the same, with a short name, for what does not outlive the turn.
        account: whom to turn into.
    """

    command: list[str]
    workload: str
    lowers: list[str]
    place: str
    sizes: Sizes
    drop: bool
    providers: list[str]
    peer: str = ""
    home: str = ""
    run: str = ""
    account: Account | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """One row, once.

    Attributes:
        seconds: for all ``count`` operations.
        cpu: seconds the mount's processes computed meanwhile; None without such.
        messages: requests of the kernel by name, where the daemon counts them.
        bytes: of memory or disk, in rows that are about these; ``seconds`` is 0 then.
    """

    row: str
    seconds: float
    count: int
    cpu: float | None = None
    messages: dict[str, int] | None = None
    bytes: int | None = None


@dataclass(slots=True)
class Result:
    """All that a stage has to say.

    Attributes:
        error: why it ended early; empty if it did not.
        skipped: why the workload does not apply here; empty if it does.
        mount_seconds: from starting the command until the mount was there.
        peak_memory: bytes, the sum of the peaks of the mount's processes.
        cpu: seconds of the mount's processes in their whole life.
        drops: how often this stage dropped caches.
        features: what the daemon says of itself.
    """

    measures: list[Measure] = field(default_factory=list)
    error: str = ""
    skipped: str = ""
    mount_seconds: float = 0.0
    peak_memory: int = 0
    cpu: float = 0.0
    drops: int = 0
    features: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Timing:
    """What a body under ``Stage.measure`` may say better than the clock.

    Attributes:
        seconds: as the program that was run measured them itself.
        count: how many operations there were.
    """

    count: int
    seconds: float | None = None


class Stage:
    """What a workload works with.

    Attributes:
        mnt: the mount point.
        upper: what takes the changes; filled by ``Workload.prepare`` only.
        scratch: an empty directory on the same disk, outside of the mount.
        lowers: the stack, topmost first.
    """

    def __init__(self, order: Order) -> None:
        place = Path(order.place)
        self.order = order
        self.sizes = order.sizes
        self.lowers = order.lowers
        self.mnt = str(place / "m")
        self.upper = str(place / "u")
        self.scratch = str(place / "s")
        self.result = Result()
        self.daemons: list[int] = []
        self._look: dict[str, int] = {}
        for name in ("m", "u", "w", "s"):
            (place / name).mkdir()
        if not order.command:
            self.upper = self.mnt

    # -- for workloads --------------------------------------------------------------

    @contextlib.contextmanager
    def measure(self, row: str, count: int = 1) -> Iterator[Timing]:
        """Time the body as ``count`` operations of ``row``; a body that fails is no figure."""
        timing = Timing(count)
        before = self._messages()
        cpu = self._cpu()
        gc.disable()
        start = time.perf_counter()
        try:
            yield timing
            seconds = time.perf_counter() - start
        finally:
            gc.enable()
        spent = self._cpu() - cpu if self.daemons else None
        after = self._messages()
        messages = (
            None if before is None or after is None else _minus(_minus(after, before), self._look)
        )
        if timing.seconds is not None:
            seconds = timing.seconds
        self.result.measures.append(Measure(row, seconds, timing.count, spent, messages))

    def amount(self, row: str, size: int) -> None:
        """A figure of memory or disk, in bytes."""
        self.result.measures.append(Measure(row, 0.0, 1, bytes=size))

    def each(self, row: str, call: Callable[[Any], object], items: Iterable[Any]) -> None:
        """Time ``call`` for each of ``items``, made before."""
        items = list(items)
        with self.measure(row, len(items)):
            for item in items:
                call(item)

    def drop_caches(self) -> bool:
        """Empty the kernel's caches, where that is permitted and wanted."""
        if not self.order.drop:
            return False
        os.sync()
        try:
            with open(_DROP_CACHES, "w") as drop:
                drop.write("3")
        except OSError:
            return False
        self.result.drops += 1
        return True

    def run(self, command: list[str], **options: Any) -> None:
        """Run a program quietly. Raises OSError with the end of what it said if it fails."""
        options = {"stdin": subprocess.DEVNULL, "cwd": self.mnt, **options}
        done = subprocess.run(command, capture_output=True, check=False, **options)
        if done.returncode:
            said = os.fsdecode(done.stderr or done.stdout).strip().splitlines()[-1:]
            raise OSError(0, f"{command[0]}: exit code {done.returncode} {' '.join(said)}")

    def call(self, command: list[str], **options: Any) -> str:
        """Run a program that may leave daemons behind; what it printed.

        Its output goes to files: daemons that inherit a pipe would keep it open.

        Raises:
            OSError: it failed; with the last line that it said.
        """
        with tempfile.TemporaryFile(dir=self.scratch) as out:
            with tempfile.TemporaryFile(dir=self.scratch) as errors:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=errors,
                    check=False,
                    **{"cwd": self.scratch, **options},
                )
                texts = []
                for file in (out, errors):
                    file.seek(0)
                    texts.append(os.fsdecode(file.read()).strip())
        if done.returncode:
            said = (texts[1] or texts[0]).splitlines()[-1:]
            program = os.path.basename(command[0])
            raise OSError(0, f"{program}: exit code {done.returncode} {' '.join(said)}")
        return texts[0]

    def watch(self) -> Watch:
        """The memory of all processes of the stage, while the body runs."""
        return Watch()

    # -- for this module ------------------------------------------------------------

    def settle(self) -> None:
        """Make ready for what is not a filesystem; errors as OSError."""
        person = self.order.account
        if os.getpid() != 1:
            set_child_subreaper()
            return
        account.leave_hybrid_cgroups()
        if person is not None:
            account.open_fuse(self.order.place)
            for place in (
                self.order.place,
                self.order.home,
                self.order.run,
                self.mnt,
                self.scratch,
            ):
                os.chown(place, person.uid, person.gid)
            account.become(person)

    def _cpu(self) -> float:
        return sum(processes.cpu_seconds(pid) for pid in self.daemons)

    def _messages(self) -> dict[str, int] | None:
        try:
            return dict(json.loads(os.getxattr(self.mnt, STATS_XATTR))["requests"])
        except (OSError, ValueError, KeyError):
            return None

    def mount(self) -> None:
        """Mount, and find the processes that serve.

        Raises:
            UserError: the command fails, or nothing is mounted after a minute.
        """
        if not self.order.command:
            for lower in reversed(self.lowers):
                subprocess.run(["cp", "-aT", lower, self.mnt], check=True)
            return
        start = time.perf_counter()
        log = Path(self.scratch) / "log"
        with open(log, "wb") as output:
            child = subprocess.Popen(
                self.order.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=os.path.dirname(self.lowers[0]),
            )
        seen = None
        while True:
            code = child.poll()
            here = self._mounted()
            now = time.perf_counter() - start
            if here and seen is None:
                seen = now
            if code is not None and (code or not here):
                said = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise UserError(f"not mounted: exit code {code} {' '.join(said)}")
            if seen is not None and code is not None:
                self.result.mount_seconds = now
                break
            if seen is not None and now - seen > _FOREGROUND_SECONDS:
                self.result.mount_seconds = seen
                break
            if now > _MOUNT_SECONDS:
                raise UserError(f"nothing is mounted after {_MOUNT_SECONDS} s")
            time.sleep(0.001)
        self.daemons = processes.others()
        log.unlink()
        with contextlib.suppress(OSError, ValueError, KeyError):
            self.result.features = json.loads(os.getxattr(self.mnt, STATS_XATTR))["features"]
        # A look at the counters sends messages itself; a pair of looks says how many.
        before, after = self._messages(), self._messages()
        if before is not None and after is not None:
            self._look = _minus(after, before)

    def _mounted(self) -> bool:
        point = os.fsencode(os.path.realpath(self.mnt))
        return any(mount.mount_point == point for mount in read_mounts())

    def finish(self) -> None:
        """Unmount; wait for the processes, and take stock of them."""
        if os.getpid() != 1:
            _end(processes.others())
        self.result.peak_memory = sum(processes.peak_memory(pid) for pid in self.daemons)
        cpu = {pid: processes.cpu_seconds(pid) for pid in self.daemons}
        with contextlib.suppress(OSError):
            if self._mounted():
                self._unmount()
        deadline = time.monotonic() + _END_SECONDS
        for pid in self.daemons:
            while True:
                try:
                    ended, _, usage = os.wait4(pid, os.WNOHANG)
                except ChildProcessError:
                    break
                if ended:
                    cpu[pid] = usage.ru_utime + usage.ru_stime
                    break
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.001)
        self.result.cpu = sum(cpu.values())

    def _unmount(self) -> None:
        point = os.fsencode(self.mnt)
        try:
            calls.umount2(point, 0)
        except OSError:
            calls.umount2(point, calls.MNT_DETACH)


def _minus(counts: dict[str, int], less: dict[str, int]) -> dict[str, int]:
    """Counters by name, what is not above zero left out."""
    left = {name: count - less.get(name, 0) for name, count in counts.items()}
    return {name: count for name, count in left.items() if count > 0}


def _end(pids: list[int]) -> None:
    """Kill what a workload left; in a PID namespace of our own the kernel does that."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _END_SECONDS
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.001)


def play(order: Order) -> Result:
    """Carry out an order; errors of the workload and of mounting end up in the result."""
    PROVIDERS[:] = order.providers
    load()
    workload = REGISTRY[order.workload]
    stage = Stage(order)
    result = stage.result
    try:
        if workload.prepare is not None:
            workload.prepare(stage)
        if workload.kind == FILESYSTEM:
            stage.mount()
        else:
            stage.settle()
        workload.run(stage)
    except Skipped as reason:
        result.skipped = str(reason)
    except UserError as error:
        result.error = str(error)
    except OSError as error:
        where = f"{os.path.basename(os.fsdecode(error.filename))}: " if error.filename else ""
        result.error = f"{where}{error.strerror or error}"
    except subprocess.CalledProcessError as error:
        result.error = f"{error.cmd[0]}: exit code {error.returncode}"
    finally:
        stage.finish()
    return result


def to_json(value: Order | Result) -> str:
    """One line."""
    return json.dumps(dataclasses.asdict(value))


def order_from(text: str) -> Order:
    """The reverse of ``to_json``."""
    values = json.loads(text)
    values["sizes"] = Sizes(**values["sizes"])
    values["account"] = values["account"] and Account(**values["account"])
    return Order(**values)


def result_from(text: str) -> Result:
    """The reverse of ``to_json``."""
    values = json.loads(text)
    values["measures"] = [Measure(**measure) for measure in values["measures"]]
    return Result(**values)


def main() -> int:
    """What ``run`` starts."""
    order = order_from(sys.stdin.read())
    result = play(order)
    shutil.rmtree(os.path.join(order.place, "s"), ignore_errors=True)
    print(to_json(result))
    return 0
