"""Making and starting containers: what ``run``, ``create`` and ``start`` share."""

from __future__ import annotations

import os
import sys

from runtime import console, facts, filters, images, prepare, removal, state
from runtime.channel import Channel, pair
from runtime.errors import RunError
from runtime.request import RunRequest, stored_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.plan import Plan
    from runtime.task import Attached, Task


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


def streams(stdin: bool) -> tuple[Attachment, Attached]:
    """Pipes and a channel: our ends, and the supervisor's."""
    from runtime.task import Attached

    ours, theirs = pair()
    source_read = source_write = -1
    if stdin:
        source_read, source_write = os.pipe2(os.O_CLOEXEC)
    out_read, out_write = os.pipe2(os.O_CLOEXEC)
    err_read, err_write = os.pipe2(os.O_CLOEXEC)
    attachment = Attachment(ours, source_write, out_read, err_read)
    return attachment, Attached(theirs, source_read, out_write, err_write)


class Created:
    """A container that has been written down; ``held`` keeps its part of the store, if any."""

    def __init__(self, container: state.Container, plan: Plan, held: list[int]) -> None:
        self.container = container
        self.plan = plan
        self.held = held

    def take_back(self) -> None:
        """It is not wanted any more."""
        for fd in self.held:
            os.close(fd)
        self.held = []
        removal.remove_files(self.container)


def dry_run(request: RunRequest, root: str) -> Plan:
    """The plan of a container that is not made."""
    prepare.check(request)
    image_id, image = prepare.image_of(request)
    container = state.Container(root, state.new_id())
    container._config = {"id": container.id, "name": request.name}
    if request.rootfs:
        source = _tree(request, container)
    else:
        source = images.Source(lowers=(image_id,), upper="(a new snapshot)", work="", view=True)
    try:
        plan, _, _ = prepare.make_plan(
            request, container, image, source, state.Containers(root), facts.ask()
        )
        _warn(plan)
        return plan
    finally:
        if os.path.isdir(container.directory):
            removal.remove_directory(container.directory)


def create(request: RunRequest, root: str, *, fleeting: bool = False) -> Created:
    """A new container, planned and written down, not started.

    ``fleeting``: it will be started at once and removed when it ends, so nothing of it has to
    survive this machine's next start.

    Raises:
        RunError: nothing is left of it.
    """
    containers = state.Containers(root)
    prepare.check(request)
    image_id, image = prepare.image_of(request)
    host = facts.ask()
    container = containers.create(request.name)
    source, held = None, -1
    volumes_lock = -1
    if request.volumes_from or request.volume or request.mount or image.get("Volumes"):
        volumes_lock = removal.lock_volumes(root, shared=True)
    try:
        if request.rootfs:
            source = _tree(request, container)
        elif fleeting and not (request.storage_opt and prepare.storage_size(request).disk):
            upper, work = container.path("upper"), container.path("work")
            source, held = images.lease(image_id, upper, work)
        else:
            source = _snapshot(request, container, image_id)
        plan, config, volumes = prepare.make_plan(
            request, container, image, source, containers, host
        )
        _warn(plan)
        inner = plan.ids.inner_uids
        container.save_config(
            {
                "id": container.id,
                "name": container.config["name"],
                "created": state.now(),
                "image": request.image or request.rootfs,
                "image_id": image_id,
                "image_config": image,
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
        if held >= 0:
            os.close(held)
        removal.forget(container, source.to_data() if source is not None else {})
        raise
    finally:
        if volumes_lock >= 0:
            os.close(volumes_lock)
    return Created(container, plan, [held] if held >= 0 else [])


def _snapshot(request: RunRequest, container: state.Container, image_id: str) -> images.Source:
    most = prepare.storage_size(request).disk if request.storage_opt else 0
    if not most:
        return images.snapshot(image_id, container.id)
    from runtime import sizes

    try:
        return images.snapshot(image_id, container.id, most)
    except images.NoQuota as error:
        if request.limits == "best-effort":
            sys.stderr.write(f"pyrun: --storage-opt: {error}\n")
            return images.snapshot(image_id, container.id)
        raise sizes.refused(request.storage_opt[0].partition("=")[2], str(error)) from None


def _tree(request: RunRequest, container: state.Container) -> images.Source:
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
    found = dict(image.get("Labels") or {})
    words = list(request.label)
    for path in request.label_file:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
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
    request = stored_request(container)
    source = images.Source.from_data(container.config["source"])
    image = container.config.get("image_config") or {}
    plan, _, _ = prepare.make_plan(
        request, container, image, source, state.Containers(root), facts.ask()
    )
    ports = [list(port) for port in plan.network.ports]
    # The groups of its last run are gone, those that a pause or an update made among them.
    groups = plan.cgroup.to_data() if plan.cgroup is not None else None
    container.save_config({**container.config, "ports": ports, "cgroup": groups})
    return plan


def supervise(
    container: state.Container,
    plan: Plan,
    attached: Attached | None,
    *,
    held: list[int] | None = None,
    transient: bool = False,
) -> Channel:
    """Start the container under a supervisor of its own; the channel on which that reports.

    ``held`` and ``attached`` are the supervisor's from here on. ``transient``: a container that
    cannot be started is removed.

    Raises:
        RunError: it runs already, or its seccomp profile is wrong.
    """
    from runtime.task import Task

    held = list(held or ())
    try:
        program = filters.filter_for(plan.process, plan.machine, plan.ids.single, container.root)
        joins = join_targets(plan, container.root)
        try:
            held.insert(0, container.lock(patient=True))
        except BlockingIOError:
            from runtime.session import in_use

            raise in_use(container) from None
        except FileNotFoundError:
            raise RunError(f"container {container.id[: state.SHORT]} has been removed") from None
        if container.config["source"].get("snapshot"):
            held.append(images.hold(images.Source.from_data(container.config["source"])))
    except BaseException:
        for fd in held:
            os.close(fd)
        raise
    container.save_state(status="starting")
    ours, theirs = pair()
    task = Task(
        container,
        plan,
        program=program,
        joins=joins,
        held=held,
        first=theirs,
        attached=attached,
        transient=transient,
    )
    if not (transient and _hand_over(task)):
        _fork(task)
    task.close()
    images.release()
    return ours


def _hand_over(task: Task) -> bool:
    """Give the task to the supervisor that was forked before; False: there is none."""
    from runtime import early

    return early.hand_over(*task.to_message())


def _fork(task: Task) -> None:
    from runtime import supervision

    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        supervision.run(task)


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
