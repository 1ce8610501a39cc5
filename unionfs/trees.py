"""Removing directory trees, however deep they are; ``shutil`` needs a stack frame for each level.

By descriptors, one at a time. Nothing is followed: neither a symlink, nor ``..`` to a place
from where we did not come.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs.errors import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(dir_fd: int, name: str | bytes, *, leave: bool = False) -> None:
    """Remove ``name`` and all beneath it; missing is fine, and so is another who is at it.

    ``leave``: what cannot be removed stays, and all else goes.

    Raises:
        OSError: something cannot be removed.
    """
    text = os.fsdecode(name)
    #: The directories on the way down: names, what is left in each, and what they lie in.
    way: list[tuple[str, Iterator[str], tuple[int, int]]] = []
    here = os.dup(dir_fd)
    names = iter((text,))
    try:
        while True:
            for entry in names:
                below = _remove(here, entry, leave)
                if below >= 0:
                    way.append((entry, names, _identity(here)))
                    os.close(here)
                    here = below
                    names = iter(os.listdir(here))
                    break
            else:
                if not way:
                    return
                entry, names, above = way.pop()
                back = os.open("..", _DIR, dir_fd=here) if way else os.dup(dir_fd)
                os.close(here)
                here = back
                if _identity(here) != above:
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), entry)
                _finish(here, entry, leave)
    finally:
        os.close(here)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _remove(dir_fd: int, name: str, leave: bool) -> int:
    """Remove what is no directory, or an empty one; else a descriptor of it, -1 if that is done."""
    try:
        if not _unlink(dir_fd, name):
            try:
                os.rmdir(name, dir_fd=dir_fd)
            except OSError as error:
                if error.errno in (
                    errno.ENOENT,
                    errno.EBUSY,
                ):  # gone, or a mount point
                    raise
                return _open(dir_fd, name)
    except FileNotFoundError:
        pass
    except OSError:
        if not leave:
            raise
    return -1


def _finish(dir_fd: int, name: str, leave: bool) -> None:
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except OSError:
        if not leave:
            raise


def _unlink(dir_fd: int, name: str) -> bool:
    """False: it is a directory."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except IsADirectoryError:
        return False
    except PermissionError:
        # unlink(2) of a directory gives EPERM on some filesystems.
        if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            raise
        return False
    return True


def _open(dir_fd: int, name: str) -> int:
    """A directory's descriptor; one whose mode forbids us to change it is opened first."""
    path = os.open(name, os.O_PATH | _DIR, dir_fd=dir_fd)
    try:
        if os.fstat(path).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            with suppress(PermissionError):  # another's: it may do, or not
                os.chmod(f"/proc/self/fd/{path}", 0o700)
        return os.open(f"/proc/self/fd/{path}", _DIR & ~os.O_NOFOLLOW)
    finally:
        os.close(path)
