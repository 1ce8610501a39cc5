"""Making, filling and removing the cgroups that ``cgroups`` has planned."""

from __future__ import annotations

import errno
import os

from runtime.errors import RunError
from runtime.lean import signal
from runtime.plan import CgroupPlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime import state

#: Controllers that limit container and union daemon together.
OUTER = frozenset({"cpu", "blkio", "io"})
PREFIX = "pyrun-"
#: Before the name of a file that some kernels lack, and that is then not written.
OPTIONAL = "?"
#: In place of a v2 controller: the values are rules of a program.
DEVICES = "bpf-devices"


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _groups(plan: CgroupPlan) -> list[tuple[str, str]]:
    """(group, directory) of every cgroup of a plan, parents first."""
    if plan.version == "1":
        return [
            ("outer" if part.partition(":")[0] in OUTER else "inner",
             f"{part.partition(':')[2]}/{plan.name}")
            for part in plan.controllers
        ]  # fmt: skip
    if plan.version in ("2", "systemd"):
        top = f"{plan.parent}/{plan.name}"
        return [("outer", top), ("inner", f"{top}/container"), ("union", f"{top}/union")]
    return []


def create(plan: CgroupPlan) -> CgroupPlan:
    """Make the groups and write the limits; the plan with the place that systemd chose.

    Raises:
        RunError: a limit that the kernel does not take; nothing is left.
    """
    if plan.version == "systemd":
        plan = plan.replace(version="2", parent=_make_scope(plan.name))
    try:
        if plan.version == "2":
            _hand_on(plan.parent, plan.controllers)
        for _, directory in _groups(plan):
            try:
                os.mkdir(directory, 0o755)
            except FileExistsError:
                pass
            if directory.endswith(f"/{plan.name}") and plan.version == "2":
                _hand_on(directory, plan.controllers)
            if os.path.exists(f"{directory}/cpuset.cpus") and plan.version == "1":
                _fill_cpuset(directory)
        write(plan, plan.values)
    except OSError as error:
        remove(plan)
        raise RunError(f"cgroup {error.filename}: {error.strerror}") from None
    except BaseException:
        remove(plan)
        raise
    return plan


def _make_scope(name: str) -> str:
    """A delegated scope of the user's systemd with this process in it; its directory.

    This process moves into a leaf, so that the scope can have children with limits.

    Raises:
        RunError: systemd refuses.
    """
    from runtime import cgroups
    from runtime.facts import find_program

    unit = f"{name}-{os.getpid()}.scope"
    manager = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1",
               "org.freedesktop.systemd1.Manager")  # fmt: skip
    words = ["busctl", "--user", "--quiet", "call", *manager, "StartTransientUnit",
             "ssa(sv)a(sa(sv))", unit, "fail", "2", "PIDs", "au", "1", str(os.getpid()),
             "Delegate", "b", "true", "0"]  # fmt: skip
    program = find_program("busctl")
    if not program:
        raise RunError("limits through systemd need busctl", "apt-get install systemd")
    environment = dict(os.environ)
    environment.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    pid = os.posix_spawn(program, words, environment)
    if os.waitpid(pid, 0)[1]:
        raise RunError(f"systemd made no scope {unit}", "see: systemctl --user status")
    import time

    for _ in range(500):  # the job is carried out after the call has returned
        where = cgroups.ask().unified
        if where.endswith(unit):
            break
        time.sleep(0.01)
    else:
        raise RunError(f"systemd did not put this process into {unit}")
    leaf = f"{where}/supervisor"
    os.mkdir(leaf)
    _write(f"{leaf}/cgroup.procs", str(os.getpid()))
    return where


def _hand_on(directory: str, controllers: tuple[str, ...]) -> None:
    """Enable controllers for the children (cgroup-v2.rst, "Controlling Controllers")."""
    enabled = set(read(f"{directory}/cgroup.subtree_control").split())
    for controller in controllers:
        if controller not in enabled:
            try:
                _write(f"{directory}/cgroup.subtree_control", f"+{controller}")
            except OSError as error:
                raise RunError(
                    f"controller {controller} in {directory}: {error.strerror}",
                    "a group with processes of its own cannot hand controllers on",
                ) from None


def _fill_cpuset(directory: str) -> None:
    """v1: a new group has no processors until it is given some."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if not read(f"{directory}/{file}").strip():
            _write(f"{directory}/{file}", read(f"{os.path.dirname(directory)}/{file}").strip())


def write(plan: CgroupPlan, values: tuple[tuple[str, str, str, str], ...]) -> None:
    """Write limits into the groups of a plan.

    Raises:
        RunError: the kernel refuses one.
    """
    later: list[tuple[str, str, str, str]] = []
    rules = tuple(text for _, controller, _, text in values if controller == DEVICES)
    if rules:
        _allow_devices(directory_of(plan, "inner", ""), rules)
    for value in values:
        if value[1] == DEVICES:
            continue
        # v1: memory and memory with swap bound each other, so what is right to begin with
        # depends on what they were.
        if not _write_value(plan, value, forgiving=True):
            later.append(value)
    for value in later:
        _write_value(plan, value)


def _allow_devices(directory: str, rules: tuple[str, ...]) -> None:
    from runtime.sys import bpf

    try:
        bpf.allow_devices(directory, rules)
    except OSError as error:
        raise RunError(f"device rules of {directory}: {error.strerror}") from None


def _write_value(
    plan: CgroupPlan, value: tuple[str, str, str, str], *, forgiving: bool = False
) -> bool:
    """Write one limit; ``forgiving``: False for one that is not valid beside the others."""
    group, controller, file, text = value
    directory = directory_of(plan, group, controller)
    try:
        _write(f"{directory}/{file.removeprefix(OPTIONAL)}", text)
    except FileNotFoundError as error:
        if not file.startswith(OPTIONAL):
            raise RunError(f"limit {file} = {text}: {error.strerror}") from None
    except OSError as error:
        if forgiving and error.errno == errno.EINVAL and ".limit_in_bytes" in file:
            return False
        hint = "processors and nodes must be among those of the parent group"
        raise RunError(
            f"limit {file.removeprefix(OPTIONAL)} = {text}: {error.strerror}",
            hint if file.startswith("cpuset") else "",
        ) from None
    return True


def directory_of(plan: CgroupPlan, group: str, controller: str) -> str:
    """The directory in which a controller's files of a group are; empty: there is none."""
    if plan.version == "1":
        for part in plan.controllers:
            name, _, where = part.partition(":")
            if name == controller:
                return f"{where}/{plan.name}"
        return ""
    return dict(_groups(plan)).get(group, "")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def enter(plan: CgroupPlan, pid: int, union: int) -> None:
    """Put the container's first process and its union daemon where they belong.

    Raises:
        RunError: not permitted.
    """
    try:
        for group, directory in _groups(plan):
            if _has_container(plan, group):
                _write(f"{directory}/cgroup.procs", str(pid))
            if union and (group == "union" or (plan.version == "1" and group == "outer")):
                _write(f"{directory}/cgroup.procs", str(union))
    except OSError as error:
        raise RunError(
            f"cgroup {error.filename}: {error.strerror}",
            "moving a process takes write access to the group that both come from",
        ) from None


def _has_container(plan: CgroupPlan, group: str) -> bool:
    """Whether the container's processes are members of a group of ``_groups``."""
    return group == "inner" or (group == "outer" and plan.version == "1")


def remove(plan: CgroupPlan) -> None:
    """Remove the groups; what still lives in them is killed first (v2: cgroup.kill)."""
    for _, directory in reversed(_groups(plan)):
        for _ in range(200):
            try:
                os.rmdir(directory)
                break
            except FileNotFoundError:
                break
            except OSError:
                _kill_all(directory, plan)


def _kill_all(directory: str, plan: CgroupPlan) -> None:
    import select

    pids = [int(word) for word in read(f"{directory}/cgroup.procs").split()]
    waiting = select.poll()
    fds = []
    for pid in pids:
        try:
            fd = os.pidfd_open(pid)
            fds.append(fd)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            waiting.register(fd, select.POLLIN)
        except OSError:
            continue
    thaw(plan)
    # The group is empty a moment after its last process has been reaped.
    waiting.poll(50)
    for fd in fds:
        os.close(fd)


def stored(container: state.Container) -> CgroupPlan | None:
    """The cgroup plan written down for a container."""
    data: Any = container.config.get("cgroup")
    if not data or data.get("version") == "none":
        return None
    values = tuple(tuple(value) for value in data.get("values") or ())
    return CgroupPlan.from_data({**data, "values": values})


def openings(container: state.Container) -> list[int]:
    """Descriptors of the container's groups: who writes 0 to each is in them.

    For what is executed in it later, which has no names of groups at hand. The caller itself stays
    outside: it is not frozen with the container, and nothing of it counts there.

    Raises:
        RunError: not permitted.
    """
    plan = stored(container)
    if plan is None:
        return []
    if plan.version != "1" and os.geteuid() != 0 and not _may_enter(plan):
        from runtime import cgroups

        if cgroups.by_systemd():
            # From a scope of the user's own systemd both have an ancestor that is the user's.
            _make_scope(f"{PREFIX}exec-{container.id[:16]}")
    fds: list[int] = []
    try:
        for group, directory in _groups(plan):
            if _has_container(plan, group):
                fds.append(os.open(f"{directory}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise RunError(f"cgroup {error.filename}: {error.strerror}") from None
    return fds


def _may_enter(plan: CgroupPlan) -> bool:
    """Try it with a child (cgroup-v2.rst, "Delegation Containment")."""
    pid = os.fork()
    if pid == 0:
        try:
            enter(plan, os.getpid(), 0)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def thaw(plan: CgroupPlan) -> None:
    """Let the container's processes run; on v1 they take no signal while they are frozen."""
    path = freezer(plan)
    if path:
        try:
            _write(path, "0" if path.endswith("cgroup.freeze") else "THAWED")
        except OSError:
            pass  # there is no such group any more


def freezer(plan: CgroupPlan) -> str:
    """The file that freezes the container, or an empty string."""
    if plan.version in ("2", "systemd"):
        return f"{directory_of(plan, 'inner', '')}/cgroup.freeze"
    directory = directory_of(plan, "inner", "freezer")
    return f"{directory}/freezer.state" if directory else ""
