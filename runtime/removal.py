"""Taking containers away: what is theirs on disk, and what supervisors that died have left."""

from __future__ import annotations

import fcntl
import os
import select

from runtime import drafts, jsonio, state
from runtime.errors import RunError
from runtime.lean import signal
from runtime.volumes import is_anonymous, is_name
from unionfs.errors import UserError
from unionfs.trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any


def remove_files(container: state.Container, *, volumes: bool = False) -> None:
    """The container's name, snapshot and directory, once it does not run; who calls has its lock.

    It is gone from one moment to the next: what is cut off behind that, ``sweep`` brings to its
    end. ``volumes``: with those that nobody named and no other container has.
    """
    finish(vanish(container), volumes=volumes)


#: What nobody needs of a container that is no more, not even to bring its removal to an end.
_SMALL = ("state.json", "socket", "hosts", "hostname", "resolv.conf", "log")


def vanish(container: state.Container) -> state.Container:
    """Let the container be no more; what ``finish`` has to take away, which may be done later."""
    name = container.name
    gone = state.Container(container.root, container.id + state.GONE)
    gone._config = container.config  # as it was written last
    os.rename(container.directory, gone.directory)
    state.Containers(container.root).drop_name(name, container)
    state.record_event(container.root, "container", "remove", container, name=name)
    for small in _SMALL:
        try:
            os.unlink(gone.path(small))
        except OSError:
            pass  # ``finish`` says what cannot be removed
    return gone


def finish(gone: state.Container, *, volumes: bool = False) -> None:
    """Remove what is left of a container that is no more.

    Its directory goes last, because that tells what else there is. Several may be at it.
    """
    source = gone.config.get("source")
    if source is None:  # it was cut off before it was written down, or is damaged
        from runtime import images

        source = images.unknown_source(gone.id.removesuffix(state.GONE)[:32])
    give_back(source)
    if volumes:
        remove_anonymous_volumes(gone)
    remove_directory(gone.directory)


def remove_anonymous_volumes(container: state.Container) -> None:
    """Volumes that nobody named and no other container has; ``container`` is gone."""
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
        if source.get("storage") == "kernel":
            _empty_mapped(source)
        images.remove_snapshot(str(source["snapshot"]))
    images.end_lease(str(source.get("session") or ""))


def _empty_mapped(source: dict[str, Any]) -> None:
    """What overlayfs wrote belongs to the container's ids, and the store removes its own."""
    for name in ("upper", "work"):
        if os.path.isdir(str(source.get(name) or "")):
            remove_directory(str(source[name]))


def remove_directory(path: str) -> None:
    """Remove a directory of ours; files of subordinate ids need our user namespace."""
    parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    name = os.path.basename(path)
    try:
        remove_tree(parent, name)
    except PermissionError:
        from runtime.userns import run_mapped

        run_mapped(lambda: remove_tree(parent, name))
    finally:
        os.close(parent)


def sweep(root: str, *, patient: bool = False) -> None:
    """Put in order what those that died have left: names, states, processes, files.

    ``patient``: those that are just removing a container are waited for.
    """
    _finish_removals(root, patient)
    drafts.sweep(root)
    _remove_unfinished(root)
    state.Containers(root).drop_stale_names()
    for container in _dead(root):
        kill_left(container)
        try:
            container.save_state(
                status="exited",
                exit_code=137,
                pid=0,
                union_pid=0,
                finished=state.now(),
                error="its supervisor has died",
            )
            state.record_event(root, "container", "die", container, code=137)
        except OSError:
            pass  # a full disk: the next command tries again
        if container.config.get("request", {}).get("rm"):
            remove_files(container, volumes=True)


def _remove_unfinished(root: str) -> None:
    """Remove containers whose making was cut off: who makes one has its lock."""
    names = filter(state.is_id, drafts.listed(f"{root}/containers"))
    made = (state.Container(root, name) for name in names)
    cut_off = (one for one in made if drafts.is_old(one.directory) and _is_unwritten(one))
    for container in _locked(cut_off):
        if not _is_unwritten(container):
            continue  # it has been written down before we had the lock
        try:
            remove_files(container)
        except (UserError, OSError):
            pass  # the next command tries again


def _is_unwritten(container: state.Container) -> bool:
    """Whether there is no config.json, and not only none that can be read."""
    try:
        os.stat(container.path("config.json"))
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _dead(root: str) -> Iterator[state.Container]:
    """Containers whose supervisor has died; each is locked while the caller has it."""
    for container in state.Containers(root).all():
        try:
            with open(container.path("state.json"), "rb") as file:
                said = jsonio.loads(file.read()).get("status")
        except (OSError, ValueError):
            continue
        if said in ("running", "paused", "starting", "restarting"):
            yield from _locked([container])


def _locked(containers: Iterable[state.Container]) -> Iterator[state.Container]:
    """Those that nobody else has; each is locked while the caller has it."""
    for container in containers:
        try:
            lock = container.lock()
        except (BlockingIOError, FileNotFoundError):
            continue
        try:
            yield container
        finally:
            os.close(lock)


def end_dead(root: str) -> None:
    """End what supervisors that died have left running; what is on disk, and locks, stay."""
    for container in _dead(root):
        kill_left(container)


def _finish_removals(root: str, patient: bool) -> None:
    """Bring removals that were cut off to their end; a living supervisor does so itself."""
    for name in drafts.listed(f"{root}/containers"):
        if not name.endswith(state.GONE) or not state.is_id(name.removesuffix(state.GONE)):
            continue
        gone = state.Container(root, name)
        if patient:
            gone.wait_unlocked()
        elif gone.supervised():
            continue
        try:
            finish(gone, volumes=bool(gone.config.get("request", {}).get("rm")))
        except (UserError, OSError):
            pass  # a store that cannot be written to now: the next command tries again


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
        _end_pasta(container.directory)
    if plan is not None:
        cgroupfs.remove(plan)


def _end_pasta(directory: str) -> None:
    """SIGTERM for the container's pasta(1): it outlives its network and keeps published ports."""
    place = f"{directory}/pasta.pid"
    try:
        with open(place, "rb") as file:
            pid = int(file.read())
        fd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        if os.fsencode(place) in words:  # else its number has gone to another process
            signal.pidfd_send_signal(fd, signal.SIGTERM)
            waiting = select.poll()
            waiting.register(fd, select.POLLIN)
            waiting.poll(1000)  # its ports are free then
    except (OSError, ProcessLookupError):
        pass
    finally:
        os.close(fd)


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
