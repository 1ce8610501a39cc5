"""Health checks: a command in the container, now and then, by the supervisor's timers."""

from __future__ import annotations

import os

from runtime import state
from runtime.errors import RunError
from runtime.status import exit_code
from runtime.values import duration, integer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from runtime.plan import ProcessPlan
    from runtime.request import RunRequest
    from runtime.supervisor import Supervisor

_KEPT = 5
_MAX_OUTPUT = 4096
#: Seconds at least of an image's own: a check begins as a fork of the supervisor, which costs
#: the caller and no limit of the container's.
_LEAST = 1.0
_KEYS = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod"}


class Health:
    """The state machine: starting, healthy, unhealthy (image-spec and docker's HEALTHCHECK)."""

    def __init__(
        self,
        command: list[str],
        interval: float,
        timeout: float,
        retries: int,
        start_period: float,
        container: state.Container,
    ) -> None:
        self.command = command
        self.interval = interval
        self.timeout = timeout
        self.retries = retries
        self.start_period = start_period
        self.container = container
        self.failures = 0
        self.status = "starting"
        self.log: list[dict[str, Any]] = []
        self.supervisor: Supervisor | None = None
        self.checker = 0
        self.output = -1
        self.began = 0.0

    def begin(self, supervisor: Supervisor) -> None:
        """The container has started."""
        import time

        self.supervisor = supervisor
        self.began = time.monotonic()
        self.failures, self.status, self.log = 0, "starting", []
        self.container.save_state(health=self.status, health_log=[])
        supervisor.loop.after(self.interval, self._check)

    def stop(self) -> None:
        """The container has ended; what runs of a check went with it."""
        self.supervisor = None
        self._close()

    def _close(self) -> None:
        if self.output >= 0:
            os.close(self.output)
            self.output = -1

    def _check(self) -> None:
        """A child of the supervisor runs the command and gives its exit status."""
        supervisor = self.supervisor
        if supervisor is None or supervisor.started is None or not supervisor.started.pid:
            return
        if supervisor.paused:
            supervisor.loop.after(self.interval, self._check)
            return
        self.output, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        started = supervisor.started
        self.checker = os.fork()
        if self.checker == 0:
            os._exit(_run_check(supervisor, started.namespaces, self.command, write))
        os.close(write)
        checker = self.checker
        supervisor.loop.after(self.timeout, lambda: self._give_up(checker))

    def _give_up(self, checker: int) -> None:
        if self.checker == checker:
            try:
                os.killpg(checker, 9)
            except (ProcessLookupError, PermissionError):
                pass

    def ended(self, pid: int, status: int) -> None:
        """A child of the supervisor has ended; perhaps the check."""
        import time

        if pid != self.checker or self.supervisor is None:
            return
        self.checker = 0
        code = exit_code(status)
        try:
            said = os.read(self.output, _MAX_OUTPUT).decode(errors="replace")
        except OSError:
            said = ""
        self._close()
        entry = {"time": state.now(), "exit_code": code, "output": said}
        self.log = [*self.log, entry][-_KEPT:]
        before = self.status
        if code == 0:
            self.failures, self.status = 0, "healthy"
        elif time.monotonic() - self.began >= self.start_period or self.status == "healthy":
            self.failures += 1
            if self.failures >= self.retries:
                self.status = "unhealthy"
        self.container.save_state(health=self.status, health_log=self.log)
        if self.status != before:
            what = f"health_status={self.status}"
            state.record_event(self.container.root, "container", what, self.container)
        self.supervisor.loop.after(self.interval, self._check)


def checking(process: ProcessPlan, command: list[str]) -> ProcessPlan:
    """A check is bound by all that binds the container's command: it may be the image's."""
    return process.replace(args=tuple(command), terminal=False)


def _run_check(
    supervisor: Supervisor, namespaces: dict[str, int], command: list[str], output: int
) -> int:
    from runtime import cgroupfs, enter, filters

    os.setpgid(0, 0)
    plan = supervisor.plan
    process = checking(plan.process, command)
    try:
        program = filters.filter_for(
            process, plan.machine, plan.ids.single, supervisor.container.root
        )
        fresh = state.Container(supervisor.container.root, supervisor.container.id)
        groups = cgroupfs.openings(fresh)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        within = {name: fd for name, fd in namespaces.items() if name != "outer"}
        entered = enter.start(
            process,
            within,
            program=program,
            machine=plan.machine,
            stdio=(null, output, output),
            single=plan.ids.single,
            groups=groups,
        )
        return entered.wait() & 0xFF
    except RunError as error:
        os.write(output, str(error).encode())
        return error.code


def make(request: RunRequest, image: dict[str, Any], container: state.Container) -> Health | None:
    """The check that was asked for, or the image's; None if it says NONE.

    Raises:
        RunError: a word that is not understood.
    """
    check = image.get("Healthcheck") or {}
    command = [str(word) for word in check.get("Test") or ()]
    if request.health_cmd:
        command = ["CMD-SHELL", request.health_cmd]
    if not command or command[0] == "NONE" or request.health_cmd == "none":
        return None
    if command[0] == "CMD-SHELL":
        command = ["/bin/sh", "-c", " ".join(command[1:])]
    elif command[0] == "CMD":
        command = command[1:]

    def seconds(text: str | None, key: str, default: float) -> float:
        if text is not None:
            return duration(text, f"--health-{key}")
        told = check.get(_KEYS[key], 0) / 1e9
        return max(_LEAST, told) if told else default

    retries = check.get("Retries", 0) or 3
    if request.health_retries is not None:
        retries = integer(request.health_retries, "--health-retries", 1, 1000)

    return Health(
        command,
        seconds(request.health_interval, "interval", 30),
        seconds(request.health_timeout, "timeout", 30),
        retries,
        seconds(request.health_start_period, "start-period", 0),
        container,
    )
