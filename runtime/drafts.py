"""Files and directories under a draft's name, until they are whole and get their own by rename.

What a process that died has left of them is nobody's: ``sweep`` removes it.
"""

from __future__ import annotations

import os
import time

END = ".new"
#: Making something and giving it its name takes less than this. Numbers of processes alone say
#: little of those in other pid namespaces.
_SECONDS = 60


def name(path: str) -> str:
    """Where this process prepares what is to become ``path``."""
    return f"{path}.{os.getpid()}{END}"


def sweep(root: str) -> None:
    """Remove the drafts of processes that are no more beneath a root of containers."""
    places = [root, f"{root}/seccomp"]
    places += [f"{root}/containers/{name}" for name in listed(f"{root}/containers")]
    for place in places:
        for entry in listed(place):
            if entry.endswith(END) and _is_left(f"{place}/{entry}"):
                from runtime.removal import remove_directory

                remove_directory(f"{place}/{entry}")


def listed(path: str) -> list[str]:
    """The names in a directory; none if it cannot be read."""
    try:
        return os.listdir(path)
    except OSError:
        return []


def _is_left(path: str) -> bool:
    number = path.removesuffix(END).rpartition(".")[2]
    if not number.isascii() or not number.isdigit():
        return False
    return is_old(path) and not os.path.exists(f"/proc/{number}")


def is_old(path: str) -> bool:
    """Whether it is long ago that something was last changed; False for what is gone."""
    try:
        return time.time() - os.lstat(path).st_mtime > _SECONDS
    except FileNotFoundError:
        return False
