"""The intermediate process of a start: in the outer user namespace, it mounts and serves the root.

It is forked before its plan is known, or even whether there will be one: what takes longest is
to import what serves a union.
"""

from __future__ import annotations

import _socket
import marshal
import os

from runtime import ids, plan, union
from runtime.channel import Channel, pair
from runtime.errors import RunError
from runtime.launch import RECORD
from runtime.lean import ENDING, signal
from runtime.sys import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


def wait(channel: Channel, own: bool, wants_union: bool) -> NoReturn:
    """Be that process; ``own``: in a user namespace of its own, see ``launch.Intermediate``.

    ``wants_union``: what serves one is imported beforehand.
    """
    try:
        _prepare(channel, own)
        stage, to_stage = _fork_stage()
        if wants_union:
            union.load()
    except BaseException as error:
        channel.send_error(error)
        os._exit(125)
    message, fds = channel.receive()
    if not message:
        os._exit(0)
    channel.close()
    _serve(fds, stage, to_stage)


def _prepare(channel: Channel, own: bool) -> None:
    signal.set_wakeup_fd(-1)  # the supervisor's
    for number in (signal.SIGCHLD, *ENDING):
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


def _fork_stage() -> tuple[int, Channel]:
    """The stage, forked while this process is small: each page that both have is copied later."""
    ours, theirs = pair()
    here = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            calls.set_parent_death_signal(signal.SIGKILL)
            from runtime import child  # noqa: F401  (it takes its time, of which there is some)

            if os.getppid() == here:
                message, fds = theirs.receive()
                if message:
                    _be_stage(fds, theirs)
        finally:
            os._exit(125)
    theirs.close()
    return pid, ours


def _be_stage(given: list[int], tree_from: Channel) -> None:
    """What ``launch`` has given, passed on by the intermediate process."""
    from runtime import child
    from runtime.sys import trampoline

    packed, *fds = given
    status = Channel(_socket.socket(fileno=fds[0]))
    try:
        data = unpack(_content(packed))
        the_plan: plan.Plan = data["plan"]
        joins = dict(zip(data["joins"], fds[6 + data["outer"] :], strict=True))
        _enter_outer(the_plan, fds[6] if data["outer"] else -1)
        streams = child.Streams(
            (fds[3], fds[4], fds[5]), fds[2], trampoline.create(the_plan.machine)
        )
    except BaseException as error:
        status.send_error(error)
        return
    child.enter(
        the_plan, status=status, commands=fds[1], tree_from=tree_from, joins=joins,
        streams=streams, program=data["program"],
    )  # fmt: skip


def _enter_outer(the_plan: plan.Plan, outer: int) -> None:
    """Be root of the outer user namespace, if there is one; ``outer`` is that of another's."""
    if outer >= 0:
        calls.setns(outer, calls.CLONE_NEWUSER)
    if outer >= 0 or not the_plan.ids.outer_uids:
        calls.unshare(calls.CLONE_NEWNS)
    if the_plan.ids.outer_uids:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)


def _serve(given: list[int], stage: int, to_stage: Channel) -> NoReturn:
    packed, *fds = given
    status = Channel(_socket.socket(fileno=fds[0]))
    try:
        to_stage.send(b"P", given)
        data = unpack(_content(packed))
        the_plan: plan.Plan = data["plan"]
        _enter_outer(the_plan, fds[6] if data["outer"] else -1)
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
        to_stage.send(b"T", [root])
        os.close(root)
        os.waitpid(stage, 0)
        to_stage.close()
        if serve is not None:
            # On v1 a process is moved by who has its id: as long as it has that.
            if the_plan.cgroup is not None and status.receive()[0] != b"g":
                os._exit(125)
            union.hide(the_plan.ids.daemon)
            serve()
        status.close()
        os._exit(0)
    except BaseException as error:
        status.send_error(error)
        os._exit(125)


def _content(fd: int) -> bytes:
    """All of a file in memory, wherever others that have it are; it is closed here."""
    size = os.fstat(fd).st_size
    content = b""
    while len(content) < size:
        content += os.pread(fd, size - len(content), len(content))
    os.close(fd)
    return content


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
