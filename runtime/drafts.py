"""Files and directories under a draft's name, until they are whole and get their own by rename.

What a process that died has left of them is nobody's: ``sweep`` removes it.
"""

from __future__ import annotations

import os
import time

_END = ".new"
#: Making something and giving it its name takes less than this. Numbers of processes alone say
#: little of those in other pid namespaces.
_SECONDS = 60


def name(path: str) -> str:
    """Where this process prepares what is to become ``path``."""
    return f"{path}.{os.getpid()}{_END}"


def sweep(root: str) -> None:
    """Remove the drafts of processes that are no more beneath a root of containers."""
    places = [root, f"{root}/seccomp", f"{root}/trees"]
    places += [f"{root}/containers/{name}" for name in listed(f"{root}/containers")]
    for place in places:
        for entry in listed(place):
            if entry.endswith(_END) and _is_left(f"{place}/{entry}"):
                from runtime.removal import remove_directory

                remove_directory(f"{place}/{entry}")


def listed(path: str) -> list[str]:
    """The names in a directory; none if it cannot be read."""
    try:
        return os.listdir(path)
    except OSError:
        return []


def _is_left(path: str) -> bool:
    number = path.removesuffix(_END).rpartition(".")[2]
    if not number.isascii() or not number.isdigit():
        return False
    try:
        age = time.time() - os.lstat(path).st_mtime
    except FileNotFoundError:
        return False
    return age > _SECONDS and not os.path.exists(f"/proc/{number}")
