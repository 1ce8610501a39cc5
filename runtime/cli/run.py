"""``run``, ``create``, ``start`` and ``attach``."""

from __future__ import annotations

import os
import sys

from runtime import console, jsonio, lifecycle, state
from runtime.errors import RunError
from runtime.request import RunRequest, stored_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
    """``pyrun run``: the command's exit status."""
    request = request_from(values, rest)
    if request.dry_run:
        return show_plan(lifecycle.dry_run(request, root), request.json)
    made = lifecycle.create(request, root, fleeting=request.rm)
    try:
        _write_id(request, made.container)
    except BaseException:
        made.take_back()
        raise
    if request.rootfs == "/" and not request.detach and os.isatty(2):
        sys.stderr.write(
            "pyrun: on this host's own root: changes are kept apart; other mounts are left out\n"
        )
    if request.detach:
        return _run_detached(made)
    try:
        return _run_here(request, made)
    except console.Detached:
        sys.stderr.write("\r\n")
        return 0


def _write_id(request: RunRequest, container: state.Container) -> None:
    if request.cidfile:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(request.cidfile, flags, 0o644)
        except OSError as error:
            raise RunError(f"--cidfile {request.cidfile}: {error.strerror}") from None
        os.write(fd, container.id.encode())
        os.close(fd)


def _supervise(made: lifecycle.Created, attached: Attached | None) -> Channel:
    try:
        return lifecycle.supervise(
            made.container, made.plan, attached, held=made.held, transient=True
        )
    except BaseException:
        made.held = []
        made.take_back()
        raise


def _run_detached(made: lifecycle.Created) -> int:
    lifecycle.wait_started(_supervise(made, None))
    sys.stdout.write(f"{made.container.id}\n")
    return 0


def _run_here(request: RunRequest, made: lifecycle.Created) -> int:
    wanted = {word.lower() for word in request.attach} or {"stdin", "stdout", "stderr"}
    ours, theirs = lifecycle.streams(request.interactive and "stdin" in wanted)
    _supervise(made, theirs).close()
    for name in {"out", "err"} - {word.removeprefix("std") for word in wanted}:
        os.close(getattr(ours, name))  # the supervisor drops what nobody reads
        setattr(ours, name, -1)
    console.proxy(ours.channel, tty=request.tty, signals=request.sig_proxy)
    told = ours.relay(console.parse_keys(request.detach_keys), request.tty)
    return report_end(told)


def report_end(told: dict[str, Any]) -> int:
    """The exit status that a supervisor told.

    Raises:
        RunError: it ended by an error of ours.
    """
    code = int(told.get("exit", told.get("code", 125)))
    if told.get("error"):
        raise RunError(str(told["error"]), str(told.get("hint", "")), code or 125)
    return code


def create(values: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun create``."""
    request = request_from(values, rest)
    if request.dry_run:
        return show_plan(lifecycle.dry_run(request, root), request.json)
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
        lifecycle.wait_started(lifecycle.supervise(container, plan, None))
        return 0
    ours, theirs = lifecycle.streams(bool(values.get("interactive")))
    lifecycle.supervise(container, plan, theirs).close()
    console.proxy(ours.channel, tty=request.tty, signals=True)
    try:
        keys = console.parse_keys(values.get("detach_keys", request.detach_keys))
        return report_end(ours.relay(keys, request.tty))
    except console.Detached:
        return 0


def attach(values: dict[str, Any], rest: list[str], root: str) -> int:
    """``pyrun attach``: the container's exit status."""
    if len(rest) != 1:
        raise RunError("expected one container", "pyrun attach CONTAINER")
    container = state.Containers(root).find(rest[0])
    stdin = not values.get("no_stdin", False)
    pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    channel = console.connect(container.directory)
    theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
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
    ours = lifecycle.Attachment(channel, pipes[0][1] if stdin else -1, pipes[1][0], pipes[2][0])
    try:
        keys = console.parse_keys(values.get("detach_keys", "ctrl-p,ctrl-q"))
        return report_end(ours.relay(keys, tty))
    except console.Detached:
        sys.stderr.write("\r\n")
        return 0
