"""Limits by cgroups: v2, v1, and hosts with both.

A container has an *outer* group, which its union daemon shares (the daemon does
the container's input and output, so io and cpu limits count it in), and an
*inner* one with the container alone (memory, pids, freezer, cpuset): the daemon
is never frozen or killed by a limit. In v1, where each controller has a tree of
its own, they are one group each; in v2 the outer one has the children
``container`` and ``union``.

A limit that this host cannot enforce is an error that names what would enable
it, or with ``--limits best-effort`` a warning. On v1 a container without limits
joins no group: moving a process costs milliseconds there.

See Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the kernel.
"""

from __future__ import annotations

import os
import stat

from runtime.cgroupfs import DEVICES, OPTIONAL, OUTER, PREFIX, read
from runtime.errors import RunError
from runtime.plan import CgroupPlan
from runtime.values import integer, real, size
from runtime.volumes import parse_device
from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.request import RunRequest

_PERIOD = 100_000
_UNLIMITED = ("0", "-1")
#: Bytes; with less, process 1 would not even come to execute a command. Docker has the same bound.
_LEAST_MEMORY = 6 << 20
#: Devices that every container has, its terminals, and nodes of any (which open nothing).
_DEVICES = ("c *:* m", "b *:* m", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm",
            "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm")  # fmt: skip


class Host(Record):
    """Where the caller's cgroups are.

    ``controllers`` are (name, directory of the caller's group) of v1; ``unified`` the
    caller's v2 group (empty: none), ``available`` the controllers that it may hand on.
    """

    controllers: tuple[tuple[str, str], ...]
    unified: str
    available: tuple[str, ...]


def ask() -> Host:
    """Look at /proc/self/mountinfo and /proc/self/cgroup."""
    mounts: dict[str, tuple[str, str]] = {}
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            if "cgroup" not in line:
                continue
            left, _, right = line.partition(" - ")
            fields, words = left.split(), right.split()
            if words[0] == "cgroup2":
                mounts["2"] = (fields[4], fields[3])
            elif words[0] == "cgroup":
                for name in words[2].split(","):
                    mounts[name] = (fields[4], fields[3])
    found, unified = [], ""
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            _, names, path = line.rstrip("\n").split(":", 2)
            if not names:
                unified = _place(mounts.get("2"), path)
                continue
            for name in names.split(","):
                place = _place(mounts.get(name), path)
                if place and not name.startswith("name="):
                    found.append((name, place))
    available: tuple[str, ...] = ()
    if unified:
        available = tuple(read(f"{unified}/cgroup.controllers").split())
    return Host(controllers=tuple(found), unified=unified, available=available)


def _place(mount: tuple[str, str] | None, path: str) -> str:
    if mount is None:
        return ""
    point, root = mount
    if root != "/" and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :] or "/"
    return f"{point}{path}".rstrip("/") if not path.startswith("/..") else ""


def is_unified() -> bool:
    """Whether the host has cgroup v2 alone: only then a container gets a view of it."""
    try:
        return os.stat("/sys/fs/cgroup/cgroup.controllers").st_size >= 0
    except OSError:
        return False


# -- what is asked ------------------------------------------------------------------

#: (option, controller in v1, controller in v2, v1 files, v2 files); files are (name, text)
Limit = tuple[str, str, str, tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]


def _device(text: str, what: str) -> tuple[str, str]:
    path, colon, value = text.rpartition(":")
    try:
        number = os.stat(path).st_rdev if colon else 0
        mode = os.stat(path).st_mode if colon else 0
    except OSError as error:
        raise RunError(f"{what} {path}: {error.strerror}") from None
    if not stat.S_ISBLK(mode):
        raise RunError(f"{what} {text}: not DEVICE:VALUE with a block device")
    return f"{os.major(number)}:{os.minor(number)}", value


def wanted(request: RunRequest, *, change: bool = False) -> list[Limit]:
    """The limits of a request; ``change``: of a container that runs, where one may be lifted.

    Raises:
        RunError: a value that is not understood.
    """
    cpu, memory = _cpu(request, change), _memory(request, change)
    return [*cpu, *memory, *_others(request, change), *_devices(request), *_io(request)]


def _cpu(request: RunRequest, change: bool) -> list[Limit]:
    found: list[Limit] = []
    if request.cpus and (request.cpu_quota or request.cpu_period):
        raise RunError("--cpus and --cpu-quota/--cpu-period contradict each other")
    period = _PERIOD
    if request.cpu_period:
        period = integer(request.cpu_period, "--cpu-period", 1000, 1_000_000)
    if request.cpus == "-1" and not change:
        request = request.replace(cpus="")  # there is none to lift
    if request.cpus or request.cpu_quota:
        if request.cpus == "-1":
            quota = -1
        elif request.cpus:
            quota = max(1000, int(real(request.cpus, "--cpus", 0.01, 4096) * period))
        else:
            quota = integer(request.cpu_quota, "--cpu-quota", -1)
        v1 = (("cpu.cfs_period_us", str(period)), ("cpu.cfs_quota_us", str(quota)))
        v2 = (("cpu.max", f"{'max' if quota < 0 else quota} {period}"),)
        found.append(("--cpus" if request.cpus else "--cpu-quota", "cpu", "cpu", v1, v2))
    elif request.cpu_period:
        if change:
            raise RunError("--cpu-period alone changes nothing", "give --cpu-quota with it")
        alone, unlimited = (("cpu.cfs_period_us", str(period)),), (("cpu.max", f"max {period}"),)
        found.append(("--cpu-period", "cpu", "cpu", alone, unlimited))
    if request.cpu_shares:
        shares = integer(request.cpu_shares, "--cpu-shares", 2, 262144)
        weight = 1 + (shares - 2) * 9999 // 262142
        old, new = (("cpu.shares", str(shares)),), (("cpu.weight", str(weight)),)
        found.append(("--cpu-shares", "cpu", "cpu", old, new))
    for option, file, text in (
        ("--cpuset-cpus", "cpuset.cpus", request.cpuset_cpus),
        ("--cpuset-mems", "cpuset.mems", request.cpuset_mems),
    ):
        if text:
            if set(text) - set("0123456789,-"):
                raise RunError(f"{option} {text}: not a list such as 0-2,4")
            found.append((option, "cpuset", "cpuset", ((file, text),), ((file, text),)))
    return found


def _memory(request: RunRequest, change: bool) -> list[Limit]:
    found: list[Limit] = []
    memory = 0
    if request.memory and request.memory not in _UNLIMITED:
        memory = size(request.memory, "--memory")
        if memory < _LEAST_MEMORY:
            raise RunError(f"--memory {request.memory}: too small", "at least 6m")
    if memory:
        v1 = [("memory.limit_in_bytes", str(memory))]
        v2 = [("memory.max", str(memory))]
        if not request.memory_swap:  # as engines do: as much swap as memory, where it is counted
            v1.append((f"{OPTIONAL}memory.memsw.limit_in_bytes", str(2 * memory)))
            v2.append((f"{OPTIONAL}memory.swap.max", str(memory)))
        found.append(("--memory", "memory", "memory", tuple(v1), tuple(v2)))
    elif request.memory and change:
        both = ((f"{OPTIONAL}memory.memsw.limit_in_bytes", "-1"), ("memory.limit_in_bytes", "-1"))
        none = ((f"{OPTIONAL}memory.swap.max", "max"), ("memory.max", "max"))
        found.append(("--memory", "memory", "memory", both, none))
    if request.memory_swap:
        if not memory:
            raise RunError("--memory-swap needs --memory")
        unlimited = request.memory_swap == "-1"
        total = 0 if unlimited else size(request.memory_swap, "--memory-swap")
        if not unlimited and total < memory:
            raise RunError("--memory-swap counts memory and swap: it cannot be below --memory")
        old = (("memory.memsw.limit_in_bytes", "-1" if unlimited else str(total)),)
        new = (("memory.swap.max", "max" if unlimited else str(total - memory)),)
        found.append(("--memory-swap", "memory", "memory", old, new))
    if request.memory_reservation:
        low = str(size(request.memory_reservation, "--memory-reservation"))
        soft = (("memory.soft_limit_in_bytes", low),)
        found.append(("--memory-reservation", "memory", "memory", soft, (("memory.low", low),)))
    return found


def _others(request: RunRequest, change: bool) -> list[Limit]:
    found: list[Limit] = []
    unlimited = request.pids_limit in _UNLIMITED
    if request.pids_limit and (change or not unlimited):
        most = "max" if unlimited else str(integer(request.pids_limit, "--pids-limit", 1))
        found.append(("--pids-limit", "pids", "pids", (("pids.max", most),), (("pids.max", most),)))
    for text in request.hugetlb:
        page, _, value = text.partition(":")
        amount = str(size(value, f"--hugetlb {text}"))
        v1 = ((f"hugetlb.{page}.limit_in_bytes", amount),)
        found.append(("--hugetlb", "hugetlb", "hugetlb", v1, ((f"hugetlb.{page}.max", amount),)))
    return found


def _devices(request: RunRequest) -> list[Limit]:
    """Rules as soon as one is asked for: then what none allows is refused (devices.rst)."""
    option = "--device-cgroup-rule" if request.device_cgroup_rule else ""
    allowed = [_checked_rule(text) for text in request.device_cgroup_rule]
    for text in request.device:
        source, _, access = parse_device(text)
        if not {"r", "w"} <= set(access):
            option = option or f"--device {text}"
        found = os.stat(source)
        kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
        number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        allowed.append(f"{kind} {number} {access}")
    if not option:
        return []
    rules = tuple(("devices.allow", text) for text in (*_DEVICES, *allowed))
    return [(option, "devices", DEVICES, (("devices.deny", "a"), *rules), rules)]


def _checked_rule(text: str) -> str:
    words = text.split()
    numbers = words[1].split(":") if len(words) == 3 else []
    known = len(numbers) == 2 and all(
        part == "*" or (part.isascii() and part.isdigit()) for part in numbers
    )
    if not known or words[0] not in ("a", "b", "c") or set(words[2]) - set("rwm"):
        raise RunError(f"--device-cgroup-rule {text}: not understood", "such as: c 42:* rwm")
    return text


def _io(request: RunRequest) -> list[Limit]:
    found: list[Limit] = []
    if request.blkio_weight:
        weight = integer(request.blkio_weight, "--blkio-weight", 10, 1000)
        v1 = (("blkio.bfq.weight|blkio.weight", str(weight)),)
        v2 = (("io.bfq.weight|io.weight", str(weight)),)
        found.append(("--blkio-weight", "blkio", "io", v1, v2))
    for option, words, old, new in (
        ("--device-read-bps", request.device_read_bps, "read_bps", "rbps"),
        ("--device-write-bps", request.device_write_bps, "write_bps", "wbps"),
        ("--device-read-iops", request.device_read_iops, "read_iops", "riops"),
        ("--device-write-iops", request.device_write_iops, "write_iops", "wiops"),
    ):
        for text in words:
            device, value = _device(text, option)
            amount = size(value, option) if "bps" in option else integer(value, option, 1)
            v1 = ((f"blkio.throttle.{old}_device", f"{device} {amount}"),)
            found.append((option, "blkio", "io", v1, (("io.max", f"{device} {new}={amount}"),)))
    return found


# -- whether it can be had ------------------------------------------------------------


def plan(
    request: RunRequest, container: str, root: bool, *, change: bool = False
) -> CgroupPlan | None:
    """What to make and write for a container; None if nothing needs a cgroup.

    ``change``: it has groups already, and runs.

    Raises:
        RunError: a limit that cannot be enforced here.
    """
    limits = wanted(request, change=change)
    if not limits and not request.cgroup_parent and not is_unified():
        return None
    host = ask()
    name = f"{PREFIX}{container[:32]}"
    if is_unified():
        return _plan_v2(request, limits, host, name)
    return _plan_v1(request, limits, host, name)


def _refuse(option: str, why: str, hint: str, request: RunRequest, warnings: list[str]) -> None:
    if request.limits == "best-effort":
        warnings.append(f"{option} is not enforced: {why}")
        return
    raise RunError(f"{option} cannot be enforced: {why}", f"{hint}; or --limits best-effort")


def _plan_v1(request: RunRequest, limits: list[Limit], host: Host, name: str) -> CgroupPlan | None:
    places = dict(host.controllers)
    parent = request.cgroup_parent.strip("/")
    values: list[tuple[str, str, str, str]] = []
    used: dict[str, str] = {}
    warnings: list[str] = []
    for option, controller, _, files, _ in limits:
        place = places.get(controller, "")
        if not place:
            hint = f"mount the v1 controller {controller}, or boot with cgroup v2"
            _refuse(option, f"no {controller} controller is mounted", hint, request, warnings)
            continue
        where = _below_mount(place, controller, parent) if parent else place
        if not os.access(where, os.W_OK | os.X_OK):
            hint = f"as root: mkdir {where}/you && chown you {where}/you {where}/you/*, then" \
                   " --cgroup-parent"  # fmt: skip
            _refuse(option, f"{where} is not writable for you", hint, request, warnings)
            continue
        chosen = _files(where, files)
        if isinstance(chosen, str):
            hint = "a kernel with it"
            _refuse(option, f"this kernel has no {chosen}", hint, request, warnings)
            continue
        if option.startswith("--device-write"):
            # cgroup-v1/blkio-controller.rst: "buffered writes" are not throttled, and the
            # union's daemon writes no others.
            why = "cgroup v1 does not count writes that go through the page cache"
            _refuse(option, why, "boot with cgroup v2", request, warnings)
        used[controller] = where
        group = "outer" if controller in OUTER else "inner"
        values += [(group, controller, file, text) for file, text in chosen]
    if parent and not limits:
        for controller, place in places.items():
            where = _below_mount(place, controller, parent)
            if controller in ("freezer", "memory", "pids", "cpuacct", "cpu"):
                if os.access(where, os.W_OK | os.X_OK):
                    used[controller] = where
    if not used:
        return CgroupPlan(version="none", parent="", name=name, warnings=tuple(warnings)) \
            if warnings else None  # fmt: skip
    freezer = places.get("freezer", "")
    if freezer:
        where = _below_mount(freezer, "freezer", parent) if parent else freezer
        if os.access(where, os.W_OK | os.X_OK):
            used["freezer"] = where
    return CgroupPlan(
        version="1",
        parent=parent,
        name=name,
        values=tuple(values),
        controllers=tuple(f"{controller}:{where}" for controller, where in used.items()),
        warnings=tuple(warnings),
    )


def _below_mount(place: str, controller: str, parent: str) -> str:
    """``--cgroup-parent``: a path from the controller's mount, or else from the caller's group.

    The caller's groups may be elsewhere in each tree.
    """
    own = f"{place}/{parent}"
    for line in read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        words = right.split()
        if words[0] == "cgroup" and controller in words[2].split(","):
            counted = f"{left.split()[4]}/{parent}"
            return own if os.path.isdir(own) and not os.path.isdir(counted) else counted
    return own


def _files(where: str, files: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...] | str:
    """The files to write, the first of alternatives that exists; or the name of one missing."""
    chosen = []
    for names, text in files:
        alternatives = names.removeprefix(OPTIONAL).split("|")
        there = [
            file
            for file in alternatives
            if os.path.exists(f"{where}/{file}") or _in_children(where, file)
        ]
        if not there and names.startswith(OPTIONAL):
            continue
        if not there:
            return alternatives[-1]
        chosen.append((there[0], text))
    return tuple(chosen)


def _in_children(where: str, file: str) -> bool:
    """The root group lacks some files that every other has."""
    if os.path.dirname(where) and os.path.exists(f"{os.path.dirname(where)}/cgroup.procs"):
        return False
    probe = f"{where}/{PREFIX}probe-{os.getpid()}"
    try:
        os.mkdir(probe)
    except OSError:
        return False
    try:
        return os.path.exists(f"{probe}/{file}")
    finally:
        os.rmdir(probe)


def _plan_v2(request: RunRequest, limits: list[Limit], host: Host, name: str) -> CgroupPlan | None:
    mount = "/sys/fs/cgroup"
    warnings: list[str] = []
    parent = request.cgroup_parent.strip("/")
    where = f"{mount}/{parent}" if parent else _v2_parent(host)
    writable = bool(where) and os.access(where, os.W_OK | os.X_OK)
    through_systemd = not writable and not parent and by_systemd() != ""
    if not writable and not through_systemd:
        for option, *_ in limits:
            hint = "log in through systemd (a user session delegates cgroups), or --cgroup-parent"
            why = f"{where or 'no cgroup'} is not writable for you"
            _refuse(option, why, hint, request, warnings)
        if not warnings:
            return None
        return CgroupPlan(version="none", parent="", name=name, warnings=tuple(warnings))
    available = set(read(f"{where}/cgroup.controllers").split()) if writable else _delegated()
    values: list[tuple[str, str, str, str]] = []
    used: set[str] = set()
    for option, _, controller, _, files in limits:
        if controller == DEVICES:
            from runtime.sys import bpf

            refused = bpf.why_not()
            if refused:
                why = f"device rules of cgroup v2 are a program of bpf(2): {refused.lower()}"
                hint = "as root (CAP_SYS_ADMIN of the host), with a kernel with CONFIG_CGROUP_BPF"
                _refuse(option, why, hint, request, warnings)
            else:
                values += [("inner", controller, file, text) for file, text in files]
            continue
        if controller not in available:
            hint = (
                "systemctl edit user@.service: Delegate=cpu cpuset io memory pids"
                if os.geteuid() != 0
                else f"a kernel with the {controller} controller"
            )
            why = f"the controller {controller} is not delegated to {where}"
            _refuse(option, why, hint, request, warnings)
            continue
        used.add(controller)
        group = "outer" if controller in OUTER else "inner"
        values += [(group, controller, file, text) for file, text in files]
    used |= {"memory", "pids", "cpu", "io"} & available  # statistics
    return CgroupPlan(
        version="systemd" if through_systemd else "2",
        parent=where if not through_systemd else "",
        name=name,
        values=tuple(values),
        controllers=tuple(sorted(used)),
        warnings=tuple(warnings),
    )


def _v2_parent(host: Host) -> str:
    """A group that is ours to make groups in: root's is the top, others' the delegated one."""
    if os.geteuid() == 0:
        return "/sys/fs/cgroup"
    where = host.unified
    # user@UID.service is what systemd delegates; our own leaf cannot have children with limits.
    marker = f"user@{os.geteuid()}.service"
    if marker in where:
        return where[: where.index(marker) + len(marker)]
    return where


def by_systemd() -> str:
    """The user's bus, if systemd manages this session; empty if not."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    socket = f"{runtime}/systemd/private"
    from runtime.facts import find_program

    return find_program("systemd-run") if os.path.exists(socket) else ""


def _delegated() -> set[str]:
    base = f"/sys/fs/cgroup/user.slice/user-{os.geteuid()}.slice/user@{os.geteuid()}.service"
    return set(read(f"{base}/cgroup.controllers").split())
