"""The commands about containers that exist."""

from __future__ import annotations

import os
import sys
import time

from runtime import console, jsonio, removal, state
from runtime.cli.output import ago, show, table
from runtime.errors import RunError
from runtime.lean import signal
from runtime.request import stored_request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Options = dict[str, Any]
    Command = Callable[[Options, list[str], str], int]


def run(command: str, options: Options, rest: list[str], root: str) -> int:
    """Carry out a command; the exit code.

    Raises:
        RunError: for the caller to show.
    """
    here: Command | None = globals().get(f"_{command}")
    if here is not None:
        return here(options, rest, root)
    if command in ("cp", "diff", "commit", "export"):
        from runtime.cli import files

        return int(getattr(files, command)(options, rest, root))
    if command in ("top", "stats", "pause", "unpause", "update"):
        from runtime.cli import resources

        return int(getattr(resources, command)(options, rest, root))
    if command in ("logs", "events"):
        from runtime.cli import records

        return int(getattr(records, command)(options, rest, root))
    if command in ("save", "load", "import"):
        from runtime.cli import store

        return int(getattr(store, command.replace("import", "import_"))(options, rest, root))
    from runtime.cli import system

    name = "network_" if command == "network" else command
    return int(getattr(system, name)(options, rest, root))


def _named(rest: list[str], root: str, usage: str) -> list[state.Container]:
    if not rest:
        raise RunError("no container named", f"pyrun {usage}")
    containers = state.Containers(root)
    return [containers.find(word) for word in rest]


def _one(rest: list[str], root: str, usage: str) -> state.Container:
    if len(rest) != 1:
        raise RunError("expected one container", f"pyrun {usage}")
    return _named(rest, root, usage)[0]


# -- looking ---------------------------------------------------------------------


def describe(container: state.Container) -> dict[str, Any]:
    """One container for ``ps``."""
    config, now = container.config, container.state()
    spec = config.get("spec") or {}
    ports = [f"{a or '0.0.0.0'}:{o}->{i}/{p}" for a, p, o, i in config.get("ports") or ()]
    return {
        "Id": container.id,
        "Name": now.get("name") or config.get("name", ""),
        "Image": config.get("image", ""),
        "Command": list((spec.get("process") or {}).get("args") or ()),
        "Created": config.get("created", ""),
        "Status": now["status"],
        "ExitCode": now.get("exit_code", 0),
        "Pid": now.get("pid", 0),
        "StartedAt": now.get("started", ""),
        "FinishedAt": now.get("finished", ""),
        "Health": now.get("health", ""),
        "Restarts": now.get("restarts", 0),
        "Error": now.get("error", ""),
        "Ports": ports,
        "Labels": config.get("labels") or {},
    }


def _status_text(item: dict[str, Any]) -> str:
    status = item["Status"]
    if status in ("running", "paused"):
        up = f"Up {ago(time.time() - state.parse_stamp(item['StartedAt']))}"
        notes = [word for word in (item["Health"], "paused" if status == "paused" else "") if word]
        return up + (f" ({', '.join(notes)})" if notes else "")
    if status == "exited":
        since = ago(time.time() - state.parse_stamp(item["FinishedAt"] or item["StartedAt"]))
        text = f"Exited ({item['ExitCode']}) {since} ago"
        return f"{text}: {item['Error']}" if item["Error"] else text
    return str(status).capitalize()


_STATUSES = ("created", "starting", "running", "paused", "restarting", "stopping", "exited")


def _has_label(item: dict[str, Any], value: str) -> bool:
    name, equals, wanted = value.partition("=")
    labels = item["Labels"]
    return name in labels and (not equals or labels[name] == wanted)


#: ``ps --filter``: what is looked at, and whether a container has it.
_FILTERS: dict[str, Callable[[dict[str, Any], str], bool]] = {
    "name": lambda item, value: value in item["Name"],
    "id": lambda item, value: item["Id"].startswith(value),
    "status": lambda item, value: item["Status"] == value,
    "exited": lambda item, value: item["Status"] == "exited" and str(item["ExitCode"]) == value,
    "ancestor": lambda item, value: item["Image"] == value,
    "label": _has_label,
    "health": lambda item, value: item["Health"] == value,
}


def _matches(item: dict[str, Any], filters: tuple[str, ...]) -> bool:
    words = (word.partition("=") for word in filters)
    return all(_FILTERS[key](item, value) for key, _, value in words)


def _ps(options: Options, rest: list[str], root: str) -> int:
    for word in options.get("filter", ()):
        key, _, value = word.partition("=")
        if key not in _FILTERS:
            raise RunError(f"--filter {word}: unknown key", f"there are: {', '.join(_FILTERS)}")
        if key == "status" and value not in _STATUSES:
            raise RunError(f"--filter {word}: no such status", ", ".join(_STATUSES))
    if rest:
        raise RunError(f"ps takes no argument: {rest[0]}")
    removal.sweep(root)
    items = [describe(container) for container in state.Containers(root).all()]
    filters = options.get("filter", ())
    everything = options.get("all") or any(word.startswith("status=") for word in filters)
    if not everything:
        items = [item for item in items if item["Status"] in ("running", "paused", "starting")]
    items = [item for item in reversed(items) if _matches(item, filters)]
    if options.get("quiet"):
        length = None if options.get("no_trunc") else state.SHORT
        sys.stdout.write("".join(f"{item['Id'][:length]}\n" for item in items))
        return 0
    if show(options, items):
        return 0
    whole = bool(options.get("no_trunc"))
    rows = []
    for item in items:
        command = " ".join(item["Command"])
        if not whole and len(command) > 30:
            command = command[:29] + "…"
        created = ago(time.time() - state.parse_stamp(item["Created"])) + " ago"
        shown = item["Id"] if whole else item["Id"][: state.SHORT]
        ports = ", ".join(item["Ports"])
        rows.append(
            (shown, item["Image"], command, created, _status_text(item), ports, item["Name"])
        )
    table(("CONTAINER", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAME"), rows)
    return 0


def inspected(container: state.Container) -> dict[str, Any]:
    """Everything about a container."""
    config = container.config
    seen = describe(container)
    source = config.get("source") or {}
    return {
        **seen,
        "State": {
            "Status": seen["Status"],
            "Running": seen["Status"] in ("running", "paused"),
            "Paused": seen["Status"] == "paused",
            "Pid": seen["Pid"],
            "ExitCode": seen["ExitCode"],
            "Error": seen["Error"],
            "StartedAt": seen["StartedAt"],
            "FinishedAt": seen["FinishedAt"],
            "Health": {"Status": seen["Health"], "Log": container.state().get("health_log", [])},
        },
        "ImageId": config.get("image_id", ""),
        "Config": config.get("request") or {},
        "Mounts": config.get("volumes") or [],
        "Root": source,
        "Cgroup": config.get("cgroup"),
        "Directory": container.directory,
        "LogPath": container.path("log"),
        "Spec": config.get("spec") or {},
    }


def _inspect(options: Options, rest: list[str], root: str) -> int:
    if not rest:
        raise RunError("nothing named", "pyrun inspect NAME")
    items = []
    for word in rest:
        try:
            items.append(inspected(state.Containers(root).find(word)))
        except RunError:
            volume = f"{root}/volumes/{word}"
            if "/" in word or not os.path.isdir(volume):
                image = _inspect_image(word)
                if image is None:
                    raise
                items.append(image)
            else:
                items.append({"Name": word, "Mountpoint": f"{volume}/_data", "Driver": "local"})
    if not show(options, items):
        sys.stdout.write(jsonio.pretty(items) + "\n")
    return 0


def _inspect_image(word: str) -> dict[str, Any] | None:
    from runtime import images

    return images.describe(word)


def _port(options: Options, rest: list[str], root: str) -> int:
    if not 1 <= len(rest) <= 2:
        raise RunError("expected a container", "pyrun port CONTAINER [PORT[/PROTOCOL]]")
    container = state.Containers(root).find(rest[0])
    items = [
        {"ContainerPort": i, "Protocol": p, "HostAddress": a or "0.0.0.0", "HostPort": o}
        for a, p, o, i in container.config.get("ports") or ()
    ]
    if len(rest) == 2:
        port, _, protocol = rest[1].partition("/")
        items = [
            item
            for item in items
            if str(item["ContainerPort"]) == port and item["Protocol"] == (protocol or "tcp")
        ]
        if not items:
            raise RunError(f"port {rest[1]} is not published")
    if not show(options, items):
        for item in items:
            head = "" if len(rest) == 2 else f"{item['ContainerPort']}/{item['Protocol']} -> "
            sys.stdout.write(f"{head}{item['HostAddress']}:{item['HostPort']}\n")
    return 0


# -- doing -----------------------------------------------------------------------


def _wait(options: Options, rest: list[str], root: str) -> int:
    for container in _named(rest, root, "wait CONTAINER"):
        sys.stdout.write(f"{wait_for(container)}\n")
        sys.stdout.flush()
    return 0


def wait_for(container: state.Container) -> int:
    """Wait until a container has ended; its exit status."""
    if container.supervised():
        try:
            answer, _ = console.ask(container.directory, {"op": "wait"})
            return int(answer.get("exit", 125))
        except RunError:
            container.wait_unlocked()
    return int(container.state().get("exit_code", 0))


def _running(root: str) -> list[state.Container]:
    return [one for one in state.Containers(root).all() if one.supervised()]


def _each(
    options: Options, rest: list[str], root: str, usage: str,
    act: Callable[[state.Container], None],
) -> int:  # fmt: skip
    """Do something to every container named, going on after errors; 1 if there was one."""
    words = [one.id for one in _running(root)] if options.get("all") else rest
    if not words and not options.get("all"):
        raise RunError("no container named", f"pyrun {usage}")
    failed: RunError | None = None
    for word in words:
        try:
            act(state.Containers(root).find(word))
            sys.stdout.write(f"{word}\n")
        except RunError as error:
            if len(words) == 1:
                raise
            sys.stderr.write(f"error: {word}: {error}\n")
            failed = error
    return 1 if failed else 0


def stop_one(container: state.Container, timeout: float | None) -> None:
    """Stop a container and wait until it has ended; one that does not run is fine."""
    if not container.supervised():
        return
    request: dict[str, Any] = {"op": "stop"}
    if timeout is not None:
        request["timeout"] = timeout
    try:
        console.ask(container.directory, request)
    except RunError:
        pass  # it has ended meanwhile
    container.wait_unlocked()


def _timeout(options: Options) -> float | None:
    from runtime.values import real

    return real(options["time"], "--time", 0) if options.get("time") else None


def _stop(options: Options, rest: list[str], root: str) -> int:
    timeout = _timeout(options)
    usage = "stop CONTAINER"
    return _each(options, rest, root, usage, lambda one: stop_one(one, timeout))


def _kill(options: Options, rest: list[str], root: str) -> int:
    from runtime.values import signal_number

    number = signal_number(options.get("signal", "KILL"))

    def act(container: state.Container) -> None:
        console.ask(container.directory, {"op": "signal", "signal": number})
        state.record_event(root, "container", "kill", container, signal=number)
        if number == 9:
            container.wait_unlocked()

    return _each(options, rest, root, "kill CONTAINER", act)


def _restart(options: Options, rest: list[str], root: str) -> int:
    from runtime.cli.run import start_one

    timeout = _timeout(options)

    def act(container: state.Container) -> None:
        if (container.config.get("request") or {}).get("rm"):
            raise RunError(f"container {container.name} is removed when it ends (--rm)")
        stop_one(container, timeout)
        container = state.Container(container.root, container.id)  # it may have been made meanwhile
        start_one(container, root, False, {})

    return _each({}, rest, root, "restart CONTAINER", act)


def _rename(options: Options, rest: list[str], root: str) -> int:
    if len(rest) != 2:
        raise RunError("expected a container and a name", "pyrun rename CONTAINER NAME")
    from runtime.volumes import is_name

    if not is_name(rest[1]):
        raise RunError(
            f"container name {rest[1]}: not a name", "letters, digits, and _ . - after the first"
        )
    containers = state.Containers(root)
    container = containers.find(rest[0])
    old = container.name
    containers.reclaim(rest[1])
    containers.take_name(rest[1], container)
    container.save_name(rest[1])
    containers.drop_name(old, container)
    state.record_event(root, "container", "rename", container, name=rest[1])
    return 0


def _rm(options: Options, rest: list[str], root: str) -> int:
    containers = state.Containers(root)
    if options.get("all"):
        removal.sweep(root, patient=True)
    words = [one.id for one in containers.all()] if options.get("all") else rest
    if not words and not options.get("all"):
        raise RunError("no container named", "pyrun rm CONTAINER")
    failed = 0
    for word in words:
        try:
            remove_one(containers.find(word), options)
            sys.stdout.write(f"{word}\n")
        except RunError as error:
            if options.get("force") and str(error).startswith("no container"):
                continue
            if len(words) == 1:
                raise
            sys.stderr.write(f"error: {word}: {error}\n")
            failed = 1
    return failed


def remove_one(container: state.Container, options: Options) -> None:
    """Remove a container, and its anonymous volumes if asked.

    Raises:
        RunError: it runs, and force was not given.
    """
    if container.supervised():
        if not options.get("force"):
            raise RunError(
                f"container {container.name} is running", "stop it first, or: pyrun rm --force"
            )
        try:
            console.ask(container.directory, {"op": "stop", "timeout": 0})
        except RunError:
            pass
        container.wait_unlocked()
    try:
        lock = _lock(container, bool(options.get("force")))
    except FileNotFoundError:
        return  # --rm has removed it, or somebody else
    container = state.Container(container.root, container.id)  # it may have been made meanwhile
    try:
        removal.kill_left(container)
        anonymous = bool(options.get("volumes")) or stored_request(container).rm
        removal.remove_files(container, volumes=anonymous)
    finally:
        os.close(lock)


def _lock(container: state.Container, force: bool) -> int:
    """The container's lock; ``force``: from who looks into its files, who is ended."""
    from runtime.session import in_use

    for _ in range(2):
        try:
            return container.lock(patient=True)
        except BlockingIOError:
            reader = container.looked_into()
            if not (force and reader):
                break
            try:
                os.kill(reader, signal.SIGTERM)
            except OSError:
                break
            container.wait_unlocked()
    raise in_use(container)
