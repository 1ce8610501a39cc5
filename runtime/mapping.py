"""Giving a user namespace its ids, from outside (user_namespaces(7))."""

from __future__ import annotations

import os

from runtime.errors import RunError
from runtime.lean import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.ids import IdPlan

#: A helper that runs: process, where it says what is wrong, name.
Helper = tuple[int, int, str]


def begin(pid: int, ids: IdPlan, newuidmap: str, newgidmap: str) -> list[Helper]:
    """Map the outer user namespace of ``pid`` by ourselves, or let the helpers begin.

    ``finish`` waits for those.

    Raises:
        RunError: a helper is missing.
    """
    if not ids.helpers:
        try:
            write_maps(pid, ids.outer_uids, ids.outer_gids, ids.single)
        except OSError as error:
            raise RunError(f"mapping user ids: {error.strerror}") from None
        return []
    running: list[Helper] = []
    for program, name, ranges in (
        (newuidmap, "newuidmap", ids.outer_uids),
        (newgidmap, "newgidmap", ids.outer_gids),
    ):
        if not program:
            finish(running)
            raise RunError(
                f"{name} is not installed",
                "apt-get install uidmap; or go without subordinate ids: --userns single",
            )
        numbers = [str(number) for entry in ranges for number in entry]
        read, write = os.pipe2(os.O_CLOEXEC)
        helper = os.posix_spawn(
            program,
            [name, str(pid), *numbers],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, write, 2)],
            setsigdef=(signal.SIGPIPE,),
        )
        os.close(write)
        running.append((helper, read, name))
    return running


def finish(running: list[Helper]) -> None:
    """Wait for the helpers.

    Raises:
        RunError: one refuses.
    """
    failed = ""
    for helper, read, name in running:
        with open(read, encoding="utf-8", errors="replace") as said:
            text = said.read().strip()
        if os.waitpid(helper, 0)[1]:
            failed = failed or text or f"{name} failed"
    if failed:
        raise RunError(failed, "see /etc/subuid, /etc/subgid and the setuid bit of newuidmap")


def write_maps(
    pid: int,
    uids: tuple[tuple[int, int, int], ...],
    gids: tuple[tuple[int, int, int], ...],
    deny_setgroups: bool,
) -> None:
    """uid_map and gid_map of a process (user_namespaces(7)).

    Raises:
        OSError: not permitted.
    """
    if deny_setgroups:
        with open(f"/proc/{pid}/setgroups", "w", encoding="ascii") as file:
            file.write("deny")
    for name, ranges in (("gid_map", gids), ("uid_map", uids)):
        text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges)
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
