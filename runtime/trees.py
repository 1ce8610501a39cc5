"""Removing directory trees by descriptors; ``shutil`` costs 10 ms to import."""

from __future__ import annotations

import os
import stat

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(dir_fd: int, name: str) -> None:
    """Remove ``name`` and all beneath it; missing is fine. Never follows a symlink.

    Raises:
        OSError: something cannot be removed.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        _remove_directory(dir_fd, name)
    except PermissionError:
        # unlink(2) of a directory gives EPERM on some filesystems.
        if not stat.S_ISDIR(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            raise
        _remove_directory(dir_fd, name)


def _remove_directory(dir_fd: int, name: str) -> None:
    try:
        os.rmdir(name, dir_fd=dir_fd)
        return
    except FileNotFoundError:
        return
    except OSError:
        pass
    try:
        fd = _open(dir_fd, name)
        try:
            with os.scandir(fd) as entries:
                inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
            for inner, directory in inside:
                (_remove_directory if directory else remove_tree)(fd, inner)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=dir_fd)
    except FileNotFoundError:
        pass  # another is at it, too


def _open(dir_fd: int, name: str) -> int:
    """A directory's descriptor, made readable first if its mode forbids."""
    try:
        return os.open(name, _DIR, dir_fd=dir_fd)
    except PermissionError:
        path = os.open(name, os.O_PATH | _DIR, dir_fd=dir_fd)
        try:
            os.chmod(f"/proc/self/fd/{path}", 0o700)
        finally:
            os.close(path)
        return os.open(name, _DIR, dir_fd=dir_fd)
