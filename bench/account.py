"""The ordinary user that a stage of root's turns into, and what is made ready for them.

All of it happens in the stage's own mount namespace, or to the stage's own process.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unionfs.errors import UserError
from unionfs.sys import calls
from unionfs.sys.mountinfo import read_mounts

_MS_BIND: Final = 0x1000
_FUSE: Final = "/dev/fuse"


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody of passwd(5)."""

    name: str
    uid: int
    gid: int


def find(name: str | None) -> Account | None:
    """Who the rootless rows are measured as: ``name``, else who has subordinate ids.

    Raises:
        UserError: nobody is called so, or has no subordinate ids, or it is root.
    """
    owners = _owners("/etc/subuid") & _owners("/etc/subgid")
    if name is not None:
        found = _account(name)
        if found is None or not found.uid:
            raise UserError(f"--user {name}: no ordinary user of that name")
        if not owners & {found.name, str(found.uid)}:
            raise UserError(f"--user {name} has no subordinate ids", "see subuid(5)")
        return found
    for candidate in (os.environ.get("SUDO_USER", ""), *sorted(owners)):
        found = _account(candidate)
        if found is not None and found.uid and owners & {found.name, str(found.uid)}:
            return found
    return None


def _owners(path: str) -> set[str]:
    try:
        return {line.partition(":")[0] for line in Path(path).read_text().splitlines() if line}
    except OSError:
        return set()


def _account(name: str) -> Account | None:
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def leave_hybrid_cgroups() -> None:
    """Take version 2 away where version 1 is in use too: crun and others refuse the mixture."""
    mounts = read_mounts()
    kinds = {mount.fstype for mount in mounts}
    for mount in mounts:
        if mount.fstype == b"cgroup2" and b"cgroup" in kinds:
            calls.umount2(mount.mount_point, calls.MNT_DETACH)


def open_fuse(scratch: str) -> None:
    """A /dev/fuse that everybody may open, as udev makes it; some machines have it closed."""
    if os.path.exists(_FUSE) and not stat.S_IMODE(os.stat(_FUSE).st_mode) & 0o006:
        node = os.path.join(scratch, "fuse")
        os.mknod(node, stat.S_IFCHR | 0o666, os.stat(_FUSE).st_rdev)
        os.chmod(node, 0o666)
        calls.mount(os.fsencode(node), _FUSE.encode(), b"", _MS_BIND, b"")


def become(account: Account) -> None:
    """Turn into ``account``; the saved ids stay root's for ``as_root``, until execve(2)."""
    os.initgroups(account.name, account.gid)
    os.setresgid(account.gid, account.gid, 0)
    os.setresuid(account.uid, account.uid, 0)


@contextlib.contextmanager
def as_root() -> Iterator[None]:
    """With root's rights for a while, in a process that came from root; else unchanged."""
    effective, saved = os.getresuid()[1:]
    if effective == 0 or saved != 0:
        yield
        return
    os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(effective)
