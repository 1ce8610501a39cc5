"""A new named volume gets what the image has at its place, as engines do.

It runs in the container's first process, before the volume is mounted: with the container's
ids, by descriptors, never through a symlink. The mark is taken away last, so a copy that was
cut off is begun anew.
"""

from __future__ import annotations

import fcntl
import os
import stat

from runtime.trees import remove_tree

_MARK = "user.pyrun.new"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


def mark(path: str) -> None:
    """A directory that is to be filled; without extended attributes it stays as it is."""
    try:
        os.setxattr(path, _MARK, b"1")
    except OSError:
        pass


def is_marked(path: str | int) -> bool:
    """Whether a directory is to be filled at its first use."""
    try:
        os.getxattr(path, _MARK)
    except OSError:
        return False
    return True


def fill(target: int, source: int) -> None:
    """Copy the directory ``source`` (O_PATH) into ``target`` (a mount's top), if that is marked.

    Raises:
        OSError: a file cannot be read or made; the mark stays.
    """
    into = os.open(".", _DIR, dir_fd=target)
    try:
        fcntl.flock(into, fcntl.LOCK_EX)
        if not is_marked(into):
            return
        for name in os.listdir(into):
            remove_tree(into, name)
        origin = os.open(".", _DIR, dir_fd=source)
        try:
            _directory(origin, into)
        finally:
            os.close(origin)
        os.removexattr(into, _MARK)
    finally:
        os.close(into)


def _directory(source: int, target: int) -> None:
    for name in os.listdir(source):
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            below, into = os.open(name, _DIR, dir_fd=source), os.open(name, _DIR, dir_fd=target)
            try:
                _directory(below, into)
            finally:
                os.close(below)
                os.close(into)
        elif kind == stat.S_IFREG:
            _file(source, target, name)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
        elif kind == stat.S_IFIFO:
            os.mkfifo(name, stat.S_IMODE(found.st_mode), dir_fd=target)
            os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    _like(os.fstat(source), target)


def _file(source: int, target: int, name: str) -> None:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    origin = os.open(name, os.O_RDONLY | flags, dir_fd=source)
    try:
        made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600, dir_fd=target)
        try:
            while data := os.read(origin, _CHUNK):
                while data:
                    data = data[os.write(made, data) :]
            for word in os.listxattr(origin):
                if word.startswith("user."):
                    os.setxattr(made, word, os.getxattr(origin, word))
            _like(os.fstat(origin), made)
        finally:
            os.close(made)
    finally:
        os.close(origin)


def _like(found: os.stat_result, fd: int) -> None:
    """Owner, then mode (chown(2) clears setuid), then times."""
    os.fchown(fd, found.st_uid, found.st_gid)
    os.fchmod(fd, stat.S_IMODE(found.st_mode))
    os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))
