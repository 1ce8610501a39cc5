"""Changes to the upper and work directories as plain data, one system call each.

A mutation is a sequence of steps. What is logged is the object that is
executed, and tests stop after every one of them. Every step leaves a union
that shows the old or the new state.
"""

from __future__ import annotations

import os
import stat

from unionfs.record import Protocol, Row
from unionfs.sys import calls


class Step(Protocol):
    """One change on disk."""

    def execute(self) -> None:
        """Do it; raises OSError and has then changed nothing."""

    def describe(self) -> str:
        """One line for people."""


def _text(name: bytes) -> str:
    return repr(os.fsdecode(name))


class Mkdir(Row):
    """mkdirat(2)."""

    dir_fd: int
    name: bytes
    mode: int

    def execute(self) -> None:
        os.mkdir(self.name, self.mode, dir_fd=self.dir_fd)

    def describe(self) -> str:
        return f"mkdir {_text(self.name)} {self.mode:o}"


class Mknod(Row):
    """mknodat(2)."""

    dir_fd: int
    name: bytes
    mode: int
    rdev: int

    def execute(self) -> None:
        os.mknod(self.name, self.mode, self.rdev, dir_fd=self.dir_fd)

    def describe(self) -> str:
        return f"mknod {_text(self.name)} {self.mode:o}"


class Symlink(Row):
    """symlinkat(2)."""

    target: bytes
    dir_fd: int
    name: bytes

    def execute(self) -> None:
        os.symlink(self.target, self.name, dir_fd=self.dir_fd)

    def describe(self) -> str:
        return f"symlink {_text(self.name)} -> {_text(self.target)}"


class Link(Row):
    """linkat(2) of a name."""

    old_dir: int
    old: bytes
    new_dir: int
    new: bytes

    def execute(self) -> None:
        os.link(
            self.old,
            self.new,
            src_dir_fd=self.old_dir,
            dst_dir_fd=self.new_dir,
            follow_symlinks=False,
        )

    def describe(self) -> str:
        return f"link {_text(self.old)} as {_text(self.new)}"


class LinkFd(Row):
    """linkat(2) of an open file without a name, through /proc/self/fd (open(2), O_TMPFILE)."""

    fd: int
    new_dir: int
    new: bytes

    def execute(self) -> None:
        os.link(
            b"/proc/self/fd/%d" % self.fd, self.new, dst_dir_fd=self.new_dir, follow_symlinks=True
        )

    def describe(self) -> str:
        return f"link fd as {_text(self.new)}"


class Unlink(Row):
    """unlinkat(2) of a file."""

    dir_fd: int
    name: bytes

    def execute(self) -> None:
        os.unlink(self.name, dir_fd=self.dir_fd)

    def describe(self) -> str:
        return f"unlink {_text(self.name)}"


class Rmdir(Row):
    """unlinkat(2) of an empty directory."""

    dir_fd: int
    name: bytes

    def execute(self) -> None:
        os.rmdir(self.name, dir_fd=self.dir_fd)

    def describe(self) -> str:
        return f"rmdir {_text(self.name)}"


class Rename(Row):
    """renameat2(2)."""

    old_dir: int
    old: bytes
    new_dir: int
    new: bytes
    flags: int = 0

    def execute(self) -> None:
        if self.flags:
            calls.renameat2(self.old_dir, self.old, self.new_dir, self.new, self.flags)
        else:
            os.rename(self.old, self.new, src_dir_fd=self.old_dir, dst_dir_fd=self.new_dir)

    def describe(self) -> str:
        flags = f" flags={self.flags}" if self.flags else ""
        return f"rename {_text(self.old)} to {_text(self.new)}{flags}"


class SetXattr(Row):
    """lsetxattr(2) by path."""

    path: bytes
    name: bytes
    value: bytes
    flags: int = 0

    def execute(self) -> None:
        os.setxattr(self.path, self.name, self.value, self.flags, follow_symlinks=False)

    def describe(self) -> str:
        return f"setxattr {os.fsdecode(self.name)}"


class RemoveXattr(Row):
    """lremovexattr(2) by path."""

    path: bytes
    name: bytes

    def execute(self) -> None:
        os.removexattr(self.path, self.name, follow_symlinks=False)

    def describe(self) -> str:
        return f"removexattr {os.fsdecode(self.name)}"


class Chown(Row):
    """fchownat(2), not through a symlink; -1 leaves an id as it is."""

    dir_fd: int
    name: bytes
    uid: int
    gid: int

    def execute(self) -> None:
        os.chown(self.name, self.uid, self.gid, dir_fd=self.dir_fd, follow_symlinks=False)

    def describe(self) -> str:
        return f"chown {_text(self.name)} {self.uid}:{self.gid}"


class Chmod(Row):
    """fchmodat2(2), not through a symlink."""

    dir_fd: int
    name: bytes
    mode: int

    def execute(self) -> None:
        calls.chmod_nofollow(self.dir_fd, self.name, stat.S_IMODE(self.mode))

    def describe(self) -> str:
        return f"chmod {_text(self.name)} {self.mode:o}"


class Utimens(Row):
    """utimensat(2); times are (seconds, nanoseconds)."""

    dir_fd: int
    name: bytes
    atime: tuple[int, int]
    mtime: tuple[int, int]

    def execute(self) -> None:
        calls.utimensat(self.dir_fd, self.name, self.atime, self.mtime)

    def describe(self) -> str:
        return f"utimens {_text(self.name)}"


def times_of(st: os.stat_result) -> tuple[tuple[int, int], tuple[int, int]]:
    """(atime, mtime) of ``st`` as (seconds, nanoseconds) pairs."""
    return divmod(st.st_atime_ns, 1_000_000_000), divmod(st.st_mtime_ns, 1_000_000_000)
