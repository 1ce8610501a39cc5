"""``info``, ``version``, ``volume``, ``network``, ``system``, ``completion``, ``build``."""

from __future__ import annotations

import os
import sys

from runtime import cgroups, facts, ids, network, prepare, removal, state, storage
from runtime.cli.output import show, table
from runtime.errors import RunError
from runtime.sys import calls
from runtime.values import show_size
from runtime.volumes import is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Options = dict[str, Any]


def version(options: Options, rest: list[str], root: str) -> int:
    """``pyrun version``."""
    from unionfs import __version__

    item = {
        "Version": __version__,
        "Python": ".".join(str(part) for part in sys.version_info[:3]),
        "Kernel": os.uname().release,
        "Machine": os.uname().machine,
        "OciVersion": "1.1.0",
    }
    if not show(options, [item]):
        sys.stdout.write("".join(f"{key}: {value}\n" for key, value in item.items()))
    return 0


def _try_user_namespace() -> str:
    """Why user namespaces cannot be made; empty if they can."""
    pid = os.fork()
    if pid == 0:
        try:
            calls.unshare(calls.CLONE_NEWUSER)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return os.strerror(code) if code else ""


def info(options: Options, rest: list[str], root: str) -> int:
    """``pyrun info``: abilities, and why something is missing."""
    host = facts.ask()
    userns = _try_user_namespace()
    groups = cgroups.ask()
    subordinate = sum(count for _, count in host.callers.sub_uids)
    overlay = storage.try_kernel(root) if not userns else "no user namespaces"
    item: Options = {
        "Root": root,
        "User": host.callers.uid,
        "UserNamespaces": userns or "yes",
        "SubordinateIds": "all (root)" if host.callers.capable else subordinate,
        "IdHelpers": "not needed" if host.callers.capable else host.newuidmap or "none",
        "Fuse": host.fuse or "yes",
        "Storage": storage.describe(host, overlay),
        "KernelOverlay": overlay or "yes",
        "Cgroups": "2" if cgroups.is_unified() else "1" if groups.controllers else "none",
        "Controllers": _controllers(groups),
        "Network": network.usable(),
        "Seccomp": "yes" if os.path.exists("/proc/sys/kernel/seccomp") else "no",
        "LandlockAbi": calls.landlock_abi(),
        "Apparmor": os.path.isdir("/sys/kernel/security/apparmor"),
        "Containers": len(state.Containers(root).all()),
    }
    try:
        ids.plan_ids("", host.callers)
    except RunError as error:
        item["SubordinateIds"] = str(error)
    if not show(options, [item]):
        width = max(len(key) for key in item)
        for key, value in item.items():
            sys.stdout.write(f"{key:<{width}}  {_shown(value)}\n")
    return 0


def _shown(value: object) -> str:
    if isinstance(value, dict):
        good = " ".join(key for key, word in value.items() if word == "yes")
        others = [f"{key}: {word}" for key, word in value.items() if word != "yes"]
        return ", ".join([*([good] if good else []), *others])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _controllers(groups: cgroups.Host) -> dict[str, str]:
    found = {}
    for name, place in groups.controllers:
        usable = os.access(place, os.W_OK | os.X_OK)
        found[name] = "yes" if usable else f"not writable for you: {place}"
    for name in groups.available if cgroups.is_unified() else ():
        found[name] = "yes"
    return found


def volume(options: Options, rest: list[str], root: str) -> int:
    """``pyrun volume``."""
    action, names = (rest[0] if rest else "ls"), rest[1:]
    base = f"{root}/volumes"
    if action == "create":
        for name in names or [state.new_id()[:32]]:
            if not is_name(name):
                raise RunError(f"volume name {name}: not a name")
            prepare.make_volume(f"{base}/{name}/_data")
            sys.stdout.write(f"{name}\n")
        return 0
    found = sorted(os.listdir(base)) if os.path.isdir(base) else []
    if action in ("ls", "list"):
        items = [{"Name": name, "Mountpoint": f"{base}/{name}/_data"} for name in found]
        if not show(options, items):
            table(("VOLUME", "PLACE"), [(item["Name"], item["Mountpoint"]) for item in items])
        return 0
    if action in ("rm", "remove", "prune"):
        prune = action == "prune"
        if not names and not prune:
            raise RunError("no volume named", "pyrun volume rm NAME")
        lock = removal.lock_volumes(root) if found else -1
        try:
            _remove_volumes(root, [] if prune else names, found if prune else [])
        finally:
            if lock >= 0:
                os.close(lock)
        return 0
    used = _used_volumes(root)
    if action == "inspect":
        missing = [name for name in names if name not in found]
        if missing or not names:
            raise RunError(f"no volume {missing[0] if missing else 'named'}", "pyrun volume ls")
        items = [
            {"Name": n, "Mountpoint": f"{base}/{n}/_data", "UsedBy": used.get(n, "")} for n in names
        ]
        if not show(options, items):
            show({"json": True}, items)
        return 0
    raise RunError(f"volume {action}: unknown", "create, ls, rm, inspect or prune")


def _remove_volumes(root: str, named: list[str], unused: list[str]) -> None:
    """Volumes by name, and those of ``unused`` that no container has.

    Raises:
        RunError: one that was named is used, or is not there.
    """
    used = _used_volumes(root)
    for name in [*named, *(name for name in unused if name not in used)]:
        if name in used:
            raise RunError(f"volume {name} is used by container {used[name]}")
        removal.remove_volume(root, name)
        sys.stdout.write(f"{name}\n")


def _used_volumes(root: str) -> dict[str, str]:
    return {
        str(entry.get("source")): container.name
        for container in state.Containers(root).all()
        for entry in container.config.get("volumes") or ()
        if entry.get("kind") == "volume"
    }


# The name of the command, not of the module.
def network_(options: Options, rest: list[str], root: str) -> int:
    """``pyrun network ls``."""
    if rest not in ([], ["ls"]):
        raise RunError(f"network {rest[0]}: unknown", "only: pyrun network ls")
    _, helper = network.find_helper()
    usable = network.usable().startswith("private")
    items = [
        {"Name": "private", "Helper": helper, "Usable": usable},
        {"Name": "host", "Helper": "", "Usable": True},
        {"Name": "none", "Helper": "", "Usable": True},
    ]
    if not show(options, items):
        table(
            ("NETWORK", "HELPER", "USABLE"),
            [(i["Name"], i["Helper"] or "-", "yes" if i["Usable"] else "no") for i in items],
        )
    return 0


def system(options: Options, rest: list[str], root: str) -> int:
    """``pyrun system df|prune``."""
    action = rest[0] if rest else "df"
    if action == "df":
        return _df(options, root)
    if action != "prune":
        raise RunError(f"system {action}: unknown", "df or prune")
    if not options.get("force"):
        if not sys.stdin.isatty():
            raise RunError("this removes every container that does not run", "add --force")
        sys.stderr.write("Remove every container that does not run? [y/N] ")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            return 1
    from runtime.cli.commands import remove_one

    removal.sweep(root, patient=True)
    for container in state.Containers(root).all():
        if not container.supervised() and not container.looked_into():
            remove_one(container, {"volumes": bool(options.get("volumes"))})
            sys.stdout.write(f"{container.id}\n")
    from runtime.cli.store import sweep_trees

    sweep_trees(root)
    if options.get("volumes"):
        volume({}, ["prune"], root)
    return 0


def _df(options: Options, root: str) -> int:
    items: list[dict[str, Any]] = []
    for kind, name in (("containers", "containers"), ("volumes", "volumes"), ("trees", "trees")):
        place = f"{root}/{name}"
        names = os.listdir(place) if os.path.isdir(place) else []
        total = sum(_tree_size(f"{place}/{entry}") for entry in names)
        items.append({"Kind": kind, "Count": len(names), "Bytes": total})
    from runtime import images

    count, size = images.usage(_tree_size)
    items.append({"Kind": "images", "Count": count, "Bytes": size})
    if not show(options, items):
        table(
            ("KIND", "COUNT", "SIZE"),
            [(i["Kind"], i["Count"], show_size(float(i["Bytes"]))) for i in items],
        )
    return 0


def _tree_size(path: str) -> int:
    """Bytes on disk of a tree; what cannot be read does not count."""
    total = 0
    waiting = [path]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue
    return total


def completion(options: Options, rest: list[str], root: str) -> int:
    """``pyrun completion``."""
    from runtime.cli.completion import script

    if len(rest) != 1 or rest[0] not in ("bash", "zsh", "fish"):
        raise RunError("expected a shell", "pyrun completion bash|zsh|fish")
    sys.stdout.write(script(rest[0]))
    return 0


def build(options: Options, rest: list[str], root: str) -> int:
    """``pyrun build`` is reserved."""
    raise RunError("build is reserved: pyrun does not build images", "pyrun commit, or buildah")
