"""Starting, ending and removing containers: what ``run``, ``start`` and ``rm`` share."""

from __future__ import annotations

import os
import signal
import sys

from runtime import cgroups, console, facts, images, launch, network, prepare, state
from runtime.channel import Channel, pair
from runtime.errors import RunError
from runtime.request import RunRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from runtime.early import Intermediate
    from runtime.plan import Plan
    from runtime.supervisor import Supervisor


class Attachment:
    """Our ends of what connects us to a container's streams."""

    def __init__(self, channel: Channel, source: int, out: int, err: int) -> None:
        self.channel = channel
        self.source = source
        self.out = out
        self.err = err

    def relay(self, keys: bytes, tty: bool) -> dict[str, Any]:
        """Until the container ends; see ``console.Relay``."""
        outputs = {fd: number for fd, number in ((self.out, 1), (self.err, 2)) if fd >= 0}
        with console.RawTerminal(tty and self.source >= 0 and os.isatty(0)):
            return console.Relay(self.channel, self.source, outputs, keys, tty).run()


def streams(stdin: bool) -> tuple[Attachment, tuple[Channel, int, int, int]]:
    """Pipes and a channel: our ends, and the supervisor's (channel, source, out, err)."""
    ours, theirs = pair()
    source_read = source_write = -1
    if stdin:
        source_read, source_write = os.pipe2(os.O_CLOEXEC)
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    attachment = Attachment(ours, source_write, out_read, err_read)
    return attachment, (theirs, source_read, out_write, err_write)


def create(request: RunRequest, root: str) -> tuple[state.Container, Plan]:
    """A new container, planned and written down, not started.

    Raises:
        RunError: nothing is left of it.
    """
    containers = state.Containers(root)
    prepare.check(request)
    image_id, image = prepare.image_of(request)
    host = facts.ask()
    if request.dry_run:
        container = state.Container(root, state.new_id())
        container._config = {"id": container.id, "name": request.name}
    else:
        container = containers.create(request.name)
    snapshot = ""
    try:
        source = _source(request, container, image_id)
        snapshot = source.snapshot
        plan, config, volumes = prepare.make_plan(
            request, container, image, source, containers, host
        )
        _warn(plan)
        if request.dry_run:
            return container, plan
        inner = plan.ids.inner_uids
        container.save_config(
            {
                "id": container.id,
                "name": container.config["name"],
                "created": state.now(),
                "image": request.image or request.rootfs,
                "image_id": image_id,
                "image_config": image,
                "snapshot": snapshot,
                "source": source.to_data(),
                "single": plan.ids.single,
                "scope_signals": plan.process.scope_signals,
                "cgroup": plan.cgroup.to_data() if plan.cgroup is not None else None,
                "request": request.to_data(),
                "spec": config,
                "labels": labels(request, image),
                "volumes": [volume.to_data() for volume in volumes],
                "ports": [list(port) for port in plan.network.ports],
                "auto_ids": [inner[0][1], inner[-1][2]] if plan.ids.mode == "auto" else None,
            }
        )
        container.save_state(status="created", name=container.config["name"])
        state.record_event(root, "container", "create", container)
    except BaseException:
        if not request.dry_run:
            _forget(container, snapshot)
        raise
    finally:
        if not request.rootfs:
            images.release()
        if request.dry_run and os.path.isdir(container.directory):
            _remove_tree(container.directory)
    return container, plan


def _source(request: RunRequest, container: state.Container, image_id: str) -> images.Source:
    if not request.rootfs:
        if request.dry_run:
            return images.Source(lowers=(image_id,), upper="(a new snapshot)", work="", view=True)
        return images.snapshot(image_id, container.id)
    return images.Source(
        lowers=(os.path.realpath(request.rootfs),),
        upper=container.path("upper"),
        work=container.path("work"),
    )


def labels(request: RunRequest, image: dict[str, Any]) -> dict[str, str]:
    """The image's labels and the container's own.

    Raises:
        RunError: a label file that cannot be read.
    """
    found = {str(k): str(v) for k, v in (image.get("Labels") or {}).items()}
    words = list(request.label)
    for path in request.label_file:
        try:
            with open(path, encoding="utf-8") as file:
                lines = [line.strip() for line in file if line.strip() and line[0] != "#"]
        except OSError as error:
            raise RunError(f"--label-file {path}: {error.strerror}") from None
        words = [*lines, *words]
    for word in words:
        name, _, value = word.partition("=")
        found[name] = value
    return found


def _warn(plan: Plan) -> None:
    notes = [plan.network.note] if plan.network.note else []
    if plan.cgroup is not None:
        notes += plan.cgroup.warnings
    for note in notes:
        sys.stderr.write(f"pyrun: {note}\n")


def replan(container: state.Container, root: str) -> Plan:
    """The plan of a container that exists, by the facts of today.

    Raises:
        RunError: it cannot be started here and now.
    """
    request = prepare.request_of(container)
    source = images.Source.from_data(container.config["source"])
    image = container.config.get("image_config") or {}
    plan, _, _ = prepare.make_plan(
        request, container, image, source, state.Containers(root), facts.ask()
    )
    container.save_config(
        {**container.config, "ports": [list(port) for port in plan.network.ports]}
    )
    return plan


def supervise(
    container: state.Container,
    plan: Plan,
    request: RunRequest,
    attachment: tuple[Channel, int, int, int] | None,
    *,
    transient: bool = False,
) -> Channel:
    """Start the container under a supervisor of its own; the channel on which that reports.

    ``transient``: a container that cannot be started is removed.

    Raises:
        RunError: it runs already, or its seccomp profile is wrong.
    """
    program = prepare.filter_for(plan.process, plan.machine, plan.ids.single, container.root)
    joins = join_targets(plan, container.root)
    try:
        lock = container.lock()
    except BlockingIOError:
        raise RunError(f"container {container.name} is running already") from None
    container.save_state(status="starting")
    ours, theirs = pair()
    sys.stdout.flush()
    sys.stderr.flush()
    if transient and _hand_over(container, plan, attachment, program, joins, lock, theirs):
        pid = -1
    else:
        pid = os.fork()
    if pid:
        os.close(lock)
        theirs.close()
        if attachment is not None:
            attachment[0].close()
            for fd in attachment[1:]:
                if fd >= 0:
                    os.close(fd)
        for fd in joins.values():
            os.close(fd)
        return ours
    code = 125
    try:
        code = _supervise(
            container, plan, request, attachment, program, joins, lock, theirs, transient
        )
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code & 0xFF)


def _hand_over(
    container: state.Container,
    plan: Plan,
    attachment: tuple[Channel, int, int, int] | None,
    program: bytes,
    joins: dict[str, int],
    lock: int,
    first: Channel,
) -> bool:
    """Let the supervisor that was forked before do it; False: there is none."""
    from runtime import early

    fds = [lock, first.fd]
    if attachment is not None:
        fds += [attachment[0].fd, *(fd for fd in attachment[1:] if fd >= 0)]
    data = {
        "root": container.root,
        "id": container.id,
        "plan": plan,
        "program": program,
        "attached": attachment is not None,
        "source": attachment is not None and attachment[1] >= 0,
        "joins": tuple(joins),
    }
    return early.hand_over(data, [*fds, *joins.values()])


def supervise_early(data: dict[str, Any], fds: list[int], waiting: Intermediate) -> None:
    """What a supervisor that was forked before does with what it is handed; never returns."""
    import _socket

    def channel(fd: int) -> Channel:
        return Channel(_socket.socket(fileno=fd))

    rest = iter(fds)
    lock, first = next(rest), channel(next(rest))
    attachment = None
    if data["attached"]:
        words = channel(next(rest))
        source = next(rest) if data["source"] else -1
        attachment = (words, source, next(rest), next(rest))
    joins = dict(zip(data["joins"], rest, strict=True))
    container = state.Container(data["root"], data["id"])
    code = 125
    try:
        request = prepare.request_of(container)
        code = _supervise(
            container, data["plan"], request, attachment, data["program"], joins, lock, first,
            True, waiting,
        )  # fmt: skip
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code & 0xFF)


def _supervise(
    container: state.Container,
    plan: Plan,
    request: RunRequest,
    attachment: tuple[Channel, int, int, int] | None,
    program: bytes,
    joins: dict[str, int],
    lock: int,
    first: Channel,
    transient: bool,
    waiting: Intermediate | None = None,
) -> int:
    from runtime.supervisor import Client, become_daemon

    keep = {lock, first.fd, *joins.values()}
    if waiting is not None:
        keep.add(waiting.channel.fd)
    early_one = [waiting] if waiting is not None else []
    client = None
    if attachment is not None:
        channel, source, out, err = attachment
        keep |= {channel.fd, source, out, err} - {-1}
    become_daemon(keep, container.path("supervisor.log"))
    if attachment is not None:
        client = Client(channel, source, {"stdout": out, "stderr": err})
    host = facts.ask()
    outer = joins.pop("outer", -1)
    helpers: list[network.Helper] = []
    limits = [plan.cgroup] if plan.cgroup is not None and plan.cgroup.version != "none" else []

    def on_pid(pid: int, union: int) -> None:
        if limits:
            cgroups.enter(limits[0], pid, union)
        if request.pid_file:
            state.write_file(request.pid_file, f"{pid}\n", 0o644)

    def run(stdio: tuple[int, int, int]) -> launch.Started:
        stop_helpers()
        if limits:
            limits[0] = cgroups.create(limits[0])
            data = limits[0].to_data()
            if data != container.config.get("cgroup"):
                container.save_config({**container.config, "cgroup": data})
        waiting_one = early_one.pop() if early_one else None
        if waiting_one is not None and plan.cgroup is not None:
            if plan.cgroup.version == "systemd":
                # It is in the caller's group still, from where only root could move it.
                waiting_one.channel.close()
                os.waitpid(waiting_one.pid, 0)
                waiting_one = None
        started = launch.create(
            plan,
            program=program,
            stdio=stdio,
            newuidmap=host.newuidmap,
            newgidmap=host.newgidmap,
            joins=dict(joins),
            outer=outer,
            on_pid=on_pid,
            waiting=waiting_one,
        )
        try:
            helper = network.start(plan.network, started.namespaces, container.directory)
        except BaseException:
            launch.abort(started)
            raise
        if helper is not None:
            helpers.append(helper)
        return started

    def stop_helpers() -> None:
        while helpers:
            helpers.pop().stop()

    def cleanup(remove: bool) -> None:
        stop_helpers()
        late = cgroups.stored(state.Container(container.root, container.id))
        for group in (*limits, *([late] if late is not None else [])):
            cgroups.remove(group)
        if remove:
            remove_files(container)

    supervisor = _make_supervisor(container, plan, request, run, cleanup, transient)
    code = supervisor.serve(first, client)
    os.close(lock)
    return code


def _make_supervisor(
    container: state.Container,
    plan: Plan,
    request: RunRequest,
    run: Callable[[tuple[int, int, int]], launch.Started],
    cleanup: Callable[[bool], None],
    transient: bool,
) -> Supervisor:
    from runtime.supervisor import Supervisor
    from runtime.values import signal_number, size

    image = container.config.get("image_config") or {}
    stop = request.stop_signal or str(image.get("StopSignal") or "TERM")
    limit = 0
    for word in request.log_opt:
        key, _, value = word.partition("=")
        if key == "max-size":
            limit = size(value, "--log-opt max-size")
    try:
        stop_number = signal_number(stop)
    except RunError:
        stop_number = signal.SIGTERM  # an image's nonsense is no reason not to run it
    health = None
    if not request.no_healthcheck and (request.health_cmd or image.get("Healthcheck")):
        from runtime.health import make

        health = make(request, image, container)
    return Supervisor(
        container,
        plan,
        run,
        interactive=request.interactive,
        remove=request.rm,
        restart=request.restart,
        stop_signal=stop_number,
        stop_timeout=float(request.stop_timeout),
        cleanup=cleanup,
        health=health,
        log_limit=limit,
        transient=transient,
        log=request.log_driver != "none",
    )


def join_targets(plan: Plan, root: str) -> dict[str, int]:
    """Descriptors of the namespaces to join, and of the outer user namespace they belong to.

    Raises:
        RunError: the other container does not run, or several own them.
    """
    joins: dict[str, int] = {}
    owner = ""
    for kind, where in plan.namespaces.join:
        if not where.startswith("container:"):
            try:
                joins[kind] = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise RunError(f"namespace {where}: {error.strerror}") from None
            continue
        other = state.Containers(root).find(where.removeprefix("container:"))
        if owner and owner != other.id:
            raise RunError("namespaces of two different containers cannot be joined at once")
        owner = other.id
        answer, fds = console.ask(other.directory, {"op": "namespaces"})
        by_name = dict(zip(answer["names"], fds, strict=True))
        short = {"network": "net", "mount": "mnt"}.get(kind, kind)
        joins[kind] = by_name.pop(short)
        if "outer" in by_name and "outer" not in joins:
            joins["outer"] = by_name.pop("outer")
        for fd in by_name.values():
            os.close(fd)
    return joins


def wait_started(channel: Channel) -> None:
    """Wait until the command has been executed.

    Raises:
        RunError: why it has not.
    """
    from runtime import jsonio

    message, _ = channel.receive()
    channel.close()
    if not message:
        raise RunError("the supervisor died while starting the container")
    answer = jsonio.loads(message)
    if "error" in answer:
        raise RunError(answer["error"], answer.get("hint", ""), int(answer.get("code", 125)))


def remove_files(container: state.Container) -> None:
    """The container's name, snapshot and directory, once it does not run."""
    name = container.name
    snapshot = str(container.config.get("snapshot") or "")
    if snapshot:
        images.remove_snapshot(snapshot)
    state.record_event(container.root, "container", "remove", container, name=name)
    _remove_tree(container.directory)
    state.Containers(container.root).drop_name(name, container)


def _forget(container: state.Container, snapshot: str) -> None:
    """Take back a container that could not be made."""
    name = str(container.config.get("name", ""))
    try:
        if snapshot:
            images.remove_snapshot(snapshot)
    finally:
        _remove_tree(container.directory)
        state.Containers(container.root).drop_name(name, container)


def _remove_tree(path: str) -> None:
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
    """Put in order what supervisors that died have left: states, processes, --rm containers."""
    from runtime import jsonio

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
        except BlockingIOError:
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


def remove_volume(root: str, name: str) -> None:
    """A named volume and what is in it.

    Raises:
        RunError: there is none.
    """
    path = f"{root}/volumes/{name}"
    if "/" in name or not os.path.isdir(path):
        raise RunError(f"no volume {name}", "pyrun volume ls")
    _remove_tree(path)


def kill_left(container: state.Container) -> None:
    """End what a supervisor that died has left running; nothing if that is all as it should be."""
    try:
        with open(container.path("state.json"), "rb") as file:
            from runtime import jsonio

            left = jsonio.loads(file.read())
    except (OSError, ValueError):
        return
    pid = int(left.get("pid") or 0)
    if (
        pid
        and left.get("boot") == state.boot_id()
        and state.start_time(pid) == left.get("pid_start")
    ):
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            if state.start_time(pid) == left.get("pid_start"):
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        finally:
            os.close(fd)
    plan = cgroups.stored(container)
    if plan is not None:
        cgroups.remove(plan)
