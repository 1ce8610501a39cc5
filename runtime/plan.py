"""The plan of a container: everything that its processes will do, as plain data.

``make`` decides; ``child`` and ``launch`` carry out, in the order of the
fields; ``describe`` prints what they will do. A plan holds no descriptor and
looks nothing up later, so the same plan serves ``create`` and ``start`` apart.
"""

from __future__ import annotations

from runtime.errors import RunError
from runtime.ids import IdPlan
from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

#: Option words that are attributes of a mount (mount_setattr(2)); the others go to the filesystem.
_ATTRIBUTES = frozenset(
    "ro rw nosuid suid nodev dev noexec exec noatime atime relatime strictatime nodiratime"
    " nosymfollow".split()
)
_PROPAGATIONS = frozenset(
    "private rprivate slave rslave shared rshared unbindable runbindable".split()
)


class RootPlan(Record):
    """The root filesystem: ``kind`` is union, kernel or plain.

    ``options`` are ``-o`` words of the union; ``view``: one of its lowers is the index of an image,
    whose contents are in the stores at ``roots``.
    ``mountpoint`` is an empty directory of the container's own. ``transient``: upper and work
    directory are the container's alone, and go when it ends. ``memory``: bytes of a tmpfs that
    has them instead (0: none).
    """

    kind: str
    lowers: tuple[str, ...]
    upper: str = ""
    work: str = ""
    options: tuple[str, ...] = ()
    view: bool = False
    roots: tuple[str, ...] = ()
    read_only: bool = False
    mountpoint: str = ""
    transient: bool = False
    memory: int = 0


class MountPlan(Record):
    """One mount beneath the root; ``kind`` is bind or a filesystem type.

    ``attributes`` and ``propagation`` are option words, ``data`` the filesystem's own options.
    ``optional``: a root in which its place cannot be made goes without. ``fill``: a volume that
    may still be new gets what the image has there (``copy``), or is only used (``touch``).
    """

    target: str
    kind: str
    source: str = ""
    attributes: tuple[str, ...] = ()
    data: tuple[tuple[str, str | None], ...] = ()
    recursive: bool = False
    propagation: str = ""
    optional: bool = False
    fill: str = ""


class NamespacePlan(Record):
    """``new`` ones are made; ``join`` are (type, where); all others are the caller's."""

    new: tuple[str, ...]
    join: tuple[tuple[str, str], ...] = ()
    hostname: str = ""
    domainname: str = ""
    time_offsets: tuple[tuple[str, int], ...] = ()


class ProcessPlan(Record):
    """What is executed, and as what; capabilities are bit masks, ``user`` is resolved inside."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: str = ""
    groups: tuple[str, ...] = ()
    umask: int = 0o022
    capabilities: int = 0
    ambient: int = 0
    no_new_privs: bool = True
    rlimits: tuple[tuple[int, int, int], ...] = ()
    terminal: bool = False
    oom_score_adj: int | None = None
    seccomp: str = "default"
    landlock: tuple[str, ...] = ()
    scope_signals: bool = False
    apparmor: str = ""
    label: str = ""


class NetworkPlan(Record):
    """``mode`` is none, host, private, container or path; ``helper`` a program's path."""

    mode: str
    helper: str = ""
    helper_kind: str = ""
    ports: tuple[tuple[str, str, int, int], ...] = ()
    dns: tuple[str, ...] = ()
    rate: int = 0
    note: str = ""


class CgroupPlan(Record):
    """``path`` below the parent; ``values`` are (group, controller, file, text) to write.

    ``group`` is ``outer`` (container and union daemon) or ``inner`` (the container alone).
    """

    version: str
    parent: str
    name: str
    values: tuple[tuple[str, str, str, str], ...] = ()
    controllers: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Plan(Record):
    """A container, ready to be carried out."""

    id: str
    root: RootPlan
    ids: IdPlan
    namespaces: NamespacePlan
    mounts: tuple[MountPlan, ...]
    devices: tuple[tuple[str, str], ...]
    masked: tuple[str, ...]
    read_only_paths: tuple[str, ...]
    sysctls: tuple[tuple[str, str], ...]
    process: ProcessPlan
    init: bool
    network: NetworkPlan
    cgroup: CgroupPlan | None = None
    machine: str = ""
    directory: str = ""

    @property
    def owns_pids(self) -> bool:
        """Whether all its processes end with the first one: that of a pid namespace of its own."""
        return "pid" in self.namespaces.new

    def describe(self) -> Iterator[str]:
        """One line a step, in the order in which they are done."""
        ids = self.ids
        if ids.outer_uids:
            how = "newuidmap" if ids.helpers else "uid_map"
            yield f"user namespace (outer): {how} {_ranges(ids.outer_uids)}"
        yield f"root: {self.root.kind} of {':'.join(self.root.lowers)}" + (
            f", changes in {self.root.upper}" if self.root.upper else ", read-only"
        )
        if self.cgroup is not None:
            yield f"cgroup ({self.cgroup.version}): {self.cgroup.parent}/{self.cgroup.name}"
            for group, controller, file, text in self.cgroup.values:
                yield f"limit: {group} {controller} {file} = {text}"
        for kind, where in self.namespaces.join:
            yield f"join: {kind} of {where}"
        yield f"new namespaces: {' '.join(self.namespaces.new)}"
        if ids.inner_uids:
            yield f"user namespace (container): {_ranges(ids.inner_uids)}"
        for mount in self.mounts:
            yield _describe_mount(mount)
        for target, source in self.devices:
            yield f"device: {source} on {target}"
        for path, value in self.sysctls:
            yield f"sysctl: {path} = {value}"
        for path in self.masked:
            yield f"mask: {path}"
        for path in self.read_only_paths:
            yield f"read-only: {path}"
        yield f"network: {self.network.mode} {self.network.helper}".rstrip()
        for host, protocol, outside, inside in self.network.ports:
            yield f"port: {host or '*'}:{outside}/{protocol} -> {inside}"
        process = self.process
        yield f"user: {process.user or '0'}, capabilities {process.capabilities:#x}, seccomp" + (
            f" {process.seccomp}{', no new privileges' if process.no_new_privs else ''}"
        )
        yield f"{'init, then ' if self.init else ''}execute: {' '.join(process.args)}"


def _ranges(ranges: tuple[tuple[int, int, int], ...]) -> str:
    return ", ".join(f"{inside}->{outside}+{count}" for inside, outside, count in ranges)


def _describe_mount(mount: MountPlan) -> str:
    words = [*mount.attributes, *(f"{k}={v}" if v is not None else k for k, v in mount.data)]
    source = f" {mount.source}" if mount.kind == "bind" else ""
    return f"mount: {mount.kind}{source} on {mount.target} {','.join(words)}".rstrip()


def mount_plan(entry: dict[str, Any]) -> MountPlan:
    """One of the specification's mounts.

    Raises:
        RunError: an option that is not understood for its type.
    """
    options = [str(word) for word in entry.get("options") or ()]
    kind = str(entry.get("type") or "bind")
    recursive = "rbind" in options
    if recursive or "bind" in options:
        kind = "bind"
    attributes, data, propagation = [], [], ""
    for word in options:
        name, equals, value = word.partition("=")
        if word in ("bind", "rbind", "nofail", "copy", "touch"):
            continue
        if word in _ATTRIBUTES:
            attributes.append(word)
        elif word in _PROPAGATIONS:
            propagation = word
        elif kind == "bind":
            raise RunError(f"mount on {entry.get('destination')}: option {word} is not known")
        elif word != "newinstance":
            data.append((name, value if equals else None))
    return MountPlan(
        target=str(entry["destination"]),
        kind=kind,
        source=str(entry.get("source") or ""),
        attributes=tuple(attributes),
        data=tuple(data),
        recursive=recursive,
        propagation=propagation,
        optional="nofail" in options,
        fill="copy" if "copy" in options else "touch" if "touch" in options else "",
    )


def make(
    spec: dict[str, Any],
    *,
    container: str,
    root: RootPlan,
    ids: IdPlan,
    network: NetworkPlan,
    cgroup: CgroupPlan | None,
    init: bool,
    machine: str,
    directory: str,
) -> Plan:
    """The plan for an OCI configuration whose root, ids, network and limits are decided.

    Raises:
        RunError: something in the configuration is not understood.
    """
    linux = spec.get("linux") or {}
    namespaces = linux.get("namespaces") or ()
    new = tuple(entry["type"] for entry in namespaces if not entry.get("path"))
    join = tuple((entry["type"], entry["path"]) for entry in namespaces if entry.get("path"))
    offsets = tuple(
        (clock, int(value.get("secs", 0)))
        for clock, value in (linux.get("timeOffsets") or {}).items()
    )
    process = process_plan(spec, scope_signals=ids.single and "pid" not in new)
    return Plan(
        id=container,
        root=root,
        ids=ids,
        namespaces=NamespacePlan(
            new=new,
            join=join,
            hostname=str(spec.get("hostname") or "") if "uts" in new else "",
            domainname=str(spec.get("domainname") or "") if "uts" in new else "",
            time_offsets=offsets,
        ),
        mounts=tuple(mount_plan(entry) for entry in spec.get("mounts") or ()),
        devices=tuple(
            (str(entry["path"]), str(entry.get("source") or entry["path"]))
            for entry in linux.get("devices") or ()
        ),
        masked=tuple(linux.get("maskedPaths") or ()),
        read_only_paths=tuple(linux.get("readonlyPaths") or ()),
        sysctls=tuple((linux.get("sysctl") or {}).items()),
        process=process,
        init=init and "pid" in new,
        network=network,
        cgroup=cgroup,
        machine=machine,
        directory=directory,
    )


def process_plan(spec: dict[str, Any], *, scope_signals: bool) -> ProcessPlan:
    """The process section, and what of it is ours.

    Raises:
        RunError: something in it is not understood.
    """
    from runtime import caps

    process = spec["process"]
    user = process.get("user") or {}
    capabilities = process.get("capabilities") or {}
    ours = spec.get("pyrun") or {}
    name = str(user.get("username") or "")
    if not name and ("uid" in user or "gid" in user):
        name = f"{user.get('uid', 0)}:{user.get('gid', 0)}"
    return ProcessPlan(
        args=tuple(process["args"]),
        env=tuple(process.get("env") or ()),
        cwd=str(process.get("cwd") or "/"),
        user=name,
        groups=tuple(str(group) for group in user.get("additionalGids")
                     or user.get("additionalGroups") or ()),
        umask=int(user.get("umask", 0o022)),
        capabilities=caps.mask(capabilities.get("bounding") or ()),
        ambient=caps.mask(capabilities.get("ambient") or ()),
        no_new_privs=bool(process.get("noNewPrivileges")),
        rlimits=tuple(_rlimit(entry) for entry in process.get("rlimits") or ()),
        terminal=bool(process.get("terminal")),
        oom_score_adj=process.get("oomScoreAdj"),
        seccomp=str(ours.get("seccomp") or "default"),
        landlock=tuple(ours.get("landlock") or ()),
        # Where the union's daemon has the container's own id and can be seen, only Landlock
        # keeps signals from it.
        scope_signals=scope_signals,
        apparmor=str(ours.get("apparmor") or ""),
        label=str(ours.get("label") or ""),
    )  # fmt: skip


def _rlimit(entry: dict[str, Any]) -> tuple[int, int, int]:
    from runtime.spec import rlimit_number

    return rlimit_number(entry["type"]), int(entry["soft"]), int(entry["hard"])
