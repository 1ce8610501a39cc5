"""A look into a container's files, whether it runs or not: ``cp``, ``export``.

Of a running container its namespaces are entered; one that does not run is
made up to the point where its command would be executed, and taken down again.
"""

from __future__ import annotations

import os

from runtime import child, console, facts, launch, lifecycle, state
from runtime.channel import pair, raise_if_error
from runtime.errors import RunError
from runtime.lean import signal
from runtime.plan import NetworkPlan
from runtime.sys import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def in_use(container: state.Container) -> RunError:
    """What to say of a container whose lock somebody has."""
    reader = container.looked_into()
    if reader and container.config.get("broken"):
        return RunError(
            f"container {container.name} is just being made by process {reader}",
            "wait for it, or: pyrun rm --force",
        )
    if reader:
        return RunError(
            f"container {container.name}: its files are being copied by process {reader}",
            "wait for pyrun cp or export, or: pyrun rm --force",
        )
    return RunError(f"container {container.name} is running", "it has just started")


def _leave(_number: int, _frame: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


class Session:
    """Descriptors of a container's user and mount namespaces, for a ``with``."""

    def __init__(self, container: state.Container, root: str) -> None:
        self.container = container
        self.root = root
        self.fds: dict[str, int] = {}
        self.single = bool(container.config.get("single"))
        self._started: launch.Started | None = None
        self._lock = -1
        self._inside = 0

    def __enter__(self) -> Session:
        if self.container.supervised():
            answer, fds = console.ask(self.container.directory, {"op": "namespaces"})
            self.fds = dict(zip(answer["names"], fds, strict=True))
            return self
        try:
            self._lock = self.container.lock(patient=True, looking=True)
        except BlockingIOError:
            raise in_use(self.container) from None
        except FileNotFoundError:
            raise RunError(f"container {self.container.id[:12]} has been removed") from None
        # ``rm --force`` ends us so: what has been started is to be taken down then, too.
        signal.signal(signal.SIGTERM, _leave)
        try:
            self._start()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _start(self) -> None:
        plan = lifecycle.replan(self.container, self.root, looking=True)
        spaces = plan.namespaces
        kinds = dict.fromkeys((*spaces.new, *(kind for kind, _ in spaces.join)))
        plan = plan.replace(
            root=plan.root.replace(transient=False),
            network=NetworkPlan(mode="none"),
            namespaces=spaces.replace(new=tuple(kinds), join=()),
            process=plan.process.replace(terminal=False),
            init=False,
        )
        host = facts.ask()
        begun = launch.begin(
            plan, program=b"", joins={}, newuidmap=host.newuidmap, newgidmap=host.newgidmap
        )
        self._started = launch.finish(begun, plan)
        self.fds = self._started.namespaces
        self._started.namespaces = {}

    def __exit__(self, *_error: object) -> None:
        if self._inside:
            os.kill(self._inside, signal.SIGKILL)
            os.waitpid(self._inside, 0)
        for fd in self.fds.values():
            os.close(fd)
        if self._started is not None:
            # The first process ends at the end of its commands; the union ends with its mounts.
            self._started.close()
            for pid in (self._started.pid, self._started.union_pid):
                if pid:
                    os.waitpid(pid, 0)
        if self._lock >= 0:
            os.close(self._lock)

    def inside(self, function: Callable[[], None]) -> int:
        """Start a child in the container's mounts that calls ``function``; see ``finish``.

        What it needs must have been imported: there, files are the container's.
        """
        ours, theirs = pair()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                calls.set_dumpable(False)
                child.forget_imports()
                if "user" in self.fds:
                    try:
                        calls.setns(self.fds["user"], calls.CLONE_NEWUSER)
                    except OSError as error:
                        if error.errno != 22:  # EINVAL: it is our own
                            raise
                calls.setns(self.fds["mnt"], calls.CLONE_NEWNS)
                if not self.single:
                    os.setgroups([])
                    os.setresgid(0, 0, 0)
                    os.setresuid(0, 0, 0)
                os.chdir("/")
                function()
                os._exit(0)
            except BaseException as error:
                theirs.send_error(error)
                os._exit(1)
        theirs.close()
        self._channel = ours
        self._inside = pid
        return pid

    def finish(self, pid: int) -> None:
        """Wait for a child of ``inside``.

        Raises:
            RunError: what it raised.
        """
        message, _ = self._channel.receive()
        self._channel.close()
        os.waitpid(pid, 0)
        self._inside = 0
        raise_if_error(message)
