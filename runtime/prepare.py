"""From a request to a container's directory and plan: looks everything up, changes little."""

from __future__ import annotations

import os
import stat
import sys

from runtime import cgroups, drafts, facts, ids, images, network, spec, state, storage
from runtime.errors import RunError
from runtime.lean import signal
from runtime.plan import NetworkPlan, Plan, RootPlan, make
from runtime.request import RunRequest
from runtime.volumes import (
    Volume,
    anonymous_name,
    image_volume,
    parse_mount,
    parse_tmpfs,
    parse_volume,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime import sizes


def check(request: RunRequest) -> None:
    """What can be told without looking at anything.

    Raises:
        RunError: contradictions and unknown words.
    """
    if request.storage_opt:
        storage_size(request)
    for word in request.attach:
        if word.lower() not in ("stdin", "stdout", "stderr"):
            raise RunError(f"--attach {word}: expected stdin, stdout or stderr")
    if request.platform and request.rootfs:
        raise RunError("--platform is of an image, and --rootfs names none")
    if request.rootfs and request.image:
        raise RunError("both an image and --rootfs", "give one")
    if not request.rootfs and not request.image:
        raise RunError("no image", "pyrun run IMAGE COMMAND, or --rootfs DIR")
    if request.storage not in storage.KINDS:
        raise RunError(f"--storage {request.storage}: expected auto, union, kernel or copy")
    if request.limits not in ("strict", "best-effort"):
        raise RunError(f"--limits {request.limits}: expected strict or best-effort")
    from runtime.values import is_number, real, signal_number

    word, _, most = request.restart.partition(":")
    if word not in ("no", "on-failure", "always", "unless-stopped") or (
        most and (word != "on-failure" or len(most) > 9 or not is_number(most))
    ):
        raise RunError(
            f"--restart {request.restart}: unknown policy",
            "expected no, on-failure[:N], always or unless-stopped",
        )
    if request.rm and word != "no":
        raise RunError("--rm and --restart contradict each other")
    if request.log_driver not in ("", "json-file", "k8s-file", "none"):
        raise RunError(f"--log-driver {request.log_driver}: expected json-file or none")
    from runtime import checks
    from runtime.console import parse_keys

    checks.check(request)
    parse_keys(request.detach_keys)
    real(request.stop_timeout, "--stop-timeout", 0)
    if request.stop_signal:
        signal_number(request.stop_signal)


def storage_size(request: RunRequest) -> sizes.Wanted:
    """The most that the container's changes may take.

    Raises:
        RunError: not understood; or not to be enforced, and that is not accepted.
    """
    from runtime import sizes

    if not request.storage_opt:
        return sizes.Wanted()
    try:
        fleeting = request.rm and request.storage in ("auto", "union")
        return sizes.wanted(request.storage_opt, fleeting=fleeting, image=bool(request.image))
    except RunError as error:
        if request.limits == "best-effort" and "cannot be enforced" in str(error):
            return sizes.Wanted()
        raise


def check_storage(request: RunRequest, kind: str, host: facts.HostFacts) -> None:
    """What is asked for against what the root will be made with.

    Raises:
        RunError: only a union can do that.
    """
    if kind == "union":
        return
    mode, who = _callers(request, host)
    if mode.startswith("auto") or ids.plan_ids(mode, who).view_uids:
        raise RunError(
            f"--storage {kind} cannot translate ids for --userns {request.userns}",
            "--storage union can; pyrun info says what is used here, and why",
        )
    wanted = storage_size(request)
    if wanted.memory:
        raise RunError(
            f"--storage-opt backend=tmpfs needs the union, and here --storage is {kind}",
            "pyrun info says why",
        )
    if wanted.disk and kind == "copy":
        from runtime import sizes

        refused = sizes.refused(request.storage_opt[0].partition("=")[2], "a copy has no quota")
        if request.limits != "best-effort":
            raise refused
        sys.stderr.write(f"pyrun: {refused}\n")


def image_of(request: RunRequest) -> tuple[str, dict[str, Any]]:
    """The image's id and config part; nothing for a --rootfs.

    Raises:
        RunError: no such image, or no such directory.
    """
    if not request.rootfs:
        return images.find(request.image, request.pull, request.platform)
    try:
        mode = os.stat(request.rootfs).st_mode
        os.listdir(request.rootfs)
    except OSError as error:
        raise RunError(f"--rootfs {request.rootfs}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise RunError(f"--rootfs {request.rootfs}: not a directory")
    return "", {}


def _volumes(
    request: RunRequest,
    image: dict[str, Any],
    containers: state.Containers,
    container: state.Container,
) -> list[tuple[Volume, str]]:
    """The user's mounts with their host paths; named volumes are made.

    Of a container that exists they are what they were at first: others that it had them from
    may be gone, and this command's directory is another one.

    Raises:
        RunError: a source that is not there.
    """
    known = container.config.get("volumes")
    if known is None:
        wanted = _wanted_volumes(request, image, containers)
    else:
        wanted = [Volume.from_data(entry) for entry in known]
    return [
        _placed(volume, containers.root, container.id, index) for index, volume in enumerate(wanted)
    ]


def _wanted_volumes(
    request: RunRequest, image: dict[str, Any], containers: state.Containers
) -> list[Volume]:
    wanted: dict[str, Volume] = {}
    for name in request.volumes_from:
        other = containers.find(name.partition(":")[0])
        for entry in other.config.get("volumes", ()):
            volume = Volume.from_data(entry)
            wanted[volume.target] = volume
    for target in image.get("Volumes") or ():
        volume = image_volume(target)
        wanted.setdefault(volume.target, volume)
    for volume in (
        *map(parse_volume, request.volume),
        *map(parse_mount, request.mount),
        *map(parse_tmpfs, request.tmpfs),
    ):
        wanted[volume.target] = volume
    return list(wanted.values())


def make_volume(path: str) -> None:
    """The directory of a volume, if it is not there; it is filled at its first use."""
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.mkdir(path, 0o755)
    except FileExistsError:
        return
    from runtime.fill import mark

    mark(path)


def _placed(volume: Volume, root: str, container: str, index: int) -> tuple[Volume, str]:
    if volume.kind == "tmpfs":
        return volume, "tmpfs"
    if volume.kind == "bind":
        try:
            os.stat(volume.source)
        except OSError as error:
            raise RunError(f"volume {volume.source}: {str(error.strerror).lower()}") from None
        return volume, volume.source
    name = volume.source or anonymous_name(container, index)
    path = f"{root}/volumes/{name}/_data"
    make_volume(path)
    return volume.replace(source=name), path


def _root_plan(
    request: RunRequest, container: state.Container, source: images.Source, plan: ids.IdPlan,
    host: facts.HostFacts,
) -> tuple[RootPlan, ids.IdPlan]:  # fmt: skip
    made_with = source.storage or request.storage
    if not source.storage and made_with == "auto":  # of an earlier version
        made_with = "union" if source.view or not host.fuse else "kernel"
    kind = storage.choose(made_with, host, container.root)
    if kind == "copy":
        source = source.replace(lowers=(source.upper,), upper="", work="")
    options = list(source.options)
    if plan.single:
        # The kernel has no number for other owners, and refuses their files even to root. Whose
        # a file was stays written down when it is copied up.
        options += ["squash_to_root", "xattr_permissions=2"]
    elif not source.view:
        if kind == "union" and _is_foreign(source.lowers, plan):
            plan = ids.show_foreign_as_root(plan)
    options.append("volatile" if request.rm else "redirect_dir=copy")
    if kind == "union" and (request.cpus or request.cpu_quota or request.cpu_shares):
        options.append("busy_poll=0")  # the daemon's waiting would count as the container's work
    whole = kind == "copy" or (kind == "kernel" and request.image)  # imagetrees.py
    lowers = source.lowers if whole else (*source.lowers, places(container.root))
    root = RootPlan(
        kind="plain" if kind == "copy" else kind,
        lowers=lowers,
        upper=source.upper,
        work=source.work,
        options=tuple(options),
        view=source.view,
        roots=source.roots,
        read_only=request.read_only,
        mountpoint=container.path("root"),
        transient=request.rm and not source.snapshot,
        memory=storage_size(request).memory if request.storage_opt else 0,
    )
    return root, plan


#: Directories and files that are mounted on in every container.
PLACES = ("dev", "proc", "sys", "etc")
PLACES_OF_FILES = ("etc/hosts", "etc/hostname", "etc/resolv.conf")


def places(root: str) -> str:
    """A lower beneath every root, with what is mounted on in every container.

    So that mounting changes nothing: what an image lacks lies here, and not in what was changed.
    """
    path = f"{root}/places"
    if not os.path.isdir(path):
        draft = drafts.name(path)
        for name in PLACES:
            os.makedirs(f"{draft}/{name}", 0o755, exist_ok=True)
        for name in PLACES_OF_FILES:
            os.close(os.open(f"{draft}/{name}", os.O_CREAT | os.O_CLOEXEC, 0o644))
        for name in ("", *PLACES):
            os.chmod(f"{draft}/{name}", 0o755)
        try:
            os.rename(draft, path)
        except OSError:
            from runtime.removal import remove_directory

            remove_directory(draft)  # somebody was faster
    return path


def copy_tree(tree: str, target: str) -> None:
    """Copy a directory tree.

    Raises:
        RunError: it cannot be copied.
    """
    from runtime.facts import find_program
    from runtime.userns import run_mapped

    os.mkdir(target, 0o755)
    program = find_program("cp")
    keep = "--preserve=mode,timestamps,links,xattr"
    words = ["cp", "-R", "-x", keep, "--reflink=auto", f"{tree}/.", target]

    def copy() -> None:
        read, write = os.pipe2(os.O_CLOEXEC)
        actions = [(os.POSIX_SPAWN_DUP2, write, 2)]
        pid = os.posix_spawn(program, words, os.environ, file_actions=actions, setsigdef=(13,))
        os.close(write)
        try:
            with open(read, encoding="utf-8", errors="replace") as told:
                said = told.readline().strip()
                told.read()
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        if os.waitpid(pid, 0)[1]:
            raise RunError(f"--storage copy: {said}")

    run_mapped(copy)


def _is_foreign(lowers: tuple[str, ...], plan: ids.IdPlan) -> bool:
    owner = os.stat(lowers[-1]).st_uid
    return not any(first <= owner < first + count for _, first, count in plan.outer_uids)


def _hostname(request: RunRequest, container: str) -> str:
    if request.hostname:
        return request.hostname
    return os.uname().nodename if request.uts == "host" else container[: state.SHORT]


def _write_files(
    request: RunRequest, container: state.Container, hostname: str, chosen: NetworkPlan
) -> dict[str, str]:
    """The files bound over /etc/hosts and so on, by target."""
    files = {"/etc/hostname": f"{hostname}\n"}
    if not request.no_hosts:
        files["/etc/hosts"] = network.hosts(request, hostname, chosen)
    if chosen.mode != "none" or request.dns:
        files["/etc/resolv.conf"] = network.resolv_conf(request, chosen)
    placed = {}
    for target, text in files.items():
        path = container.path(os.path.basename(target))
        state.write_file(path, text, 0o644)
        os.chmod(path, 0o644)
        placed[target] = path
    return placed


def _callers(request: RunRequest, host: facts.HostFacts) -> tuple[str, ids.Callers]:
    """The mode for ``ids.plan_ids``, and who calls; ``single``: somebody with one id."""
    if request.userns == "single":
        return "", host.callers.replace(sub_uids=(), sub_gids=(), capable=False)
    return request.userns, host.callers


def usual_ids(request: RunRequest, host: facts.HostFacts) -> ids.IdPlan:
    """The ids of the outer user namespace, if the request has nothing unusual in mind."""
    return ids.plan_ids("", _callers(request, host)[1])


def make_plan(
    request: RunRequest,
    container: state.Container,
    image: dict[str, Any],
    source: images.Source,
    containers: state.Containers,
    host: facts.HostFacts,
) -> tuple[Plan, dict[str, Any], list[Volume]]:
    """The plan, the OCI configuration it came from, and the volumes in it.

    Raises:
        RunError: something asked for cannot be done here.
    """
    mode, who = _callers(request, host)
    if not who.capable and who.sub_uids and not (host.newuidmap and host.newgidmap):
        raise RunError(
            "newuidmap and newgidmap are not installed",
            "apt-get install uidmap; or do with one id: --userns single",
        )
    taken = _taken_ids(containers) if mode.startswith("auto") else ()
    id_plan = ids.plan_ids(mode, who, taken)
    root, id_plan = _root_plan(request, container, source, id_plan, host)
    chosen = _network(request, tuple(image.get("ExposedPorts") or ()), container.root)
    limits = cgroups.plan(request, container.id, host.root)
    hostname = _hostname(request, container.id)
    volumes = _volumes(request, image, containers, container)
    for name in ("root", "upper", "work"):
        if name == "root" or source.upper == container.path("upper"):
            os.makedirs(container.path(name), 0o755, exist_ok=True)
    files = _write_files(request, container, hostname, chosen)
    config = spec.build(
        request, image, host, id_plan, volumes, files, hostname, cgroups.is_unified()
    )
    plan = make(
        config,
        container=container.id,
        root=root,
        ids=id_plan,
        network=chosen,
        cgroup=limits,
        init=request.init,
        machine=host.machine,
        directory=container.directory,
    )
    if plan.process.scope_signals:
        from runtime.sys import calls

        if calls.landlock_abi() < 6:
            raise RunError(
                "--pid host with a single id would let the container signal its own file server",
                "give the user subordinate ids (/etc/subuid), or use Linux 6.12 with Landlock",
            )
    return plan, config, [volume for volume, _ in volumes]


def _network(request: RunRequest, exposed: tuple[str, ...], root: str) -> NetworkPlan:
    try:
        return network.choose(request, exposed)
    except network.PortTaken:
        if request.dry_run:
            raise
        from runtime.removal import end_dead

        end_dead(root)  # a supervisor that died has left what serves it
        return network.choose(request, exposed)


def _taken_ids(containers: state.Containers) -> tuple[tuple[int, int], ...]:
    found = []
    for other in containers.all():
        entry = other.config.get("auto_ids")
        if entry:
            found.append((int(entry[0]), int(entry[1])))
    return tuple(found)
