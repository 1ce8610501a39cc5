"""A union driven by path, without a mount (``Rig``) or through one (``Mounted``).

Both offer the same calls (``Target``), so that one test can hold them against
the same oracle. ``Rig`` plays the kernel: it keeps names that it has looked up,
counts its references to inodes, and gives them back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from tests.layers import Layers, join, name_of, parent_of
from unionfs.daemon import open_union
from unionfs.ops import Ops
from unionfs.options import MountOptions
from unionfs.sys import calls
from unionfs.types import Attr, Caller, DirEntry, Options, SetAttr
from unionfs.union import Union

ROOT = Path(__file__).resolve().parent.parent
ROOT_CALLER = Caller(0, 0, 0o022)
_P = ParamSpec("_P")
_T = TypeVar("_T")


def error(number: int) -> OSError:
    """An OSError as the kernel gives it."""
    return OSError(number, os.strerror(number))


class Stat(NamedTuple):
    """What tests compare of stat(2)."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int

    @property
    def kind(self) -> int:
        """The S_IFMT bits."""
        return stat.S_IFMT(self.mode)


class Name(NamedTuple):
    """One entry of a listing."""

    name: bytes
    ino: int
    kind: int


class Target(Protocol):
    """A filesystem tree, by relative path; errors are OSError."""

    def lstat(self, path: bytes) -> Stat: ...
    def listdir(self, path: bytes) -> list[Name]: ...
    def read(self, path: bytes) -> bytes: ...
    def readlink(self, path: bytes) -> bytes: ...
    def create(self, path: bytes, mode: int) -> None: ...
    def mkdir(self, path: bytes, mode: int) -> None: ...
    def symlink(self, target: bytes, path: bytes) -> None: ...
    def link(self, old: bytes, new: bytes) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None: ...
    def write(self, path: bytes, offset: int, data: bytes) -> None: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def chown(self, path: bytes, uid: int, gid: int) -> None: ...
    def utime(self, path: bytes, mtime_ns: int) -> None: ...
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None: ...
    def getxattr(self, path: bytes, name: bytes) -> bytes: ...
    def listxattr(self, path: bytes) -> list[bytes]: ...
    def removexattr(self, path: bytes, name: bytes) -> None: ...
    def open(self, path: bytes) -> int: ...
    def pread(self, handle: int) -> bytes: ...
    def pwrite(self, handle: int, offset: int, data: bytes) -> None: ...
    def fstat(self, handle: int) -> Stat: ...
    def release(self, handle: int) -> None: ...
    def remount(self) -> None: ...


def _stat_of(attr: Attr) -> Stat:
    mtime_ns = attr.mtime * 1_000_000_000 + attr.mtimensec
    return Stat(attr.ino, attr.mode, attr.nlink, attr.uid, attr.gid, attr.size, mtime_ns, attr.rdev)


class Rig:
    """A union without a mount, its kernel played by this object.

    Attributes:
        dentries: (parent inode, name) -> inode, for the names looked up and not dropped.
        nlookup: references that the union has given us, by inode.
        opens: how often an inode is held open; such an inode is not forgotten.
    """

    def __init__(
        self,
        layers: Layers,
        *,
        whiteouts: str = "chardev",
        family: bytes | None = b"trusted.overlay.",
        tmpfile: bool = True,
        can_override: bool = True,
        read_only: bool = False,
        **options: Any,
    ) -> None:
        self.layers = layers
        self.whiteouts = whiteouts
        self.family = family
        self.tmpfile = tmpfile
        self.can_override = can_override
        self.options = Options(
            lowers=tuple(os.fsencode(path) for path in layers.lowers),
            upper=None if read_only else os.fsencode(layers.upper),
            work=None if read_only else os.fsencode(layers.work),
            read_only=read_only,
            **options,
        )
        self.dentries: dict[tuple[int, bytes], int] = {}
        self.nlookup: Counter[int] = Counter()
        self.opens: Counter[int] = Counter()
        self.union: Union
        self.ops: Ops
        self.closed = True
        self._open()

    def _open(self) -> None:
        self.union = open_union(MountOptions(union=self.options, mountpoint="/nowhere"))
        self.ops = Ops(self.union)
        self.closed = False
        upper = self.union.upper
        if upper is not None:
            # As found out by trying on other filesystems, or with fewer rights.
            upper.prefix = self.family
            upper.whiteout_style = self.whiteouts
            upper.rename_whiteout = upper.rename_whiteout and self.whiteouts == "chardev"
            upper.tmpfile = upper.tmpfile and self.tmpfile
        self.union.can_override = self.union.can_override and self.can_override

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def abandon(self) -> None:
        """Close without checks, as after a failure; once closed, nothing."""
        if not self.closed:
            self.closed = True
            with self.union.monitor:
                self.union.close()

    def close(self) -> None:
        """Give everything back and check that nothing is left."""
        from tests.invariants import check_forgotten

        try:
            self.forget_all()
            check_forgotten(self)
        finally:
            self.abandon()

    def remount(self) -> None:
        """Close and open again; nothing may be open."""
        assert not self.opens, "a busy filesystem cannot be unmounted"
        self.close()
        self._open()

    def call(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """One request, as an engine makes it."""
        with self.union.monitor:
            try:
                return function(*args, **kwargs)
            finally:
                self.ops.tidy()

    # -- names the kernel knows ---------------------------------------------------

    def _refer(self, parent: int, name: bytes, attr: Attr) -> int:
        self.nlookup[attr.ino] += 1
        if stat.S_ISDIR(attr.mode):
            for known, ino in list(self.dentries.items()):
                if ino == attr.ino and known != (parent, name):
                    raise AssertionError(f"directory {ino} stands at {known} and at {name!r} too")
        self.dentries[parent, name] = attr.ino
        return attr.ino

    def step(self, parent: int, name: bytes) -> int | None:
        """One component: from the names known, else by LOOKUP; None: it does not exist."""
        known = self.dentries.get((parent, name))
        if known is not None:
            return known
        attr = self.call(self.ops.lookup, parent, name)
        return None if attr is None else self._refer(parent, name, attr)

    def ino(self, path: bytes) -> int:
        """The inode at a path.

        Raises:
            OSError: ENOENT.
        """
        ino = 1
        for part in path.split(b"/") if path else ():
            found = self.step(ino, part)
            if found is None:
                raise error(errno.ENOENT)
            ino = found
        return ino

    def _place(self, path: bytes) -> tuple[int, bytes]:
        return self.ino(parent_of(path)), name_of(path)

    def look_again(self, path: bytes) -> None:
        """LOOKUP of a known name, as after a timeout: the inode must be the same."""
        parent, name = self._place(path)
        known = self.dentries.get((parent, name))
        attr = self.call(self.ops.lookup, parent, name)
        assert attr is not None, f"{path!r} is gone"
        assert known in (None, attr.ino), f"{path!r} was inode {known}, is {attr.ino}"
        self._refer(parent, name, attr)

    def forgettable(self) -> list[int]:
        """Inodes that the kernel could evict now, oldest first: not open, no known name beneath."""
        parents = {parent for parent, _ in self.dentries}
        return [ino for ino in self.nlookup if ino not in parents and not self.opens.get(ino)]

    def forget(self, ino: int) -> None:
        """Evict one inode."""
        for place in [place for place, known in self.dentries.items() if known == ino]:
            del self.dentries[place]
        self.call(self.ops.forget, ino, self.nlookup.pop(ino))

    def forget_all(self) -> None:
        """Evict all that is not open."""
        while inodes := self.forgettable():
            for ino in inodes:
                self.forget(ino)

    # -- Target -----------------------------------------------------------------------

    def getattr(self, ino: int) -> Stat:
        """GETATTR."""
        return _stat_of(self.call(self.ops.getattr, ino))

    def lstat(self, path: bytes) -> Stat:
        return self.getattr(self.ino(path))

    def exists(self, path: bytes) -> bool:
        """Whether the path can be looked up."""
        try:
            self.ino(path)
        except OSError as problem:
            if problem.errno in (errno.ENOENT, errno.ENOTDIR):
                return False
            raise
        return True

    def entries(self, ino: int, cookie: int = 0, *, plus: bool, limit: int = -1) -> list[DirEntry]:
        """One READDIR or READDIRPLUS with room for ``limit`` entries (-1: all)."""

        def read() -> list[DirEntry]:
            found: list[DirEntry] = []
            for entry in self.ops.readdir(ino, cookie, plus=plus):
                if len(found) == limit:
                    if entry.attr is not None:
                        self.ops.forget(entry.ino, 0)
                    break
                if entry.attr is not None:
                    self.ops.reference(entry.ino)
                found.append(entry)
            return found

        found = self.call(read)
        for entry in found:
            if entry.attr is not None:
                known = self.dentries.get((ino, entry.name))
                assert known in (None, entry.ino), f"{entry.name!r} was inode {known}: {entry}"
                self._refer(ino, entry.name, entry.attr)
        return found

    def listdir(self, path: bytes, *, plus: bool = False, chunk: int = -1) -> list[Name]:
        ino = self.ino(path)
        found: list[Name] = []
        cookie = 0
        while True:
            part = self.entries(ino, cookie, plus=plus, limit=chunk)
            found += [Name(entry.name, entry.ino, entry.kind) for entry in part]
            if chunk < 0 or not part:
                break
            cookie = part[-1].cookie
        return [name for name in found if name.name not in (b".", b"..")]

    def names(self, path: bytes) -> list[bytes]:
        """Sorted names in a directory."""
        return sorted(name.name for name in self.listdir(path))

    def _read_all(self, ino: int) -> bytes:
        found = b""
        while True:
            buffer = memoryview(bytearray(1 << 17))
            got = self.call(self.ops.read, ino, len(found), buffer)
            found += buffer[:got]
            if got < len(buffer):
                return found

    def read(self, path: bytes) -> bytes:
        return self._read_all(self.ino(path))

    def readlink(self, path: bytes) -> bytes:
        return self.call(self.ops.readlink, self.ino(path))

    def _absent(self, path: bytes) -> tuple[int, bytes]:
        parent, name = self._place(path)
        if self.step(parent, name) is not None:
            raise error(errno.EEXIST)
        return parent, name

    def mknod(self, path: bytes, mode: int, rdev: int = 0, *, caller: Caller = ROOT_CALLER) -> None:
        """mknod(2)."""
        parent, name = self._absent(path)
        self._refer(parent, name, self.call(self.ops.mknod, parent, name, mode, rdev, caller))

    def create(self, path: bytes, mode: int, *, caller: Caller = ROOT_CALLER) -> None:
        self.mknod(path, stat.S_IFREG | mode, caller=caller)

    def mkdir(self, path: bytes, mode: int, *, caller: Caller = ROOT_CALLER) -> None:
        parent, name = self._absent(path)
        self._refer(parent, name, self.call(self.ops.mkdir, parent, name, mode, caller))

    def symlink(self, target: bytes, path: bytes) -> None:
        parent, name = self._absent(path)
        attr = self.call(self.ops.symlink, parent, name, target, ROOT_CALLER)
        self._refer(parent, name, attr)

    def link(self, old: bytes, new: bytes) -> None:
        ino = self.ino(old)
        parent, name = self._absent(new)
        if stat.S_ISDIR(self.getattr(ino).mode):
            raise error(errno.EPERM)
        attr = self.call(self.ops.link, ino, parent, name)
        assert attr.ino == ino
        self._refer(parent, name, attr)

    def unlink(self, path: bytes) -> None:
        parent, name = self._place(path)
        if self.step(parent, name) is None:
            raise error(errno.ENOENT)
        self.call(self.ops.unlink, parent, name)
        del self.dentries[parent, name]

    def rmdir(self, path: bytes) -> None:
        parent, name = self._place(path)
        ino = self.step(parent, name)
        if ino is None:
            raise error(errno.ENOENT)
        self.call(self.ops.rmdir, parent, name)
        # The kernel drops negative names beneath; positive ones there cannot be.
        del self.dentries[parent, name]
        assert ino not in {known for known, _ in self.dentries}, "names beneath a removed directory"

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        old_parent, old_name = self._place(old)
        parent, name = self._place(new)
        source = self.step(old_parent, old_name)
        if source is None:
            raise error(errno.ENOENT)
        target = self.step(parent, name)
        if old != new and (new + b"/").startswith(old + b"/"):
            raise error(errno.EEXIST if target and flags & calls.RENAME_NOREPLACE else errno.EINVAL)
        if old != new and (old + b"/").startswith(new + b"/"):
            if flags & calls.RENAME_NOREPLACE:
                raise error(errno.EEXIST)
            raise error(errno.EINVAL if flags & calls.RENAME_EXCHANGE else errno.ENOTEMPTY)
        if target == source and not flags & calls.RENAME_NOREPLACE:
            return
        self.call(self.ops.rename, old_parent, old_name, parent, name, flags)
        del self.dentries[old_parent, old_name]
        self.dentries[parent, name] = source
        if flags & calls.RENAME_EXCHANGE:
            assert target is not None
            self.dentries[old_parent, old_name] = target

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        self._write(self.ino(path), offset, data)

    def _write(self, ino: int, offset: int, data: bytes) -> None:
        done = self.call(self.ops.write, ino, offset, memoryview(data), kill_suidgid=False)
        assert done == len(data)

    def set(self, ino: int, **change: Any) -> Stat:
        """SETATTR by inode."""
        return _stat_of(self.call(self.ops.setattr, ino, SetAttr(**change)))

    def setattr(self, path: bytes, **change: Any) -> Stat:
        """SETATTR."""
        return self.set(self.ino(path), **change)

    def truncate(self, path: bytes, size: int) -> None:
        assert self.setattr(path, size=size).size == size

    def chmod(self, path: bytes, mode: int) -> None:
        assert stat.S_IMODE(self.setattr(path, mode=mode).mode) == mode

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        now = self.setattr(path, uid=uid, gid=gid, kill_suidgid=True)
        assert (now.uid, now.gid) == (uid, gid)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        when = divmod(mtime_ns, 1_000_000_000)
        assert self.setattr(path, atime=when, mtime=when).mtime_ns == mtime_ns

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        self.call(self.ops.setxattr, self.ino(path), name, value, flags)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return self.call(self.ops.getxattr, self.ino(path), name)

    def listxattr(self, path: bytes) -> list[bytes]:
        return self.call(self.ops.listxattr, self.ino(path))

    def removexattr(self, path: bytes, name: bytes) -> None:
        self.call(self.ops.removexattr, self.ino(path), name)

    def open(self, path: bytes) -> int:
        ino = self.ino(path)
        self.opens[ino] += 1
        return ino

    def pread(self, handle: int) -> bytes:
        return self._read_all(handle)

    def pwrite(self, handle: int, offset: int, data: bytes) -> None:
        self._write(handle, offset, data)

    def fstat(self, handle: int) -> Stat:
        return self.getattr(handle)

    def release(self, handle: int) -> None:
        self.opens[handle] -= 1
        if not self.opens[handle]:
            del self.opens[handle]


# -- a real mount ---------------------------------------------------------------------


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run ``pyunion`` to its end, output captured; no test waits longer than a minute."""
    environment = dict(os.environ, PYTHONPATH=os.fspath(ROOT))
    return subprocess.run(
        [sys.executable, "-m", "unionfs", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
        **options,
    )


def escape_layer(path: Path) -> str:
    """A path as it is written in a list of lowers."""
    text = os.fspath(path)
    return text.replace("\\", "\\\\").replace(":", "\\:")


def is_mounted(path: Path) -> bool:
    """Whether something is mounted exactly there."""
    return os.fsencode(path) in mount_points()


def mount_points() -> list[bytes]:
    """All mount points of this mount namespace."""
    from unionfs.sys.mountinfo import read_mounts

    return [mount.mount_point for mount in read_mounts()]


class Mounted:
    """A union mounted by the real command; also a ``Target``."""

    def __init__(self, layers: Layers, *arguments: str, read_only: bool = False) -> None:
        self.layers = layers
        self.mnt = layers.mnt
        self.arguments = arguments
        self.read_only = read_only
        self.mount()

    def mount(self) -> None:
        """Mount; fails with what the command said."""
        places = [":".join(map(escape_layer, self.layers.lowers))]
        if not self.read_only:
            places += [os.fspath(self.layers.upper)]
        words = [] if self.read_only else ["--work", os.fspath(self.layers.work)]
        done = command("mount", *self.arguments, *words, *places, os.fspath(self.mnt))
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert is_mounted(self.mnt)
        self.pid = int(self.stats()["pid"])

    def stats(self) -> dict[str, Any]:
        """The daemon's state."""
        return dict(json.loads(os.getxattr(self.mnt, b"user.pyunion.stats")))

    def umount(self) -> None:
        """Unmount and wait; the daemon must have met nothing unexpected."""
        stats = self.stats()
        done = command("umount", os.fspath(self.mnt))
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert not stats["errors"], stats["last_error"]

    def remount(self) -> None:
        self.umount()
        self.mount()

    def stop(self) -> None:
        """End in any case, also when a test has failed and something holds the mount."""
        if is_mounted(self.mnt):
            try:
                self.umount()
            finally:
                if is_mounted(self.mnt):
                    calls.umount2(os.fsencode(self.mnt), calls.MNT_DETACH)
        wait_for_end(self.pid)

    def path(self, path: bytes) -> bytes:
        """A relative path as one of the mount."""
        return join(os.fsencode(self.mnt), path) if path else os.fsencode(self.mnt)

    # -- Target ---------------------------------------------------------------------

    @staticmethod
    def _stat(st: os.stat_result) -> Stat:
        return Stat(
            st.st_ino,
            st.st_mode,
            st.st_nlink,
            st.st_uid,
            st.st_gid,
            st.st_size,
            st.st_mtime_ns,
            st.st_rdev,
        )

    def lstat(self, path: bytes) -> Stat:
        return self._stat(os.lstat(self.path(path)))

    def listdir(self, path: bytes) -> list[Name]:
        found = []
        with os.scandir(self.path(path)) as entries:
            for entry in entries:
                kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
                found.append(Name(entry.name, entry.inode(), kind))
        return found

    def read(self, path: bytes) -> bytes:
        with open(self.path(path), "rb") as file:
            return file.read()

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self.path(path))

    def create(self, path: bytes, mode: int) -> None:
        os.close(os.open(self.path(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self.path(path), mode)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self.path(path))

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self.path(old), self.path(new), follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        os.unlink(self.path(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.path(path))

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        calls.renameat2(-100, self.path(old), -100, self.path(new), flags)

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        fd = os.open(self.path(path), os.O_WRONLY)
        try:
            assert os.pwrite(fd, data, offset) == len(data)
        finally:
            os.close(fd)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.path(path), size)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.path(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(self.path(path), uid, gid, follow_symlinks=False)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        os.utime(self.path(path), ns=(mtime_ns, mtime_ns), follow_symlinks=False)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0) -> None:
        os.setxattr(self.path(path), name, value, flags, follow_symlinks=False)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return os.getxattr(self.path(path), name, follow_symlinks=False)

    def listxattr(self, path: bytes) -> list[bytes]:
        return [os.fsencode(name) for name in os.listxattr(self.path(path), follow_symlinks=False)]

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self.path(path), name, follow_symlinks=False)

    def open(self, path: bytes) -> int:
        return os.open(self.path(path), os.O_RDWR)

    def pread(self, handle: int) -> bytes:
        return os.pread(handle, 1 << 24, 0)

    def pwrite(self, handle: int, offset: int, data: bytes) -> None:
        assert os.pwrite(handle, data, offset) == len(data)

    def fstat(self, handle: int) -> Stat:
        return self._stat(os.fstat(handle))

    def release(self, handle: int) -> None:
        os.close(handle)


def wait_for_end(pid: int) -> None:
    """Wait until a daemon of ours has ended; one that does not in 10 seconds is killed."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(10_000):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            poll.poll(10_000)
            raise AssertionError(f"the daemon {pid} outlived its mount")
    finally:
        os.close(pidfd)


# -- whole trees ------------------------------------------------------------------------


class Snap(NamedTuple):
    """One name of a tree as a person could tell it; inode numbers are kept apart."""

    kind: int
    mode: int
    uid: int
    gid: int
    nlink: int
    content: bytes
    rdev: int
    xattrs: tuple[tuple[bytes, bytes], ...]
    mtime_ns: int


def snapshot(target: Target) -> tuple[dict[bytes, Snap], dict[bytes, int]]:
    """Everything that a tree shows, and its inode numbers, by path."""
    snaps: dict[bytes, Snap] = {}
    numbers: dict[bytes, int] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        st = target.lstat(path)
        content = b""
        if stat.S_ISDIR(st.mode):
            pending += [join(path, entry.name) for entry in target.listdir(path)]
        elif stat.S_ISREG(st.mode):
            content = target.read(path)
            assert len(content) == st.size, path
        elif stat.S_ISLNK(st.mode):
            content = target.readlink(path)
        xattrs = tuple(
            sorted((name, target.getxattr(path, name)) for name in shown_xattrs(target, path))
        )
        snaps[path] = Snap(
            st.kind,
            stat.S_IMODE(st.mode),
            st.uid,
            st.gid,
            st.nlink,
            content,
            st.rdev,
            xattrs,
            st.mtime_ns,
        )
        numbers[path] = st.ino
    return snaps, numbers


def shown_xattrs(target: Target, path: bytes) -> list[bytes]:
    """Names of attributes, without the labels of a security module."""
    return [name for name in target.listxattr(path) if not name.startswith(b"security.selinux")]


def differences(one: dict[bytes, Snap], two: dict[bytes, Snap]) -> Sequence[str]:
    """What differs between two trees, one line each."""
    found = []
    for path in sorted(one.keys() | two.keys()):
        left, right = one.get(path), two.get(path)
        if left is None or right is None:
            found.append(f"{path!r}: {'unexpected' if right is None else 'missing'}")
        elif left != right:
            fields = [name for name in Snap._fields if getattr(left, name) != getattr(right, name)]
            text = ", ".join(
                f"{name} {getattr(left, name)!r} != {getattr(right, name)!r}" for name in fields
            )
            found.append(f"{path!r}: {text}")
    return found


def open_descriptors() -> dict[int, str]:
    """Descriptors of this process and what they lead to."""
    found = {}
    for text in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(text)] = os.readlink(f"/proc/self/fd/{text}")
    return {number: what for number, what in found.items() if not what.endswith("/fd")}


def processes_about(path: Path) -> Iterator[int]:
    """Processes other than this one that have ``path`` in their command line."""
    word = os.fsencode(path)
    for text in os.listdir("/proc"):
        if not text.isdigit() or int(text) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            with open(f"/proc/{text}/cmdline", "rb") as line:
                if word in line.read():
                    yield int(text)
