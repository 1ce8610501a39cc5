"""A new named volume gets what the image has at its place, as engines do.

It runs in the container's first process, before the volume is mounted: with the container's
ids, by descriptors, never through a symlink.

The mark on a volume, an extended attribute, says what may be done to it:

======== ==============================================================================
``new``  no container has had it: it is empty
``half`` a copy has begun and was cut off, and no container has had it: the copy is emptied
``used`` a container has had it: it is filled if it is empty, and never emptied
(none)   it stays as it is
======== ==============================================================================
"""

from __future__ import annotations

import fcntl
import os
import stat

from unionfs.trees import remove_tree

_MARK = "user.pyrun.new"
_NEW, _HALF, _USED = b"new", b"half", b"used"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


def mark(path: str) -> None:
    """A directory that is to be filled; without extended attributes it stays as it is."""
    try:
        os.setxattr(path, _MARK, _NEW)
    except OSError:
        pass


def is_marked(path: str) -> bool:
    """Whether a directory is to be filled at its first use."""
    try:
        os.getxattr(path, _MARK)
    except OSError:
        return False
    return True


def fill(target: int, source: int) -> None:
    """Copy the directory ``source`` (O_PATH) into ``target`` (a mount's top), if the mark says so.

    ``source`` -1: nothing is copied, but the volume is going to be used.

    Raises:
        OSError: a file cannot be read or made; a copy that has begun will be begun anew.
    """
    into = os.open(".", _DIR, dir_fd=target)
    try:
        fcntl.flock(into, fcntl.LOCK_EX)
        said = _mark_of(into)
        if said == _HALF:
            for name in os.listdir(into):
                remove_tree(into, name)
        if source < 0:
            if said in (_NEW, _HALF):
                os.setxattr(into, _MARK, _USED)
            return
        if not said:
            return
        fresh = said in (_NEW, _HALF) and not os.listdir(into)
        if fresh:
            os.setxattr(into, _MARK, _HALF)
        else:
            os.removexattr(into, _MARK)
        if not os.listdir(into):
            _copy(source, into)
        if fresh:
            os.removexattr(into, _MARK)
    finally:
        os.close(into)


def _mark_of(fd: int) -> bytes:
    try:
        return os.getxattr(fd, _MARK)
    except OSError:
        return b""


def _copy(source: int, into: int) -> None:
    origin = os.open(".", _DIR, dir_fd=source)
    try:
        _directory(origin, into)
    finally:
        os.close(origin)


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
