"""The pyfuse3 engine: the same operations, served by libfuse through pyfuse3 and trio.

It needs the library ``pyfuse3`` (and with it trio), and is slower than the
direct engine; docs/pyfuse3.md says what its interface cannot carry. The
descriptor that it serves is mounted by :mod:`unionfs.engine.mounting`, as for
the direct engine; libfuse takes it over as ``/dev/fd/N``.

Invariants: requests run one after another on the event loop's thread, inside
the monitor. An operation that is about to give up the monitor there (copying,
cold reads, waiting for a busy inode) is broken off before it has changed
anything that can be seen, and done again in a worker thread; so nothing slow
stops the loop. The file handle of every open file and directory is its inode
number: data belongs to inodes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final, ParamSpec, TypeVar, cast

import pyfuse3
import trio

from unionfs.engine.direct import report
from unionfs.formats import ACL_ACCESS
from unionfs.live import Changes
from unionfs.monitor import Event
from unionfs.ops import Ops
from unionfs.types import Attr, Caller, EngineOptions, SetAttr

_FOREVER: Final = float(1 << 40)
_SECOND: Final = 1_000_000_000
_SUID_SGID: Final = stat.S_ISUID | stat.S_ISGID
_MAX_THREADS: Final = 64

_P = ParamSpec("_P")
_T = TypeVar("_T")


class _MustWait(Exception):
    """An operation on the event loop's thread was about to wait."""


class Pyfuse3Engine:
    """Serves one mount from an open /dev/fuse descriptor; one per process, as pyfuse3 is.

    Attributes:
        counts: requests so far, by name.
        ready: set when the kernel's INIT has arrived.
        done: set after the last request.
    """

    name = "pyfuse3"

    def __init__(self, ops: Ops, fd: int, options: EngineOptions) -> None:
        self.ops = ops
        self.fd = fd
        self.options = options
        self.counts: Counter[str] = Counter()
        self.ready = Event()
        self.done = Event()
        self.features = [f"pyfuse3-{pyfuse3.__version__}", "readdirplus"]
        if options.acl:
            self.features.append("posix_acl")
        if options.writeback:
            self.features.append("writeback_cache")
        self.errors = 0
        self.last_error = ""
        self.on_done: Callable[[], object] = lambda: None
        self._loop_thread = 0
        self._threads: trio.CapacityLimiter
        self._traced = options.debug or options.trace is not None
        ops.monitor.on_release = self._leave_loop

    def start(self) -> None:
        """Begin to serve, in a thread."""
        threading.Thread(target=self._run, name="pyunion", daemon=True).start()

    def counters(self) -> dict[str, int]:
        """Requests so far, by name."""
        return dict(self.counts)

    def settle_second_root(self, taken: bool) -> None:
        """There is none."""

    def invalidate(self, changes: Changes) -> None:
        """Make the kernel ask again for what changed below; libfuse knows no epochs."""
        with contextlib.suppress(OSError):
            for parent, name in changes.entries:
                pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)
        for ino in changes.directories | changes.files:
            with contextlib.suppress(OSError):
                pyfuse3.invalidate_inode(ino)

    def _run(self) -> None:
        self._loop_thread = threading.get_ident()
        try:
            _forward_log()
            # libfuse closes the descriptor that it is given.
            pyfuse3.init(_Requests(self), f"/dev/fd/{os.dup(self.fd)}", set())
            # No pyfuse3.close(): it frees what a notification in another thread may still use,
            # and the process ends with the mount.
            trio.run(self._serve)
        except Exception:
            self.unexpected("serving requests")
        finally:
            self.done.set()
            self.on_done()

    async def _serve(self) -> None:
        self._threads = trio.CapacityLimiter(_MAX_THREADS)
        await pyfuse3.main()

    def _leave_loop(self) -> None:
        if threading.get_ident() == self._loop_thread:
            raise _MustWait

    # -- one request -----------------------------------------------------------------

    async def do(
        self, op: str, ino: int, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """The result of ``call``, made inside the monitor; errors become the library's."""
        self.counts[op] += 1
        start = time.perf_counter() if self._traced else 0.0
        result = "ok"
        try:
            try:
                return self._call(call, *args, **kwargs)
            except _MustWait:
                return await trio.to_thread.run_sync(
                    lambda: self._call(call, *args, **kwargs), limiter=self._threads
                )
        except OSError as error:
            number = error.errno or errno.EIO
            if number == errno.ENOSYS:
                number = errno.EOPNOTSUPP  # ENOSYS would switch the operation off for good
            result = errno.errorcode.get(number, str(number))
            raise pyfuse3.FUSEError(number) from None
        except Exception:
            result = "EIO (bug)"
            self.unexpected(f"{op} on inode {ino}")
            raise pyfuse3.FUSEError(errno.EIO) from None
        finally:
            if self._traced:
                self._trace(op, ino, args, result, start)

    def _call(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with self.ops.monitor:
            try:
                return call(*args, **kwargs)
            finally:
                self.ops.tidy()

    def _trace(
        self, op: str, ino: int, args: tuple[object, ...], result: str, start: float
    ) -> None:
        micros = (time.perf_counter() - start) * 1e6
        names = [f" {os.fsdecode(arg)!r}" for arg in args if isinstance(arg, bytes)]
        line = f"{op} {ino}{''.join(names)} {result} {micros:.0f}us\n"
        if self.options.trace is not None:
            self.options.trace.write(line)
            self.options.trace.flush()
        if self.options.debug:
            sys.stderr.write(line)

    def unexpected(self, what: str) -> None:
        """Log the exception being handled; the daemon lives on."""
        self.errors += 1
        self.last_error = f"{what}:\n{traceback.format_exc()}"
        report(self.last_error)


class _Log(logging.Handler):
    """Sends the library's errors where ours go."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        # A request whose caller was killed meanwhile has no taker: nothing to tell.
        if not text.endswith(os.strerror(errno.ENOENT)):
            report(text)


def _forward_log() -> None:
    log = logging.getLogger("pyfuse3")
    log.setLevel(logging.WARNING)
    log.propagate = False
    log.handlers = [_Log()]


class _Requests(pyfuse3.Operations):
    """What the library calls, one method a request; inherited ones answer ENOSYS.

    That is on purpose for FLUSH and ACCESS, which the kernel then stops to send.
    """

    supports_dot_lookup = False

    def __init__(self, engine: Pyfuse3Engine) -> None:
        super().__init__()
        self._engine = engine
        self._ops = engine.ops
        self._do = engine.do
        timeout = engine.options.timeout
        self._timeout = _FOREVER if timeout is None else timeout
        self.enable_acl = engine.options.acl
        self.enable_writeback_cache = engine.options.writeback

    def init(self) -> None:
        """The kernel's INIT has arrived."""
        self._engine.ready.set()

    def _entry(self, attr: Attr | None) -> pyfuse3.EntryAttributes:
        """Attributes for the kernel; None makes a name that it remembers as missing."""
        entry = pyfuse3.EntryAttributes()
        entry.entry_timeout = entry.attr_timeout = self._timeout
        if attr is None:
            entry.st_ino = 0
            return entry
        entry.st_ino = attr.ino
        entry.st_mode = attr.mode
        entry.st_nlink = attr.nlink
        entry.st_uid = attr.uid
        entry.st_gid = attr.gid
        entry.st_rdev = attr.rdev
        entry.st_size = attr.size
        entry.st_blocks = attr.blocks
        entry.st_blksize = attr.blksize
        entry.st_atime_ns = attr.atime * _SECOND + attr.atimensec
        entry.st_mtime_ns = attr.mtime * _SECOND + attr.mtimensec
        entry.st_ctime_ns = attr.ctime * _SECOND + attr.ctimensec
        return entry

    # -- names -----------------------------------------------------------------------

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """A name's attributes, or a missing name that may be remembered."""
        attr = await self._do("LOOKUP", parent_inode, self._ops.lookup, parent_inode, name)
        return self._entry(attr)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Give up references; never fails."""
        with contextlib.suppress(pyfuse3.FUSEError):  # logged; the kernel takes no answer
            await self._do("FORGET", inode_list[0][0], self._forget, inode_list)

    def _forget(self, inodes: Sequence[tuple[int, int]]) -> None:
        for ino, nlookup in inodes:
            self._ops.forget(ino, nlookup)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """mknod(2)."""
        make, caller = self._ops.mknod, _caller(ctx)
        return self._entry(
            await self._do("MKNOD", parent_inode, make, parent_inode, name, mode, rdev, caller)
        )

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """open(2) with O_CREAT of a name that does not exist."""
        make, caller = self._ops.mknod, _caller(ctx)
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        attr = await self._do("CREATE", parent_inode, make, parent_inode, name, mode, 0, caller)
        return pyfuse3.FileInfo(fh=attr.ino), self._entry(attr)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """mkdir(2)."""
        make, caller = self._ops.mkdir, _caller(ctx)
        return self._entry(
            await self._do("MKDIR", parent_inode, make, parent_inode, name, mode, caller)
        )

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """symlink(2)."""
        make, caller = self._ops.symlink, _caller(ctx)
        return self._entry(
            await self._do("SYMLINK", parent_inode, make, parent_inode, name, target, caller)
        )

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """link(2)."""
        link = self._ops.link
        return self._entry(await self._do("LINK", inode, link, inode, new_parent_inode, new_name))

    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """unlink(2)."""
        await self._do("UNLINK", parent_inode, self._ops.unlink, parent_inode, name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """rmdir(2)."""
        await self._do("RMDIR", parent_inode, self._ops.rmdir, parent_inode, name)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """renameat2(2)."""
        old, new = (parent_inode_old, name_old), (parent_inode_new, name_new)
        await self._do("RENAME", old[0], self._ops.rename, *old, *new, flags)

    # -- attributes --------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """stat(2)."""
        return self._entry(await self._do("GETATTR", inode, self._ops.getattr, inode))

    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """chmod, chown, truncate, utimensat; "now" arrives as the time it is."""
        # suid and sgid are the kernel's affair: libfuse never asks for HANDLE_KILLPRIV, so the
        # kernel sends the mode without them before a write, a truncation or a chown.
        change = SetAttr(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime=divmod(attr.st_atime_ns, _SECOND) if fields.update_atime else None,
            mtime=divmod(attr.st_mtime_ns, _SECOND) if fields.update_mtime else None,
        )
        return self._entry(await self._do("SETATTR", inode, self._ops.setattr, inode, change))

    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        """readlink(2)."""
        return await self._do("READLINK", inode, self._ops.readlink, inode)

    # -- contents ----------------------------------------------------------------------

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """open(2); libfuse asks for O_TRUNC to be done here (ATOMIC_O_TRUNC)."""
        if await self._do("OPEN", inode, self._open, inode, flags, ctx.uid != 0):
            # Or execve(2) would still honour the suid bit in the kernel's cache.
            with contextlib.suppress(OSError):  # ENOENT: the kernel has let go of the inode
                pyfuse3.invalidate_inode(inode, attr_only=True)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    def _open(self, ino: int, flags: int, kill: bool) -> bool:
        """Truncate or copy up if asked to; whether the file may have lost suid or sgid by it.

        The kernel drops its own clearing of these bits once OPEN has truncated.
        """
        if not flags & os.O_TRUNC:
            if self._engine.options.copyup_at_open:
                self._ops.open(ino, flags)
            return False
        marked = kill and bool(self._ops.getattr(ino).mode & _SUID_SGID)
        self._ops.setattr(ino, SetAttr(size=0, kill_suidgid=marked))
        return marked

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """pread(2)."""
        return await self._do("READ", fh, self._read, fh, off, size)

    def _read(self, ino: int, offset: int, size: int) -> bytes:
        view = memoryview(bytearray(size))
        # The library takes any buffer: no copy into bytes.
        return cast(bytes, view[: self._ops.read(ino, offset, view)])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """pwrite(2); the kernel has cleared suid and sgid if it had to."""
        write = self._ops.write
        return await self._do("WRITE", fh, write, fh, off, memoryview(buf), kill_suidgid=False)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """fsync(2), fdatasync(2)."""
        await self._do("FSYNC", fh, self._ops.fsync, fh, data_only=datasync)

    async def release(self, fh: int) -> None:
        """Nothing hangs on a handle."""
        self._engine.counts["RELEASE"] += 1

    # -- directories -------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        """The inode number is the handle."""
        self._engine.counts["OPENDIR"] += 1
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """READDIRPLUS."""
        await self._do("READDIRPLUS", fh, self._readdir, fh, start_id, token)

    def _readdir(self, ino: int, cookie: int, token: pyfuse3.ReaddirToken) -> None:
        ops = self._ops
        last = cookie
        try:
            for place, name, number, kind, attr in ops.readdir(ino, cookie, plus=True):
                if attr is None:
                    # "." and "..", of which the kernel makes no inode, or a name that cannot be
                    # read: valid for no time, so that its lookup will say why.
                    entry = pyfuse3.EntryAttributes()
                    entry.entry_timeout = entry.attr_timeout = 0
                    entry.st_ino = number
                    entry.st_mode = kind
                else:
                    entry = self._entry(attr)
                if not pyfuse3.readdir_reply(token, name, entry, place):
                    if attr is not None:
                        ops.forget(number, 0)
                    return
                if attr is not None:
                    ops.reference(number)
                last = place
        except OSError:
            # What is referenced must be delivered; the error comes again at the next call.
            if last == cookie:
                raise

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """fsync(2) of a directory."""
        await self._do("FSYNCDIR", fh, self._ops.fsyncdir, fh)

    async def releasedir(self, fh: int) -> None:
        """Nothing hangs on a handle."""
        self._engine.counts["RELEASEDIR"] += 1

    # -- extended attributes and the filesystem ----------------------------------------

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """getxattr(2)."""
        return await self._do("GETXATTR", inode, self._ops.getxattr, inode, name)

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """listxattr(2)."""
        return await self._do("LISTXATTR", inode, self._ops.listxattr, inode)

    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        """setxattr(2); the library has looked at XATTR_CREATE and XATTR_REPLACE."""
        await self._do("SETXATTR", inode, self._setxattr, inode, name, value, ctx)

    def _setxattr(self, ino: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        kill = False
        if name == ACL_ACCESS and ctx.uid != 0:
            attr = self._ops.getattr(ino)
            kill = bool(attr.mode & stat.S_ISGID) and attr.gid not in _groups(ctx)
        self._ops.setxattr(ino, name, value, 0, kill_sgid=kill)

    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """removexattr(2)."""
        await self._do("REMOVEXATTR", inode, self._ops.removexattr, inode, name)

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """statvfs(3)."""
        st = await self._do("STATFS", 1, self._ops.statfs)
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = st.f_bsize
        answer.f_frsize = st.f_frsize
        answer.f_blocks = st.f_blocks
        answer.f_bfree = st.f_bfree
        answer.f_bavail = st.f_bavail
        answer.f_files = st.f_files
        answer.f_ffree = st.f_ffree
        answer.f_favail = st.f_favail
        answer.f_namemax = st.f_namemax
        return answer


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.umask)


def _groups(ctx: pyfuse3.RequestContext) -> set[int]:
    """The caller's groups; only the primary one if it cannot be looked at."""
    try:
        return {ctx.gid, *pyfuse3.get_sup_groups(ctx.pid)}
    except (OSError, RuntimeError):
        return {ctx.gid}
