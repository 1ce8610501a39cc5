"""What a container's supervisor does besides its loop: start, helpers, limits, end."""

from __future__ import annotations

import os
import sys

from runtime import facts, launch, removal, state
from runtime.errors import RunError
from runtime.lean import signal
from runtime.request import stored_request
from runtime.streams import Client
from runtime.supervisor import Supervisor
from runtime.sys import calls
from unionfs import codecache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from runtime.network import Helper
    from runtime.plan import CgroupPlan
    from runtime.request import RunRequest
    from runtime.task import Task


def run(task: Task) -> NoReturn:
    """Be the container's supervisor until it has ended."""
    code = 125
    try:
        code = _Supervision(task).serve()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code & 0xFF)


class _Supervision:
    """The helpers, limits and files of one container, as its supervisor has them."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.container = task.container
        self.plan = task.plan
        self.request = stored_request(self.container)
        self.helper: Helper | None = None
        self.limits: CgroupPlan | None = None
        if self.plan.cgroup is not None and self.plan.cgroup.version != "none":
            self.limits = self.plan.cgroup
        self.outer = task.joins.pop("outer", -1)
        self.gone: state.Container | None = None

    def serve(self) -> int:
        """Start and supervise; the exit status."""
        task = self.task
        keep = {*task.held, *task.joins.values()}
        keep |= {self.outer} - {-1}
        if task.first is not None:
            keep.add(task.first.fd)
        if task.begun is not None:
            keep |= task.begun.fds()
        if task.attached is not None:
            keep.update(task.attached.fds())
        _become_daemon(keep, self.container.path("supervisor.log"))
        codecache.leave()
        client = None
        if task.attached is not None:
            sinks = {"stdout": task.attached.out, "stderr": task.attached.err}
            client = Client(task.attached.channel, task.attached.source, sinks)
            client.invitation = task.attached.invitation
        return self._supervisor().serve(task.first, client)

    def start(self) -> launch.Started:
        """Make the container; again for a restart."""
        self._stop_helper()
        if self.limits is not None:
            from runtime import cgroupfs

            self.limits = cgroupfs.create(self.limits)
            data, fresh = self.limits.to_data(), self._fresh()
            if data != fresh.config.get("cgroup"):
                fresh.save_config({**fresh.config, "cgroup": data})
        try:
            started = launch.finish(self._begun(), self.plan, self._joined)
        except launch.Died as error:
            if self.request.memory:
                hint = f"--memory {self.request.memory} may be too small"
                raise RunError(str(error), hint) from None
            raise
        if self.plan.network.mode == "private":
            from runtime import network

            try:
                self.helper = network.start(
                    self.plan.network, started.namespaces, self.container.directory
                )
            except BaseException:
                launch.abort(started)
                raise
        return started

    def _begun(self) -> launch.Started:
        begun, self.task.begun = self.task.begun, None
        if begun is not None:
            return begun
        host = facts.ask()
        return launch.begin(
            self.plan,
            program=self.task.program,
            joins=self.task.joins,
            outer=self.outer,
            interactive=self.request.interactive,
            newuidmap=host.newuidmap,
            newgidmap=host.newgidmap,
        )

    def _joined(self, pid: int, union: int) -> None:
        if self.limits is not None:
            from runtime import cgroupfs

            cgroupfs.enter(self.limits, pid, union)
        if self.request.pid_file:
            _write_pid(self.request.pid_file, pid)

    def _stop_helper(self) -> None:
        if self.helper is not None:
            self.helper.stop()
            self.helper = None

    def vanish(self) -> None:
        """The container is no more, though not all that it took is given back."""
        self._stop_helper()  # its ports are free
        self.gone = removal.vanish(self._fresh())

    def end(self, remove: bool) -> None:
        """Nothing but the container's files is left, and these only if it is to be kept."""
        held = self.task.held
        try:
            self._stop_helper()
            fresh = self.gone or self._fresh()
            if self.limits is not None or fresh.config.get("cgroup"):
                from runtime import cgroupfs

                for group in (self.limits, cgroupfs.stored(fresh)):
                    if group is not None:
                        cgroupfs.remove(group)
            if remove:
                # The store gives nothing back whose lock is held.
                while len(held) > 1:
                    os.close(held.pop())
                removal.finish(self.gone or removal.vanish(fresh), volumes=True)
        finally:
            while held:  # the container's own lock is the first
                os.close(held.pop())

    def _fresh(self) -> state.Container:
        """With the configuration as others may have changed it."""
        return state.Container(self.container.root, self.container.id)

    def _thaw(self) -> None:
        from runtime import cgroupfs

        plan = cgroupfs.stored(self._fresh())
        if plan is not None:
            cgroupfs.thaw(plan)

    def _supervisor(self) -> Supervisor:
        request = self.request
        image = self.container.config.get("image_config") or {}
        health = None
        if not request.no_healthcheck and (request.health_cmd or image.get("Healthcheck")):
            from runtime.health import make

            health = make(request, image, self.container)
        return Supervisor(
            self.container,
            self.plan,
            self.start,
            remove=request.rm,
            restart=request.restart,
            stop_signal=_stop_signal(request, image),
            stop_timeout=float(request.stop_timeout),
            cleanup=self.end,
            vanish=self.vanish,
            thaw=self._thaw,
            health=health,
            log_limit=_log_limit(request),
            transient=self.task.transient,
            log=request.log_driver != "none",
        )


def _write_pid(path: str, pid: int) -> None:
    """``--pid-file``, by rename.

    Raises:
        RunError: it cannot be written.
    """
    try:
        state.write_file(path, f"{pid}\n", 0o644)
    except OSError as error:
        raise RunError(f"--pid-file {path}: {error.strerror}") from None


def _stop_signal(request: RunRequest, image: dict[str, Any]) -> int:
    word = request.stop_signal or str(image.get("StopSignal") or "")
    if word:
        from runtime.values import signal_number

        try:
            return signal_number(word)
        except RunError:
            pass  # an image's nonsense is no reason not to run it
    return int(signal.SIGTERM)


def _log_limit(request: RunRequest) -> int:
    limit = 0
    for word in request.log_opt:
        key, _, value = word.partition("=")
        if key == "max-size":
            from runtime.values import size

            limit = size(value, "--log-opt max-size")
    return limit


def _become_daemon(keep: set[int], log: str) -> None:
    """Leave the caller's session, directory, and every descriptor but those named."""
    try:
        os.setsid()
    except PermissionError:
        pass  # it has one already
    os.chdir("/")
    os.umask(0o077)
    calls.set_name(b"pyrun")
    null = os.open(os.devnull, os.O_RDWR)
    told = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(told, 2)
    calls.close_others(keep)
