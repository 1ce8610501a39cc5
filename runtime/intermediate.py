"""The intermediate process of a start: in the outer user namespace, it mounts and serves the root.

It is forked before its plan is known, or even whether there will be one: what takes longest is
to import what serves a union.
"""

from __future__ import annotations

import _socket
import marshal
import os

from runtime import child, ids, plan, union
from runtime.channel import Channel, pair
from runtime.errors import RunError
from runtime.launch import RECORD
from runtime.lean import signal
from runtime.sys import calls, trampoline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def wait(channel: Channel, own: bool) -> NoReturn:
    """Be that process; ``own``: in a user namespace of its own, see ``launch.Intermediate``."""
    try:
        _prepare(channel, own)
    except BaseException as error:
        channel.send_error(error)
        os._exit(125)
    message, fds = channel.receive()
    if not message:
        os._exit(0)
    channel.close()
    _carry_out(unpack(message), fds)


def _prepare(channel: Channel, own: bool) -> None:
    signal.set_wakeup_fd(-1)  # the supervisor's
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()  # what a terminal sends is not for us
    union.close_all_but([channel.fd])
    os.chdir("/")
    os.umask(0)  # modes are what the container's processes ask for
    calls.set_name(b"pyrun-union")
    calls.set_command_line(b"pyrun-union")
    if own:
        _unshare_user()
        channel.send(b"U")
    union.load()


def _unshare_user() -> None:
    """Enter a new user and mount namespace whose ids somebody outside will map.

    Raises:
        RunError: the host does not permit it.
    """
    calls.set_dumpable(True)
    try:
        calls.unshare(calls.CLONE_NEWUSER | calls.CLONE_NEWNS)
    except OSError as error:
        raise RunError(
            f"user namespaces cannot be made here: {error.strerror}",
            "see sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone"
            " (apparmor: kernel.apparmor_restrict_unprivileged_userns)",
        ) from None


def _carry_out(data: dict[str, Any], fds: list[int]) -> NoReturn:
    """What ``launch`` has given."""
    the_plan: plan.Plan = data["plan"]
    status = Channel(_socket.socket(fileno=fds[0]))
    try:
        joins = dict(zip(data["joins"], fds[6 + data["outer"] :], strict=True))
        if data["outer"]:
            calls.setns(fds[6], calls.CLONE_NEWUSER)
        if data["outer"] or not the_plan.ids.outer_uids:
            calls.unshare(calls.CLONE_NEWNS)
        if the_plan.ids.outer_uids:
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
        tree, tree_from = pair()
        stage = os.fork()
        if stage == 0:
            tree.close()
            machine = the_plan.machine
            streams = child.Streams((fds[3], fds[4], fds[5]), fds[2], trampoline.create(machine))
            child.enter(
                the_plan, status=status, commands=fds[1], tree_from=tree_from, joins=joins,
                streams=streams, program=data["program"],
            )  # fmt: skip
        tree_from.close()
        for fd in fds[1:]:
            os.close(fd)
        calls.mount(b"none", b"/", b"", calls.MS_REC | calls.MS_SLAVE, b"")
        if the_plan.ids.outer_uids:
            outer = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
            status.send(b"O", [outer])
            os.close(outer)
        if the_plan.root.memory:
            from runtime import sizes

            the_plan = sizes.in_memory(the_plan)
        root, serve = union.mount_root(the_plan)
        tree.send(b"T", [root])
        os.close(root)
        os.waitpid(stage, 0)
        tree.close()
        status.close()
        if serve is not None:
            union.hide(the_plan.ids.daemon)
            serve()
        os._exit(0)
    except BaseException as error:
        status.send_error(error)
        os._exit(125)


def unpack(message: bytes) -> Any:
    """What ``launch.pack`` was given; lists come back as tuples."""
    return _record(marshal.loads(message), {**vars(plan), "IdPlan": ids.IdPlan})


def _record(value: Any, classes: dict[str, Any]) -> Any:
    if isinstance(value, tuple):
        if len(value) == 3 and value[0] == RECORD:
            return classes[value[1]](**_record(value[2], classes))
        return tuple(_record(item, classes) for item in value)
    if isinstance(value, dict):
        return {key: _record(item, classes) for key, item in value.items()}
    return value
