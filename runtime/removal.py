"""Taking containers away: what is theirs on disk, and what supervisors that died have left."""

from __future__ import annotations

import fcntl
import os

from runtime import jsonio, state
from runtime.errors import RunError
from runtime.lean import signal
from runtime.volumes import is_anonymous, is_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def remove_files(container: state.Container) -> None:
    """The container's name, snapshot and directory, once it does not run.

    It is gone from one moment to the next: what is cut off in between is files of nobody.
    """
    name = container.name
    give_back(container.config.get("source") or {})
    state.record_event(container.root, "container", "remove", container, name=name)
    gone = f"{container.directory}{state.GONE}"
    os.rename(container.directory, gone)
    state.Containers(container.root).drop_name(name, container)
    remove_directory(gone)


def remove_anonymous_volumes(container: state.Container) -> None:
    """Volumes that nobody named and no other container has.

    ``container`` is gone, and has read its configuration before.
    """
    names = {name for name in _volumes_of(container) if is_anonymous(name)}
    if not names:
        return
    lock = lock_volumes(container.root)
    try:
        for other in state.Containers(container.root).all():
            names -= _volumes_of(other)
        for name in names:
            try:
                remove_volume(container.root, name)
            except RunError:
                pass  # somebody else has removed it
    finally:
        os.close(lock)


def _volumes_of(container: state.Container) -> set[str]:
    volumes = container.config.get("volumes") or ()
    return {str(volume["source"]) for volume in volumes if volume.get("kind") == "volume"}


def lock_volumes(root: str, *, shared: bool = False) -> int:
    """While the descriptor is open nobody removes a volume.

    ``shared``: for those who take volumes, until it is written down that they have them.
    """
    fd = os.open(f"{root}/volumes", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    return fd


def forget(container: state.Container, source: dict[str, Any]) -> None:
    """Take back a container that could not be made, and what the store gave for it."""
    name = str(container.config.get("name", ""))
    try:
        give_back(source)
    finally:
        remove_directory(container.directory)
        state.Containers(container.root).drop_name(name, container)


def give_back(source: dict[str, Any]) -> None:
    """End the store's part in a container: its snapshot, or its session."""
    if not source.get("snapshot") and not source.get("session"):
        return
    from runtime import images

    if source.get("snapshot"):
        images.remove_snapshot(str(source["snapshot"]))
    images.end_lease(str(source.get("session") or ""))


def remove_directory(path: str) -> None:
    """Remove a directory of ours; files of subordinate ids need our user namespace."""
    from runtime.trees import remove_tree

    parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    name = os.path.basename(path)
    try:
        remove_tree(parent, name)
    except PermissionError:
        from runtime.userns import run_mapped

        run_mapped(lambda: remove_tree(parent, name))
    finally:
        os.close(parent)


def sweep(root: str) -> None:
    """Put in order what those that died have left: names, states, processes, --rm containers."""
    _remove_gone(root)
    state.Containers(root).drop_stale_names()
    for container in state.Containers(root).all():
        try:
            with open(container.path("state.json"), "rb") as file:
                said = jsonio.loads(file.read()).get("status")
        except (OSError, ValueError):
            continue
        if said not in ("running", "paused", "starting", "restarting"):
            continue
        try:
            lock = container.lock()
        except (BlockingIOError, FileNotFoundError):
            continue
        try:
            kill_left(container)
            container.save_state(
                status="exited",
                exit_code=137,
                pid=0,
                union_pid=0,
                finished=state.now(),
                error="its supervisor has died",
            )
            state.record_event(root, "container", "die", container, code=137)
            if container.config.get("request", {}).get("rm"):
                remove_files(container)
        finally:
            os.close(lock)


def _remove_gone(root: str) -> None:
    """What is left of containers whose removal was cut off."""
    try:
        names = os.listdir(f"{root}/containers")
    except OSError:
        return
    for name in names:
        if name.endswith(state.GONE):
            try:
                remove_directory(f"{root}/containers/{name}")
            except FileNotFoundError:
                pass  # another command is at it


def remove_volume(root: str, name: str) -> None:
    """A named volume and what is in it.

    Raises:
        RunError: there is none.
    """
    path = f"{root}/volumes/{name}"
    if not is_name(name) or not os.path.isdir(path):  # "" and ".." are directories, too
        raise RunError(f"no volume {name or '(no name)'}", "pyrun volume ls")
    remove_directory(path)


def kill_left(container: state.Container) -> None:
    """End what a supervisor that died has left running; nothing if that is all as it should be."""
    try:
        with open(container.path("state.json"), "rb") as file:
            left = jsonio.loads(file.read())
    except (OSError, ValueError):
        return
    plan = None
    if container.config.get("cgroup"):
        from runtime import cgroupfs

        plan = cgroupfs.stored(container)

    def thaw() -> None:
        if plan is not None:
            cgroupfs.thaw(plan)

    if left.get("boot") == state.boot_id():
        _kill_same(int(left.get("pid") or 0), left.get("pid_start"))
        thaw()
        device = left.get("root_device")
        union, began = int(left.get("union_pid") or 0), left.get("union_start")
        if device and union and state.start_time(union) == began:
            from runtime.leftovers import kill_on_root

            kill_on_root(device, thaw)
            _kill_same(union, began)
    if plan is not None:
        cgroupfs.remove(plan)


def _kill_same(pid: int, began: object) -> None:
    """SIGKILL for a process that began then, and for no other with its number."""
    if not pid or state.start_time(pid) != began:
        return
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if state.start_time(pid) == began:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    finally:
        os.close(fd)
