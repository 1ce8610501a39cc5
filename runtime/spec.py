"""The OCI configuration of a container (runtime-spec config.md), from a request and an image."""

from __future__ import annotations

import os

from runtime import caps
from runtime.errors import RunError
from runtime.values import integer, size
from runtime.volumes import Volume, oci_mount, parse_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.facts import HostFacts
    from runtime.ids import IdPlan
    from runtime.request import RunRequest

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: What must not be seen, and what must not be written (as engines have it).
MASKED = (
    "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats"
    " /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats /sys/dev/block"
    " /sys/devices/virtual/powercap /sys/firmware /sys/fs/selinux"
).split()
READ_ONLY = "/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger".split()

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_RLIMITS = {
    "core": 4, "cpu": 0, "data": 2, "fsize": 1, "locks": 10, "memlock": 8, "msgqueue": 12,
    "nice": 13, "nofile": 7, "nproc": 6, "rss": 5, "rtprio": 14, "rttime": 15, "sigpending": 11,
    "stack": 3, "as": 9,
}  # fmt: skip


def _arguments(request: RunRequest, image: dict[str, Any]) -> list[str]:
    entrypoint = list(image.get("Entrypoint") or ())
    command = list(request.command)
    if request.entrypoint is not None:
        entrypoint = _words(request.entrypoint)
    elif not command:
        command = list(image.get("Cmd") or ())
    words = [str(word) for word in (*entrypoint, *command)]
    if not words and request.rootfs:
        words = ["/bin/sh"]
    if not words:
        raise RunError("no command: the image names none", "pyrun run IMAGE COMMAND")
    return words


def _words(text: str) -> list[str]:
    """``--entrypoint``: one word, or a JSON list."""
    if text.startswith("["):
        from runtime import jsonio

        try:
            words = jsonio.loads(text)
        except ValueError:
            raise RunError(f"--entrypoint {text}: not a JSON list") from None
        return [str(word) for word in words]
    return [text] if text else []


def _environment(request: RunRequest, image: dict[str, Any], hostname: str) -> list[str]:
    values: dict[str, str] = {"PATH": _PATH, "HOSTNAME": hostname, "container": "pyrun"}
    if request.tty:
        values["TERM"] = "xterm"
    for word in image.get("Env") or ():
        name, equals, value = word.partition("=")
        if name and equals:
            values[name] = value
    for path in request.env_file:
        values.update(env_file(path))
    for word in request.env:
        name, equals, value = word.partition("=")
        if not name:
            raise RunError(f"--env {word}: no name")
        if equals:
            values[name] = value
        elif name.endswith("*"):
            values.update({k: v for k, v in os.environ.items() if k.startswith(name[:-1])})
        elif name in os.environ:
            values[name] = os.environ[name]
    for name in request.unsetenv:
        values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]


def env_file(path: str) -> dict[str, str]:
    """Variables from a file: NAME=VALUE or NAME a line, # begins a comment.

    Raises:
        RunError: it cannot be read or understood.
    """
    values = {}
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip("\n").lstrip()
                if not text or text.startswith("#"):
                    continue
                name, equals, value = text.partition("=")
                if not name or " " in name.rstrip():
                    raise RunError(f"{path}: line {number}: not NAME=VALUE")
                if equals:
                    values[name.strip()] = value
                elif name in os.environ:
                    values[name] = os.environ[name]
    except OSError as error:
        raise RunError(f"--env-file {path}: {error.strerror}") from None
    return values


def rlimits(request: RunRequest) -> list[dict[str, Any]]:
    """``--ulimit NAME=SOFT[:HARD]``.

    Raises:
        RunError: not understood.
    """
    limits = []
    for word in request.ulimit:
        name, equals, text = word.partition("=")
        soft, _, hard = text.partition(":")
        if name.lower() not in _RLIMITS or not equals:
            raise RunError(f"--ulimit {word}: not understood", "for example nofile=1024:2048")
        values = [
            (1 << 64) - 1 if part in ("-1", "unlimited") else integer(part, f"--ulimit {name}", 0)
            for part in (soft, hard or soft)
        ]
        if values[0] > values[1]:
            raise RunError(f"--ulimit {word}: soft is above hard")
        kind = f"RLIMIT_{name.upper()}"
        limits.append({"type": kind, "soft": values[0], "hard": values[1]})
    return limits


def rlimit_number(kind: str) -> int:
    """The kernel's number of ``RLIMIT_NOFILE`` and so on.

    Raises:
        RunError: not known.
    """
    name = kind.removeprefix("RLIMIT_").lower()
    if name not in _RLIMITS:
        raise RunError(f"rlimit {kind}: not known")
    return _RLIMITS[name]


def _mode(text: str, what: str, joins: bool = True) -> tuple[str, str]:
    """(private|host|container|path|none, reference) of a namespace option."""
    if text in ("", "private", "host", "none"):
        return text or "private", ""
    kind, _, reference = text.partition(":")
    if joins and reference and kind in ("container", "ns"):
        return ("container" if kind == "container" else "path"), reference
    if text == "shareable" and what == "ipc":
        return "private", ""
    raise RunError(f"--{what} {text}: unknown mode", "expected private, host or container:NAME")


def namespaces(request: RunRequest, ids: IdPlan) -> list[dict[str, str]]:
    """The ``linux.namespaces`` section; one of another container is ``path: container:NAME``."""
    found = [{"type": "mount"}]
    if ids.inner_uids:
        found.append({"type": "user"})
    wanted = {
        "pid": request.pid,
        "ipc": request.ipc,
        "uts": request.uts,
        "cgroup": request.cgroupns,
    }
    for kind, text in wanted.items():
        mode, reference = _mode(text, kind)
        if mode == "container":
            found.append({"type": kind, "path": f"container:{reference}"})
        elif mode == "path":
            found.append({"type": kind, "path": reference})
        elif mode == "private":
            found.append({"type": kind})
        elif mode == "none":
            raise RunError(f"--{kind} none: unknown mode", "expected private, host")
    kind, _, reference = request.network.partition(":")
    if kind == "container":
        found.append({"type": "network", "path": f"container:{reference}"})
    elif kind == "ns":
        found.append({"type": "network", "path": reference})
    elif kind != "host":
        found.append({"type": "network"})
    if request.time_offset:
        found.append({"type": "time"})
    # What belongs to another container is only of use in its user namespace.
    joined = [entry["path"] for entry in found if entry.get("path", "").startswith("container:")]
    if joined and ids.inner_uids:
        found = [entry for entry in found if entry["type"] != "user"]
        found.insert(0, {"type": "user", "path": joined[0]})
    return found


def time_offsets(request: RunRequest) -> dict[str, dict[str, int]]:
    """``--time-offset [monotonic=|boottime=]SECONDS`` (time_namespaces(7)).

    Raises:
        RunError: not understood.
    """
    offsets: dict[str, dict[str, int]] = {}
    for word in request.time_offset:
        clock, equals, text = word.rpartition("=")
        if equals and clock not in ("monotonic", "boottime"):
            raise RunError(f"--time-offset {word}: unknown clock", "expected monotonic or boottime")
        from runtime.values import duration

        negative = text.startswith("-")
        seconds = duration(text.lstrip("+-"), "--time-offset")
        whole = int(-seconds if negative else seconds)
        for name in (clock,) if equals else ("monotonic", "boottime"):
            offsets[name] = {"secs": whole, "nanosecs": 0}
    return offsets


def _own_namespace(found: list[dict[str, str]], kind: str) -> bool:
    """Whether it is the container's own, or that of the one whose user namespace it shares."""
    return any(
        entry["type"] == kind and not entry.get("path", "").startswith("/") for entry in found
    )


def _mapped(number: int, ranges: tuple[tuple[int, int, int], ...]) -> bool:
    return not ranges or any(first <= number < first + count for first, _, count in ranges)


def _base_mounts(
    request: RunRequest, ids: IdPlan, found: list[dict[str, str]], cgroup2: bool
) -> list[dict[str, Any]]:
    strict = ["nosuid", "noexec", "nodev"]
    own_pid, own_net = _own_namespace(found, "pid"), _own_namespace(found, "network")
    own_ipc = _own_namespace(found, "ipc")
    mounts: list[dict[str, Any]] = []

    def add(target: str, kind: str, options: list[str], source: str = "") -> None:
        mounts.append(
            {"destination": target, "type": kind, "source": source or kind, "options": options}
        )

    if own_pid:
        add("/proc", "proc", strict)
    else:
        add("/proc", "bind", ["rbind", "rslave", *strict], "/proc")
    add("/dev", "tmpfs", ["nosuid", "noexec", "mode=755", "size=65536k"])
    gid = ["gid=5"] if _mapped(5, ids.inner_gids) else []
    add(
        "/dev/pts",
        "devpts",
        ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *gid],
    )
    if request.ipc == "host":
        add("/dev/shm", "bind", ["rbind", "rprivate", *strict], "/dev/shm")
    else:
        shm = size(request.shm_size, "--shm-size")
        add("/dev/shm", "tmpfs", [*strict, "mode=1777", f"size={shm}"])
    if own_ipc:
        add("/dev/mqueue", "mqueue", strict)
    if own_net:
        read_only = [] if request.privileged else ["ro"]
        add("/sys", "sysfs", [*strict, *read_only])
    else:
        add("/sys", "bind", ["rbind", "rslave", *strict, "ro"], "/sys")
    if cgroup2 and own_net and _own_namespace(found, "cgroup"):
        add("/sys/fs/cgroup", "cgroup2", [*strict, *([] if request.privileged else ["ro"])])
    return mounts


def _user_mounts(
    volumes: list[tuple[Volume, str]], mounts: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The user's mounts replace ours at the same place; parents come before children."""
    theirs = {volume.target: oci_mount(volume, source) for volume, source in volumes}
    kept = [mount for mount in mounts if mount["destination"] not in theirs]
    added = sorted(theirs.values(), key=lambda mount: str(mount["destination"]).count("/"))
    return [*kept, *added]


def build(
    request: RunRequest,
    image: dict[str, Any],
    facts: HostFacts,
    ids: IdPlan,
    volumes: list[tuple[Volume, str]],
    files: dict[str, str],
    hostname: str,
    cgroup2: bool,
) -> dict[str, Any]:
    """The configuration.

    ``image`` is the image's ``config`` part; ``volumes`` the user's mounts with their host
    paths; ``files`` what is bound over files like /etc/hosts, by target.

    Raises:
        RunError: something in the request is not understood.
    """
    found = namespaces(request, ids)
    mounts = _base_mounts(request, ids, found, cgroup2)
    for target, source in files.items():
        mounts.append(
            {"destination": target, "type": "bind", "source": source,
             "options": ["bind", "rprivate", "nosuid", "nodev", "nofail"]}
        )  # fmt: skip
    chosen = list(caps.choose(request.cap_add, request.cap_drop, request.privileged))
    options = _security(request)
    workdir = request.workdir or str(image.get("WorkingDir") or "/")
    if not workdir.startswith("/"):
        if request.workdir:
            raise RunError(f"--workdir {workdir}: not an absolute path")
        workdir = f"/{workdir}"
    devices = [{"path": f"/dev/{name}", "source": f"/dev/{name}"} for name in DEVICES]
    for text in request.device:
        source, target, access = parse_device(text)
        devices.append({"path": target, "source": source, "access": access})
    if request.umask and (len(request.umask) > 4 or set(request.umask) - set("01234567")):
        raise RunError(f"--umask {request.umask}: not an octal number")
    process: dict[str, Any] = {
        "terminal": request.tty,
        "user": {
            "username": request.user or str(image.get("User") or "") or _kept_user(ids, facts),
            "additionalGroups": list(request.group_add),
            "umask": int(request.umask or "022", 8),
        },
        "args": _arguments(request, image),
        "env": _environment(request, image, hostname),
        "cwd": workdir,
        "capabilities": {
            "bounding": chosen,
            "effective": chosen,
            "permitted": chosen,
            "ambient": list(caps.choose(request.cap_add, ("ALL",), False)),
        },
        "rlimits": rlimits(request),
        "noNewPrivileges": options.get("no-new-privileges", not request.privileged),
    }
    if request.oom_score_adj:
        process["oomScoreAdj"] = integer(request.oom_score_adj, "--oom-score-adj", -1000, 1000)
    unmask = request.privileged or "unmask" in options
    return {
        "ociVersion": "1.1.0",
        "process": process,
        "root": {"path": "rootfs", "readonly": request.read_only},
        "hostname": hostname,
        "domainname": request.domainname,
        "mounts": _user_mounts(volumes, mounts),
        "annotations": dict(_pair(word, "--annotation") for word in request.annotation),
        "linux": {
            "namespaces": found,
            "uidMappings": _mappings(ids.inner_uids),
            "gidMappings": _mappings(ids.inner_gids),
            "timeOffsets": time_offsets(request),
            "devices": devices,
            "sysctl": _sysctls(request, found),
            "maskedPaths": [] if unmask else [*MASKED, *options.get("mask", ())],
            "readonlyPaths": [] if unmask else list(READ_ONLY),
        },
        "pyrun": {
            "seccomp": "unconfined" if request.privileged and "seccomp" not in options
            else options.get("seccomp", "default"),
            "apparmor": options.get("apparmor", ""),
            "label": options.get("label", ""),
            "landlock": list(request.landlock),
        },
    }  # fmt: skip


def _kept_user(ids: IdPlan, facts: HostFacts) -> str:
    """With keep-id the command runs as the caller, where the image does not name a user."""
    return f"{facts.callers.uid}:{facts.callers.gid}" if ids.mode == "keep-id" else ""


def _mappings(ranges: tuple[tuple[int, int, int], ...]) -> list[dict[str, int]]:
    return [{"containerID": a, "hostID": b, "size": c} for a, b, c in ranges]


#: Parameters that a namespace has of its own, by its type in the configuration. They are let
#: through by name, since for others the kernel asks no more of root than to be root.
_SYSCTLS = {
    "ipc": ("kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
            "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced", "fs.mqueue.*"),
    "network": ("net.*",),
    "user": ("user.*",),
    "uts": ("kernel.domainname",),
}  # fmt: skip


def _sysctls(request: RunRequest, namespaces: list[dict[str, str]]) -> dict[str, str]:
    """``--sysctl``, of namespaces that are not the host's.

    Raises:
        RunError: one that is the host's, or no name.
    """
    chosen = dict(_pair(word, "--sysctl") for word in request.sysctl)
    allowed = [
        name
        for one in namespaces
        if one.get("path", "container:").startswith("container:")  # elsewhere it may be the host's
        for name in _SYSCTLS.get(one["type"], ())
    ]
    for name in chosen:
        dotted = name.replace("/", ".")
        known = any(
            dotted == rule or (rule.endswith("*") and dotted.startswith(rule[:-1]))
            for rule in allowed
        )
        if not all(dotted.split(".")) or not known:
            raise RunError(
                f"--sysctl {name}: not of a namespace of the container's own",
                "net.*, fs.mqueue.*, user.*, kernel.shm*, kernel.msg* and kernel.sem can be",
            )
    return chosen


def _pair(word: str, what: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not name or (not equals and what == "--sysctl"):
        raise RunError(f"{what} {word}: not NAME=VALUE")
    return name, value


def _security(request: RunRequest) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for word in request.security_opt:
        name, _, value = word.replace(":", "=", 1).partition("=")
        if name == "no-new-privileges":
            from runtime.values import boolean

            options[name] = boolean(value or "true", "--security-opt no-new-privileges")
        elif name in ("seccomp", "apparmor", "label") and value:
            options[name] = value
        elif name == "mask" and value:
            options[name] = value.split(":")
        elif name == "unmask" and value in ("ALL", "all"):
            options[name] = True
        else:
            raise RunError(
                f"--security-opt {word}: not known",
                "no-new-privileges, seccomp=, apparmor=, label=, mask=, unmask=ALL",
            )
    return options
