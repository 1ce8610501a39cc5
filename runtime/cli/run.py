"""``run``, ``create``, ``start`` and ``attach``."""

from __future__ import annotations

import os
import sys

from runtime import console, early, jsonio, lifecycle, state
from runtime.channel import pair
from runtime.errors import RunError
from runtime.lean import ENDING
from runtime.request import RunRequest, stored_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from runtime.channel import Channel
    from runtime.plan import Plan
    from runtime.task import Attached


def request_from(values: dict[str, Any], rest: list[str]) -> RunRequest:
    """The request of a command line.

    Raises:
        RunError: no image.
    """
    values = dict(values)
    if not values.get("rootfs"):
        if not rest:
            raise RunError("no image", "pyrun run IMAGE COMMAND, or --rootfs DIR")
        values["image"] = rest[0]
        rest = rest[1:]
    else:
        values["rootfs"] = os.path.abspath(values["rootfs"])
    return RunRequest(**values, command=tuple(rest))


def show_plan(plan: Plan, as_json: bool) -> int:
    """``--dry-run``."""
    if as_json:
        sys.stdout.write(jsonio.pretty(plan.to_data()) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in plan.describe()))
    return 0


def run(values: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun run``, in the process that becomes the supervisor; see ``early``."""
    request = request_from(values, rest)
    if request.dry_run:
        return show_plan(lifecycle.dry_run(request, root), request.json)
    made = lifecycle.create(request, root, fleeting=request.rm, waiting=early.waiting())
    try:
        _write_id(request, made.container)
        if request.rootfs == "/" and not request.detach and os.isatty(2):
            sys.stderr.write(
                "pyrun: on this host's own root:"
                " changes are kept apart; other mounts are left out\n"
            )
        _supervise(request, made)
    except BaseException:
        made.take_back()
        raise


def _supervise(request: RunRequest, made: lifecycle.Created) -> NoReturn:
    """Be the container's supervisor; what comes of it is told to who called."""
    from runtime import supervision

    task = lifecycle.task_for(made.container, made.plan, made, transient=True)
    try:
        caller = early.become_supervisor()
        if request.detach:
            task.first = caller
        else:
            task.attached = _attach(request, caller)
    except BaseException:
        task.close()
        raise
    sys.stdout.flush()
    sys.stderr.flush()
    supervision.run(task)


def _attach(request: RunRequest, caller: Channel) -> Attached:
    from runtime.task import Attached

    wanted = {word.lower().removeprefix("std") for word in request.attach} or {"in", "out", "err"}
    ours, theirs = console.pipes(request.interactive and "in" in wanted)
    kept = []
    for fd, name in zip(ours, ("in", "out", "err"), strict=True):
        if name not in wanted and fd >= 0:
            os.close(fd)  # the supervisor drops what nobody reads
        kept.append(fd if name in wanted else -1)
    invitation = console.Invitation(
        caller, kept, tty=request.tty, keys=request.detach_keys, signals=request.sig_proxy
    )
    return Attached(caller, *theirs, invitation)


def _write_id(request: RunRequest, container: state.Container) -> None:
    if request.cidfile:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(request.cidfile, flags, 0o644)
        except OSError as error:
            raise RunError(f"--cidfile {request.cidfile}: {error.strerror}") from None
        os.write(fd, container.id.encode())
        os.close(fd)


def create(values: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun create``."""
    request = request_from(values, rest)
    if request.dry_run:
        return show_plan(lifecycle.dry_run(request, root), request.json)
    for number in ENDING:
        early.interrupt_by(number)
    made = lifecycle.create(request, root)
    try:
        _write_id(request, made.container)
    except BaseException:
        made.take_back()
        raise
    sys.stdout.write(f"{made.container.id}\n")
    return 0


def start(values: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun start``."""
    if not rest:
        raise RunError("no container named", "pyrun start CONTAINER")
    attach_to = bool(values.get("attach_") or values.get("interactive"))
    console.parse_keys(values.get("detach_keys", ""))
    if attach_to and len(rest) != 1:
        raise RunError("only one container can be attached to")
    code = 0
    for word in rest:
        container = state.Containers(root).find(word)
        if container.supervised():
            if not attach_to:
                sys.stdout.write(f"{word}\n")
                continue
            raise RunError(f"container {word} is running already", "pyrun attach")
        code = start_one(container, root, attach_to, values)
        if not attach_to:
            sys.stdout.write(f"{word}\n")
    return code


def start_one(
    container: state.Container, root: str, attach_to: bool, values: dict[str, Any]
) -> int:
    """Start a container that exists."""
    request = stored_request(container)
    plan = lifecycle.replan(container, root)
    if not attach_to:
        console.wait_started(lifecycle.supervise(container, plan, None))
        return 0
    from runtime.task import Attached

    channel, supervisors = pair()
    ours, theirs = console.pipes(bool(values.get("interactive")))
    lifecycle.supervise(container, plan, Attached(supervisors, *theirs)).close()
    console.proxy(channel, tty=request.tty, signals=True)
    try:
        keys = console.parse_keys(values.get("detach_keys", request.detach_keys))
        told = console.Attachment(channel, *ours).relay(keys, request.tty)
        return console.report_end(told)
    except console.Detached:
        return 0


def attach(values: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun attach``: the container's exit status."""
    if len(rest) != 1:
        raise RunError("expected one container", "pyrun attach CONTAINER")
    container = state.Containers(root).find(rest[0])
    stdin = not values.get("no_stdin", False)
    ends, theirs = console.pipes(True)
    channel = console.connect(container.directory)
    channel.send(jsonio.dumps({"op": "attach", "stdin": stdin}).encode(), theirs)
    for fd in theirs:
        os.close(fd)
    message, _ = channel.receive()
    if not message:
        raise RunError("the container has just ended")
    answer = jsonio.loads(message)
    if answer.get("error"):
        raise RunError(str(answer["error"]))
    tty = bool(answer["tty"])
    console.proxy(channel, tty=tty, signals=values.get("sig_proxy", True))
    ours = console.Attachment(channel, ends[0] if stdin else -1, ends[1], ends[2])
    try:
        keys = console.parse_keys(values.get("detach_keys", "ctrl-p,ctrl-q"))
        return console.report_end(ours.relay(keys, tty))
    except console.Detached:
        sys.stderr.write("\r\n")
        return 0
