"""The processes that ``early`` forks before it is known what they are to do."""

from __future__ import annotations

import marshal
import os
import select

from runtime import facts, ids, jsonio, launch, plan, union
from runtime.channel import Channel, pair
from runtime.early import RECORD
from runtime.errors import RunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Intermediate:
    """The forked intermediate process, waiting for its plan.

    ``mapped`` are the ids of its user namespace; None: it has none of its own yet.
    """

    def __init__(self, pid: int, channel: Channel, mapped: ids.IdPlan | None) -> None:
        self.pid = pid
        self.channel = channel
        self.mapped = mapped

    def fits(self, plan: ids.IdPlan, outer: int) -> bool:
        """Whether it can be used for a plan; ``outer``: a user namespace is to be entered."""
        mapped = self.mapped
        if mapped is None:
            return True
        return outer < 0 and (mapped.outer_uids, mapped.outer_gids, mapped.single) == (
            plan.outer_uids,
            plan.outer_gids,
            plan.single,
        )

    def dismiss(self) -> None:
        """It is not needed."""
        self.channel.close()
        os.waitpid(self.pid, 0)


def supervisor(channel: Channel, single: bool) -> None:
    """Wait for a task, and be the supervisor of its container; never returns."""
    # With capabilities over ids mapping them is a matter of microseconds: it can wait.
    own = not single and not facts.is_capable()
    ours, theirs = pair()
    pid = os.fork()
    if pid == 0:
        try:
            channel.close()
            ours.close()
            _intermediate(theirs, own)
        finally:
            os._exit(125)
    theirs.close()
    host = facts.ask()
    waiting = Intermediate(pid, ours, _map(pid, ours, host) if own else None)
    # While there is nothing to do yet: what is used once there is.
    from runtime import images, removal, supervision, task  # noqa: F401

    jsonio.loads(b"{}")
    message, fds = channel.receive()
    channel.close()
    if not message:
        waiting.dismiss()
        os._exit(0)
    supervision.run(task.Task.from_message(unpack(message), fds), waiting, host)


def _map(pid: int, channel: Channel, host: facts.HostFacts) -> ids.IdPlan:
    """Give the waiting process the ids that it most likely needs.

    What fails here fails again, and is told, when a container is really started.
    """
    nothing = ids.IdPlan(mode="", outer_uids=(), outer_gids=(), inner_uids=(), inner_gids=())
    try:
        plan = ids.plan_ids("", host.callers)
        if channel.receive()[0] != b"U":
            return nothing
        launch.map_outer(pid, plan, host.newuidmap, host.newgidmap)
    except (RunError, OSError):
        return nothing
    return plan


def _intermediate(channel: Channel, own: bool) -> None:
    """Import, then wait for the plan; see ``launch.create``."""
    os.chdir("/")
    if own:
        launch.unshare_user()
        channel.send(b"U")
    watcher = select.poll()
    watcher.register(channel.fd, select.POLLIN)
    # Once the plan is there its first steps come first: mapping ids waits for another program.
    union.load_until(lambda: bool(watcher.poll(0)))
    message, fds = channel.receive()
    if not message:
        os._exit(0)
    launch.intermediate_early(unpack(message), fds, channel)


def unpack(message: bytes) -> Any:
    """What ``pack`` was given; lists come back as tuples."""
    return _record(marshal.loads(message), {**vars(plan), "IdPlan": ids.IdPlan})


def _record(value: Any, classes: dict[str, Any]) -> Any:
    if isinstance(value, tuple):
        if len(value) == 3 and value[0] == RECORD:
            return classes[value[1]](**_record(value[2], classes))
        return tuple(_record(item, classes) for item in value)
    if isinstance(value, dict):
        return {key: _record(item, classes) for key, item in value.items()}
    return value
