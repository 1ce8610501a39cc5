"""Making and starting containers: what ``run``, ``create`` and ``start`` share."""

from __future__ import annotations

import os
import sys

from runtime import console, facts, filters, images, launch, prepare, removal, state, storage
from runtime.channel import Channel, pair
from runtime.errors import RunError
from runtime.lean import ENDING, signal
from runtime.request import RunRequest, stored_request
from unionfs.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from runtime.launch import Intermediate
    from runtime.plan import Plan
    from runtime.task import Attached, Task


class Begun:
    """Processes of a container that have begun, and what they have been given."""

    def __init__(self, started: launch.Started, program: bytes, joins: dict[str, int]) -> None:
        self.started = started
        self.program = program
        self.joins = joins


class Created:
    """A container that has been written down.

    ``held`` keeps its part of the store, if any; ``begun``: it is being started already.
    """

    def __init__(
        self, container: state.Container, plan: Plan, held: list[int], begun: Begun | None
    ) -> None:
        self.container = container
        self.plan = plan
        self.held = held
        self.begun = begun

    def take_back(self) -> None:
        """It is not wanted any more."""
        if self.begun is not None:
            launch.abort(self.begun.started)
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
    host = facts.ask()
    kind = storage.choose(request.storage, host, root)
    prepare.check_storage(request, kind, host)
    if request.rootfs or kind == "copy":
        source = _tree(request, container, kind)
    else:
        source = images.Source(
            lowers=(image_id,), upper="(a new snapshot)", work="", view=True, storage=kind
        )
    try:
        plan, _, _ = prepare.make_plan(
            request, container, image, source, state.Containers(root), host
        )
        _warn(plan)
        return plan
    finally:
        if os.path.isdir(container.directory):
            removal.remove_directory(container.directory)


def create(
    request: RunRequest, root: str, *, fleeting: bool = False, waiting: Intermediate | None = None
) -> Created:
    """A new container, planned and written down, not started.

    ``fleeting``: it will be started at once and removed when it ends, so nothing of it has to
    survive this machine's next start. ``waiting`` is what will serve its root: its processes
    begin as soon as there is a plan.

    Raises:
        RunError: nothing is left of it.
    """
    containers = state.Containers(root)
    prepare.check(request)
    host = facts.ask()
    if waiting is not None:
        # The helpers that do it need not be waited for.
        waiting.map(prepare.usual_ids(request, host), host.newuidmap, host.newgidmap)
    image_id, image = prepare.image_of(request)
    source, held, begun = None, -1, None
    kind = storage.choose(request.storage, host, root)
    prepare.check_storage(request, kind, host)
    locks: list[int] = []
    containers.reclaim(request.name)
    # It is known to who takes it back, or not made at all.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        container = containers.create(request.name)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise
    try:
        # Until it is written down nobody removes it, and others learn who makes it.
        locks.append(container.lock(patient=True, looking=True))
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if request.volumes_from or request.volume or request.mount or image.get("Volumes"):
            locks.append(removal.lock_volumes(root, shared=True))
        if request.rootfs:
            source = _tree(request, container, kind)
            if kind == "copy":
                prepare.copy_tree(source.lowers[0], source.upper)
        elif kind == "copy":
            from runtime import imagetrees

            source = _tree(request, container, kind)
            single = prepare.usual_ids(request, host).single
            imagetrees.copied(source.upper, image_id, single=single, durable=not request.rm)
        elif fleeting and not (request.storage_opt and prepare.storage_size(request).disk):
            upper, work = container.path("upper"), container.path("work")
            source, held = images.lease(image_id, upper, work)
        else:
            # Its name is known beforehand, so it can be taken back whatever happens meanwhile.
            source = images.Source(lowers=(), upper="", work="", snapshot=container.id[:32])
            source = _snapshot(request, container, image_id)
        if kind == "kernel" and not request.rootfs:
            from runtime import imagetrees

            locks.append(imagetrees.lock(root, shared=True))
            single = prepare.usual_ids(request, host).single
            source = imagetrees.beneath(root, source, image_id, host, single=single)
        source = source.replace(storage=kind)
        plan, config, volumes = prepare.make_plan(
            request, container, image, source, containers, host
        )
        _warn(plan)
        begun = _begin(request, plan, root, waiting)
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
        made = Created(container, plan, [held] if held >= 0 else [], begun)
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    except BaseException:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        if begun is not None:
            launch.abort(begun.started)
        if held >= 0:
            os.close(held)
        try:
            removal.forget(container, source.to_data() if source is not None else {})
        except UserError:
            pass  # what has come first is told
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise
    finally:
        for fd in locks:
            os.close(fd)
    return _handed_over(made, blocked)


def _handed_over(made: Created, blocked: Iterable[int]) -> Created:
    """The same, once signals interrupt again: by one that has come it is taken back."""
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    except BaseException:
        made.take_back()
        raise
    return made


def _begin(
    request: RunRequest, plan: Plan, root: str, waiting: Intermediate | None
) -> Begun | None:
    """Have the process that waits mount the root, and make the first one; None: not that one."""
    if waiting is None:
        return None
    joins = join_targets(plan, root)
    # It is in the caller's group, from where only root could move it into a scope.
    scope = plan.cgroup is not None and plan.cgroup.version == "systemd"
    if scope or not waiting.fits(plan.ids, joins.get("outer", -1)):
        waiting.dismiss()
        for fd in joins.values():
            os.close(fd)
        return None
    program = filters.filter_for(plan.process, plan.machine, plan.ids.single, root)
    started = launch.begin(
        plan,
        program=program,
        joins=joins,
        interactive=request.interactive,
        waiting=waiting,
    )
    return Begun(started, program, joins)


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


def _tree(request: RunRequest, container: state.Container, kind: str) -> images.Source:
    """Of a directory tree, if one is given; a container of a copied image has its upper alone."""
    return images.Source(
        lowers=(os.path.realpath(request.rootfs),) if request.rootfs else (),
        upper=container.path("upper"),
        work=container.path("work"),
        storage=kind,
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


def source_of(container: state.Container) -> images.Source:
    """What a container's root is made of.

    Raises:
        RunError: it is not written down: yet, or any more.
    """
    if "source" in container.config:
        return images.Source.from_data(container.config["source"])
    if container.looked_into():
        from runtime.session import in_use

        raise in_use(container)
    raise RunError(
        f"container {container.id[: state.SHORT]}: {container.path('config.json')} cannot be read",
        "pyrun rm removes what is left of it",
    )


def replan(container: state.Container, root: str, *, looking: bool = False) -> Plan:
    """The plan of a container that exists, by the facts of today.

    ``looking``: it is not to be started, and so needs nobody's ports.

    Raises:
        RunError: it cannot be started here and now.
    """
    source = source_of(container)
    request = stored_request(container)
    if looking:
        request = request.replace(publish=(), publish_all=False)
    image = container.config.get("image_config") or {}
    plan, _, _ = prepare.make_plan(
        request, container, image, source, state.Containers(root), facts.ask()
    )
    if looking:
        return plan
    ports = [list(port) for port in plan.network.ports]
    # The groups of its last run are gone, those that a pause or an update made among them.
    groups = plan.cgroup.to_data() if plan.cgroup is not None else None
    container.save_config({**container.config, "ports": ports, "cgroup": groups})
    return plan


def task_for(
    container: state.Container,
    plan: Plan,
    made: Created | None = None,
    *,
    transient: bool = False,
) -> Task:
    """What a supervisor is given to start a container; nobody else can, from here on.

    What has been ``made`` is the task's when this returns. ``transient``: a container that
    cannot be started is removed.

    Raises:
        RunError: it runs already, or its seccomp profile is wrong.
    """
    from runtime.task import Task

    begun = made.begun if made is not None else None
    held: list[int] = []
    try:
        if begun is not None:
            program, joins = begun.program, begun.joins
        else:
            joins = join_targets(plan, container.root)
            program = filters.filter_for(
                plan.process, plan.machine, plan.ids.single, container.root
            )
        try:
            held.append(container.lock(patient=True))
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
    images.release()
    if made is not None:
        held += made.held
        made.held, made.begun = [], None
    return Task(
        container,
        plan,
        program=program,
        joins=joins,
        held=held,
        transient=transient,
        begun=begun.started if begun is not None else None,
    )


def supervise(container: state.Container, plan: Plan, attached: Attached | None) -> Channel:
    """Start a container under a supervisor of its own; the channel on which that reports.

    ``attached`` is the supervisor's from here on.

    Raises:
        RunError: it runs already, or its seccomp profile is wrong.
    """
    from runtime import supervision

    task = task_for(container, plan)
    ours, task.first = pair()
    task.attached = attached
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        supervision.run(task)
    task.close()
    return ours


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
