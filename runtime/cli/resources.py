"""``top``, ``stats``, ``pause``, ``unpause`` and ``update``."""

from __future__ import annotations

import os
import sys

from runtime import cgroupfs, cgroups, console, state
from runtime.cli.output import show, table
from runtime.errors import RunError
from runtime.values import show_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.plan import CgroupPlan
    from runtime.request import RunRequest

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")
_PASSES = 1000
#: Seconds over which ``stats`` measures what it shows once.
_SAMPLE = 0.5


def _running(word: str, root: str) -> state.Container:
    container = state.Containers(root).find(word)
    if not container.supervised():
        raise RunError(f"container {word} is not running")
    return container


def processes(container: state.Container) -> list[dict[str, Any]]:
    """The container's processes, from /proc: those in process 1's pid namespace.

    Where that namespace is shared with the host, the descendants of process 1.
    """
    answer, fds = console.ask(container.directory, {"op": "namespaces"})
    by_name = dict(zip(answer["names"], fds, strict=True))
    wanted = os.fstat(by_name["pid"]).st_ino
    for fd in fds:
        os.close(fd)
    shared = wanted == os.stat("/proc/self/ns/pid").st_ino
    first = int(answer["pid"])
    every = [_process(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    found = {entry["Pid"]: entry for entry in every if entry}
    depth = _depth_of(first)
    chosen = []
    for pid, entry in found.items():
        inside = entry["NsPid"]
        below = _descends(pid, first, found)
        if below if shared else (below or (len(inside) > depth - 1 and _same(pid, wanted))):
            chosen.append(entry)
    return sorted(chosen, key=lambda entry: int(entry["Pid"]))


def _depth_of(pid: int) -> int:
    entry = _process(pid)
    return len(entry["NsPid"]) if entry else 1


def _same(pid: int, namespace: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace
    except OSError:
        return False


def _descends(pid: int, first: int, found: dict[int, dict[str, Any]]) -> bool:
    seen = 0
    while pid and pid in found and seen < 100_000:
        if pid == first:
            return True
        pid = found[pid]["Parent"]
        seen += 1
    return False


def _process(pid: int) -> dict[str, Any] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            head, _, tail = file.read().rpartition(b")")
        fields = tail.split()
        with open(f"/proc/{pid}/status", "rb") as file:
            status = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().replace(b"\0", b" ").strip()
    except (OSError, IndexError):
        return None
    inside = status.get(b"NSpid", b"").split()
    return {
        "Pid": pid,
        "Parent": int(fields[1]),
        "NsPid": [int(word) for word in inside],
        "User": int(status[b"Uid"].split()[1]),
        "State": fields[0].decode(),
        "CpuSeconds": round((int(fields[11]) + int(fields[12])) / _TICKS, 2),
        "ReapedSeconds": round((int(fields[13]) + int(fields[14])) / _TICKS, 2),
        "Threads": int(fields[17]),
        "Memory": int(fields[21]) * _PAGE,
        "Command": (command or b"[" + head.partition(b"(")[2] + b"]").decode(errors="replace"),
    }


def top(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun top``."""
    if len(rest) != 1:
        raise RunError("expected one container", "pyrun top CONTAINER")
    items = processes(_running(rest[0], root))
    if show(options, items):
        return 0
    table(
        ("PID", "INSIDE", "USER", "STATE", "CPU", "MEMORY", "COMMAND"),
        [
            (
                item["Pid"],
                item["NsPid"][-1] if item["NsPid"] else "",
                item["User"],
                item["State"],
                f"{item['CpuSeconds']}s",
                show_size(item["Memory"]),
                item["Command"],
            )
            for item in items
        ],
    )
    return 0


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def usage(container: state.Container) -> dict[str, Any]:
    """What a container uses: by its cgroup where it has one, else added up from /proc."""
    found = processes(container)
    item: dict[str, Any] = {
        "Id": container.id,
        "Name": container.name,
        "CpuSeconds": round(sum(one["CpuSeconds"] + one["ReapedSeconds"] for one in found), 2),
        "Memory": sum(entry["Memory"] for entry in found),
        "MemoryLimit": None,
        "Pids": sum(entry["Threads"] for entry in found),
        "Source": "proc",
    }
    plan = cgroupfs.stored(container)
    if plan is None:
        return item
    v1 = plan.version == "1"
    memory = cgroupfs.directory_of(plan, "inner", "memory")
    lines = [] if v1 else cgroupfs.read(f"{memory}/cpu.stat").splitlines()
    for name, _, value in (line.partition(" ") for line in lines):
        if name == "usage_usec":
            item["CpuSeconds"] = round(int(value) / 1e6, 2)
    current = _number(f"{memory}/memory.usage_in_bytes" if v1 else f"{memory}/memory.current")
    if current is not None:
        item["Memory"], item["Source"] = current, "cgroup"
    limit = _number(f"{memory}/memory.limit_in_bytes" if v1 else f"{memory}/memory.max")
    if limit is not None and limit < 1 << 60:
        item["MemoryLimit"] = limit
    pids = _number(f"{cgroupfs.directory_of(plan, 'inner', 'pids')}/pids.current")
    if pids is not None:
        item["Pids"] = pids
    return item


def _usage_of(container: state.Container, named: bool) -> dict[str, Any] | None:
    """``usage``; None: it has just ended, and nobody asked for it by name."""
    try:
        return usage(container)
    except (RunError, OSError):
        if named:
            raise
        return None


def stats(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun stats``: once into a pipe or file, every second on a terminal."""
    import time

    shown = any(options.get(word) for word in ("no_stream", "json", "format"))
    once = shown or not sys.stdout.isatty()
    before: dict[str, tuple[float, float]] = {}
    again = once  # a share of the processors is of some time, for which nothing is shown
    while True:
        if rest:
            chosen = [_running(word, root) for word in rest]
        else:
            chosen = [one for one in state.Containers(root).all() if one.supervised()]
        items = [item for container in chosen if (item := _usage_of(container, bool(rest)))]
        now = time.monotonic()
        for item in items:
            then, seconds = before.get(item["Id"], (0.0, 0.0))
            share = (item["CpuSeconds"] - seconds) / (now - then) if then else 0.0
            item["CpuPercent"] = round(100 * share, 1)
            before[item["Id"]] = (now, item["CpuSeconds"])
        if again and items:
            again = False
            time.sleep(_SAMPLE)
            continue
        if show(options, items):
            return 0
        rows = [
            (
                item["Id"][: state.SHORT],
                item["Name"],
                f"{item['CpuPercent']}%",
                f"{item['CpuSeconds']}s",
                show_size(item["Memory"]),
                show_size(item["MemoryLimit"]) if item["MemoryLimit"] else "-",
                item["Pids"],
            )
            for item in items
        ]
        if not once:
            sys.stdout.write("\x1b[H\x1b[2J")
        table(("CONTAINER", "NAME", "CPU", "CPU TIME", "MEMORY", "LIMIT", "PIDS"), rows)
        if once:
            return 0
        sys.stdout.flush()
        time.sleep(1)


def set_paused(container: state.Container, value: bool) -> None:
    """Freeze or thaw every process of a container.

    Raises:
        RunError: there is no freezer for it.
    """
    plan = cgroupfs.stored(container) or _late_freezer(container)
    path = cgroupfs.freezer(plan) if plan is not None else ""
    if not path:
        raise RunError(
            "pausing needs a cgroup with a freezer, and this container has none",
            "run it as root, in a delegated group (--cgroup-parent), or under systemd with v2",
        )
    words = ("1", "0") if path.endswith("cgroup.freeze") else ("FROZEN", "THAWED")
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(words[0] if value else words[1])
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    console.ask(container.directory, {"op": "paused", "value": value})
    state.record_event(container.root, "container", "pause" if value else "unpause", container)


def _late_freezer(container: state.Container) -> CgroupPlan | None:
    """v1: a container without limits is in no group; its processes are moved when it is paused."""
    from runtime.plan import CgroupPlan

    place = dict(cgroups.ask().controllers).get("freezer", "")
    if not place or not os.access(place, os.W_OK | os.X_OK):
        return None
    plan = CgroupPlan(
        version="1",
        parent="",
        name=f"pyrun-{container.id[:32]}",
        controllers=(f"freezer:{place}",),
    )
    cgroupfs.create(plan)
    _move_all(container, plan, 0)
    container.save_config({**container.config, "cgroup": plan.to_data()})
    return plan


def _move_all(container: state.Container, plan: CgroupPlan, union: int) -> None:
    """Every process of a container into groups; again until none was born outside meanwhile.

    Raises:
        RunError: not permitted, or they are born faster than they can be moved.
    """
    moved: set[int] = set()
    for _ in range(_PASSES):
        pids = {int(entry["Pid"]) for entry in processes(container)} - moved
        if not pids:
            return
        for pid in pids:
            try:
                cgroupfs.enter(plan, pid, union)
            except RunError:
                if os.path.exists(f"/proc/{pid}"):
                    raise
        moved |= pids
    raise RunError("the container's processes are born faster than they can be moved to a cgroup")


def _set_all(rest: list[str], root: str, value: bool) -> int:
    if not rest:
        raise RunError("no container named")
    for word in rest:
        container = _running(word, root)
        paused = container.state().get("status") == "paused"
        if paused == value:
            raise RunError(f"container {word} is {'' if paused else 'not '}paused")
        set_paused(container, value)
        sys.stdout.write(f"{word}\n")
    return 0


def pause(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun pause``."""
    return _set_all(rest, root, True)


def unpause(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun unpause``."""
    return _set_all(rest, root, False)


def update(options: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun update``: new limits now, and at the next start."""
    from runtime import facts, prepare
    from runtime.request import RunRequest, stored_request

    if not rest:
        raise RunError("no container named", "pyrun update --memory 1g CONTAINER")
    if not options:
        raise RunError("nothing to change", "pyrun update --help")
    for word in rest:
        container = state.Containers(root).find(word)
        request = _updated(stored_request(container), options)
        prepare.check(request)
        cgroups.wanted(request)
        asked = RunRequest(**{**options, "cgroup_parent": request.cgroup_parent})
        if options.get("memory_swap") or options.get("memory"):
            asked = asked.replace(memory=request.memory, memory_swap=request.memory_swap)
        if "cpu_quota" in options or "cpu_period" in options:
            asked = asked.replace(cpu_quota=request.cpu_quota, cpu_period=request.cpu_period)
        grouped = cgroupfs.stored(container) is not None
        new = cgroups.plan(asked, container.id, facts.ask().root, change=grouped)
        if container.supervised() and new is not None:
            _update_live(container, new)
        if container.supervised() and "restart" in options:
            console.ask(container.directory, {"op": "policy", "restart": options["restart"]})
        container.save_config({**container.config, "request": request.to_data()})
        sys.stdout.write(f"{word}\n")
    return 0


def _updated(request: RunRequest, options: dict[str, Any]) -> RunRequest:
    """A stored request with changes; what contradicts one of them is gone."""
    if "cpus" in options:
        request = request.replace(cpu_quota="", cpu_period="")
    elif "cpu_quota" in options or "cpu_period" in options:
        request = request.replace(cpus="")
    if options.get("memory") in ("0", "-1"):
        request = request.replace(memory_swap="")
    return request.replace(**options)


def _update_live(container: state.Container, new: CgroupPlan) -> None:
    for warning in new.warnings:
        sys.stderr.write(f"pyrun: {warning}\n")
    old = cgroupfs.stored(container)
    have = set(old.controllers) if old is not None else set()
    added = tuple(part for part in new.controllers if part not in have)
    if new.version == "1" and added:
        cgroupfs.create(new.replace(controllers=added, values=()))
        moved = new.replace(controllers=added)
        answer, fds = console.ask(container.directory, {"op": "namespaces"})
        for fd in fds:
            os.close(fd)
        _move_all(container, moved, int(answer["union"]))
        total = (*(old.controllers if old is not None else ()), *added)
        plan = new.replace(controllers=total)
        container.save_config({**container.config, "cgroup": plan.to_data()})
    cgroupfs.write(old if old is not None and not added else new, new.values)
