"""``logs`` and ``events``: what has been written down, and what is being."""

from __future__ import annotations

import os
import select
import sys
import time

from runtime import jsonio, state
from runtime.errors import RunError
from runtime.logs import moment, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Options = dict[str, Any]

#: How often is looked whether the supervisor still lives.
_LOOK_SECONDS = 0.5


def logs(options: Options, rest: list[str], root: str) -> int:
    """``pyrun logs``."""
    from runtime.values import integer

    if len(rest) != 1:
        raise RunError("expected one container", "pyrun logs CONTAINER")
    container = state.Containers(root).find(rest[0])
    since = moment(options["since"]) if options.get("since") else 0.0
    until = moment(options["until"]) if options.get("until") else 0.0
    tail = options.get("tail", "all")
    if tail != "all":
        integer(tail, "--tail", 0)

    def wanted(entry: dict[str, str]) -> bool:
        when = state.parse_stamp(entry["time"]) if since or until else 0.0
        return when >= since and (not until or when <= until)

    said = list(read(container.path("log")))
    entries = [entry for entry in said if wanted(entry)]
    if tail != "all":
        entries = entries[len(entries) - min(int(tail), len(entries)) :]
    if not options.get("follow"):
        for entry in entries:
            _print_log(entry, bool(options.get("timestamps")))
        return 0
    return _follow(container, entries, said[-1:], options, wanted)


def _print_log(entry: dict[str, str], timestamps: bool) -> None:
    out = sys.stderr if entry.get("stream") == "stderr" else sys.stdout
    text = f"{entry['time']} {entry['log']}" if timestamps else entry["log"]
    out.buffer.write(text.encode(errors="surrogateescape"))
    out.flush()


def _follow(
    container: state.Container,
    entries: list[dict[str, str]],
    last: list[dict[str, str]],
    options: Options,
    wanted: Callable[[dict[str, str]], bool],
) -> int:
    """Print, then go on behind ``last`` as the file grows until the supervisor has gone."""
    from unionfs.sys import calls

    timestamps = bool(options.get("timestamps"))
    path = container.path("log")
    notify = calls.inotify_init()
    os.set_blocking(notify, True)
    try:
        directory = os.fsencode(container.directory)
        calls.inotify_add_watch(notify, directory, calls.IN_MODIFY | calls.IN_MOVED_TO | 0x400)
    except OSError:
        os.close(notify)
        raise
    try:
        with open(path, "rb") as file:
            for entry in entries:
                _print_log(entry, timestamps)
            file.seek(_after(file, last))
            rest = b""
            while True:
                alive = container.supervised()
                rest += file.read()
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    try:
                        entry = jsonio.loads(line)
                    except ValueError:
                        continue
                    if wanted(entry):
                        _print_log(entry, timestamps)
                if not alive:
                    return 0
                if os.stat(path).st_ino != os.fstat(file.fileno()).st_ino:
                    return _follow(container, [], [], options, wanted)
                # That a lock has been given back is no event.
                if select.select([notify], [], [], _LOOK_SECONDS)[0]:
                    os.read(notify, 65536)
    except FileNotFoundError:
        return 0  # removed meanwhile
    finally:
        os.close(notify)


def json_key(entry: dict[str, str]) -> str:
    """What identifies an entry."""
    return jsonio.dumps(entry)


def _after(file: Any, last: list[dict[str, str]]) -> int:
    """Where to go on: behind the last entry that was read, or in a file of later ones at 0."""
    seen = {json_key(entry) for entry in last}
    position = found = 0
    for line in file if seen else ():
        position += len(line)
        try:
            if line.endswith(b"\n") and json_key(jsonio.loads(line)) in seen:
                found = position
        except ValueError:
            continue
    return found


def events(options: Options, rest: list[str], root: str) -> int:
    """``pyrun events``."""
    since = moment(options["since"]) if options.get("since") else time.time()
    until = moment(options["until"]) if options.get("until") else 0.0
    path = f"{root}/events"
    with open(path, "a+b") as file:
        file.seek(0)
        from unionfs.sys import calls

        notify = calls.inotify_init()
        os.set_blocking(notify, True)
        calls.inotify_add_watch(notify, os.fsencode(root), calls.IN_MODIFY)
        try:
            while True:
                for line in file:
                    _print_event(line, since, until, options)
                if until and until <= time.time():
                    return 0
                os.read(notify, 65536)
        finally:
            os.close(notify)


def _print_event(line: bytes, since: float, until: float, options: Options) -> None:
    try:
        event = jsonio.loads(line)
    except ValueError:
        return
    when = state.parse_stamp(event["time"])
    if when < since or (until and when > until):
        return
    if options.get("json") or options.get("format") == "json":
        sys.stdout.write(jsonio.dumps(event) + "\n")
    else:
        sys.stdout.write(f"{event['time']} {event['type']} {event['action']} {event['id']}\n")
    sys.stdout.flush()
