"""The direct engine: speaks /dev/fuse itself.

It answers OPEN, OPENDIR, CREATE and FLUSH with ENOSYS once, after which the
kernel sends none of them again; data and listings are addressed by inode. One
thread at a time reads and answers requests; when an operation gives up the
monitor (copying, fsync, cold reads), another takes over reading.
See docs/concurrency.md.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from _thread import _local, allocate_lock, start_new_thread
from itertools import islice
from mmap import mmap

from unionfs import formats
from unionfs.engine import wire
from unionfs.engine.passthrough import Passthrough
from unionfs.engine.waiting import Receiver
from unionfs.engine.walks import Walks
from unionfs.engine.wire import Op
from unionfs.inode import ROOT_INO
from unionfs.live import Changes
from unionfs.monitor import Event
from unionfs.ops import Ops
from unionfs.prepared import PreparedDir
from unionfs.sys import calls
from unionfs.types import Caller, EngineOptions, SetAttr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, NoReturn

    Handler = Callable[[int, int, int, int, memoryview], bytes | None]

_MAX_WRITE: Final = 1 << 20
_BUFFER: Final = _MAX_WRITE + 4096
#: What a thread reads files into, at first: the kernel's usual readahead.
_PAYLOAD: Final = 128 << 10
_MAX_THREADS: Final = 128
_FOREVER: Final = (1 << 40, 0)
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_OUT: Final = wire.OUT_HEADER.size
#: The second root: there is none, it may be looked up, it has been.
_NONE: Final = 0
_OFFERED: Final = 1
_TAKEN: Final = 2

_WANTED: Final = (
    wire.ASYNC_READ
    | wire.BIG_WRITES
    | wire.DONT_MASK
    | wire.DO_READDIRPLUS
    | wire.READDIRPLUS_AUTO
    | wire.ASYNC_DIO
    | wire.NO_OPEN_SUPPORT
    | wire.PARALLEL_DIROPS
    | wire.MAX_PAGES
    | wire.CACHE_SYMLINKS
    | wire.NO_OPENDIR_SUPPORT
    | wire.EXPLICIT_INVAL_DATA
    | wire.HANDLE_KILLPRIV_V2
    | wire.SETXATTR_EXT
    | wire.INIT_EXT
)


def _ino(nodeid: int) -> int:
    """The inode that the kernel means."""
    return ROOT_INO if nodeid == wire.SECOND_ROOT else nodeid


class _Worker(_local):
    """What a serving thread holds; ``payload`` is what it reads files into."""

    reader = False
    payload = memoryview(b"")


class DirectEngine:
    """Serves one mount from an open /dev/fuse descriptor.

    Attributes:
        counts: requests so far, by opcode.
        ready: set when the kernel's INIT has been answered.
    """

    name = "direct"

    def __init__(self, ops: Ops, fd: int, options: EngineOptions) -> None:
        self.ops = ops
        self.fd = fd
        self.options = options
        self.counts = [0] * 64
        self.ready = Event()
        self.done = Event()
        self.features: list[str] = []
        self.protocol = (0, 0)
        self.max_write = options.max_write
        self.errors = 0
        self.last_error = ""
        self.on_done: Callable[[], object] = lambda: None
        self._stop = False
        self._reading = allocate_lock()
        self._receiver = Receiver(fd, options.busy_poll)
        self._worker = _Worker()
        self._threads = 0
        self._idle = 0
        self._count_lock = allocate_lock()
        valid = options.timeout
        self._valid = _FOREVER if valid is None else (int(valid), int(valid % 1 * 1_000_000_000))
        self._setxattr_ext = False
        self._passthrough = Passthrough(ops, fd) if options.passthrough else None
        self._walks = Walks()
        self._second_root = _OFFERED if options.second_root else _NONE
        ops.monitor.on_release = self._step_aside
        ops.union.on_mode_lost = self._forget_attributes
        self._handlers = self._table()

    # -- threads -------------------------------------------------------------------

    def start(self) -> None:
        """Begin to serve, in threads."""
        self._spawn()

    def _spawn(self) -> None:
        start_new_thread(self._run, ())
        self._threads += 1

    def _step_aside(self) -> None:
        """This thread is about to wait: let another read requests."""
        if not self._worker.reader:
            return
        with self._count_lock:
            if not self._idle and self._threads < _MAX_THREADS and not self._stop:
                try:
                    self._spawn()
                except RuntimeError:
                    return  # no more threads are allowed: requests wait until this one is done
        self._worker.reader = False
        self._reading.release()

    def _run(self) -> None:
        # Not a bytearray: clearing that takes 2 ms of a mount's start.
        view = memoryview(mmap(-1, _BUFFER))
        worker = self._worker
        while not self._stop:
            with self._count_lock:
                if self._idle >= 2:
                    self._threads -= 1
                    return
                self._idle += 1
            self._reading.acquire()
            with self._count_lock:
                self._idle -= 1
            worker.reader = True
            try:
                self._serve(view, worker)
            finally:
                if worker.reader:
                    worker.reader = False
                    self._reading.release()
        with self._count_lock:
            self._threads -= 1
        self.done.set()
        self.on_done()

    def counters(self) -> dict[str, int]:
        """Requests so far, by name."""
        return {
            wire.NAMES[code]: count
            for code, count in enumerate(self.counts)
            if count and code in wire.NAMES
        }

    def invalidate(self, changes: Changes) -> None:
        """Make the kernel ask again for names, attributes and contents that changed below.

        Must not run in a thread that holds a request or the monitor: the kernel may wait for
        either (fs/fuse/dev.c, FUSE_NOTIFY_INVAL_ENTRY).
        """
        header = wire.OUT_HEADER
        if changes.names and self.protocol >= (7, 44):
            self._notify(header.pack(16, wire.NOTIFY_INC_EPOCH, 0))
        else:
            for parent, name in changes.entries:
                for nodeid in self._nodes(parent):
                    self._forget_name(nodeid, name)
        size = wire.INVAL_INODE.size
        for ino in changes.directories | changes.files:
            for nodeid in self._nodes(ino):
                self._notify(wire.INVAL_INODE.pack(size, wire.NOTIFY_INVAL_INODE, 0, nodeid, 0, 0))

    def _nodes(self, ino: int) -> tuple[int, ...]:
        """What the kernel calls an inode."""
        both = ino == ROOT_INO and self._second_root == _TAKEN
        return (ino, wire.SECOND_ROOT) if both else (ino,)

    def settle_second_root(self, taken: bool) -> None:
        """The mount is in its place: from now on nobody finds the second root."""
        if taken:
            return
        if self._second_root == _TAKEN:
            self._forget_name(ROOT_INO, formats.SECOND_ROOT)
        self._second_root = _NONE

    def _forget_name(self, nodeid: int, name: bytes) -> None:
        """Make the kernel look a name up again; see ``invalidate`` for who may."""
        size = wire.INVAL_ENTRY.size + len(name) + 1
        message = wire.INVAL_ENTRY.pack(size, wire.NOTIFY_INVAL_ENTRY, 0, nodeid, len(name), 0)
        self._notify(message + name + b"\0")

    def _forget_attributes(self, ino: int) -> None:
        """Make the kernel ask for an inode's attributes again. Takes no lock of the kernel's."""
        size = wire.INVAL_INODE.size
        self._notify(wire.INVAL_INODE.pack(size, wire.NOTIFY_INVAL_INODE, 0, ino, -1, 0))

    def _notify(self, message: bytes) -> None:
        try:
            os.write(self.fd, message)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
                self._unexpected("notifying the kernel")

    def _serve(self, view: memoryview, worker: _Worker) -> None:
        """Hot path: read and answer until this thread had to step aside, or the end."""
        fd = self.fd
        buffers = [view]
        receive, write = self._receiver.receive, os.write
        unpack = wire.IN_HEADER.unpack_from
        handlers, counts = self._handlers, self.counts
        lock = self.ops.monitor.lock
        tidy = self.ops.tidy
        traced = self.options.trace is not None or self.options.debug
        while worker.reader and not self._stop:
            try:
                length = receive(buffers)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):
                    continue
                if error.errno != errno.ENODEV:
                    self._unexpected("reading a request")
                self._stop = True
                return
            _, opcode, unique, nodeid, uid, gid, _pid, extlen, _ = unpack(view)
            if nodeid == wire.SECOND_ROOT:
                nodeid = ROOT_INO
            body = view[40 : length - extlen * 8]
            if traced:
                self._traced(opcode, unique, nodeid, uid, gid, body)
                continue
            with lock:
                counts[opcode & 63] += 1
                try:
                    reply = handlers[opcode & 63](unique, nodeid, uid, gid, body)
                except OSError as error:
                    reply = self._failed(error, opcode, unique, nodeid, uid, gid, body)
                except Exception:
                    reply = self._mistake(opcode, unique, nodeid)
                tidy()
            if reply is not None:
                try:
                    write(fd, reply)
                except OSError as error:
                    self._undelivered(error)

    def _failed(
        self, error: OSError, opcode: int, unique: int, nodeid: int, uid: int, gid: int,
        body: memoryview,
    ) -> bytes | None:  # fmt: skip
        """The reply to a request that ended so; without space, once more after making some."""
        if error.errno in _NO_SPACE and self.ops.reclaim():
            try:
                return self._handlers[opcode & 63](unique, nodeid, uid, gid, body)
            except OSError as again:
                error = again
            except Exception:
                return self._mistake(opcode, unique, nodeid)
        return self._error(unique, error)

    def _mistake(self, opcode: int, unique: int, nodeid: int) -> bytes:
        """The reply where a handler is at fault: it is reported, and others are served."""
        self._unexpected(f"opcode {opcode} on inode {nodeid}")
        return wire.OUT_HEADER.pack(16, -errno.EIO, unique)

    def _traced(
        self, opcode: int, unique: int, nodeid: int, uid: int, gid: int, body: memoryview
    ) -> None:
        start = time.perf_counter()
        before = bytes(body[:300])
        result = "ok"
        with self.ops.monitor.lock:
            self.counts[opcode & 63] += 1
            try:
                reply = self._handlers[opcode & 63](unique, nodeid, uid, gid, body)
            except OSError as error:
                result = errno.errorcode.get(error.errno or 0, str(error))
                reply = self._failed(error, opcode, unique, nodeid, uid, gid, body)
            except Exception:
                result = "EIO (bug)"
                reply = self._mistake(opcode, unique, nodeid)
            self.ops.tidy()
        if reply is not None:
            try:
                os.write(self.fd, reply)
            except OSError as error:
                self._undelivered(error)
        micros = (time.perf_counter() - start) * 1e6
        line = f"{describe(opcode, nodeid, before)} {result} {micros:.0f}us\n"
        if self.options.trace is not None:
            self.options.trace.write(line)
            self.options.trace.flush()
        if self.options.debug:
            sys.stderr.write(line)

    def _error(self, unique: int, error: OSError) -> bytes:
        number = error.errno or errno.EIO
        if number == errno.ENOSYS:
            number = errno.EOPNOTSUPP  # ENOSYS would switch the operation off for good
        return wire.OUT_HEADER.pack(16, -number, unique)

    def _undelivered(self, error: OSError) -> None:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return  # the request was aborted meanwhile
        self._unexpected("answering a request")

    def _unexpected(self, what: str) -> None:
        import traceback  # slow to load, for what should not happen

        self.errors += 1
        self.last_error = f"{what}:\n{traceback.format_exc()}"
        report(self.last_error)

    def _refuse(self, reason: str) -> NoReturn:
        self.last_error = reason
        raise OSError(errno.EPROTO, reason)

    # -- INIT ------------------------------------------------------------------------

    def _init(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes | None:
        fields = bytes(body[:20]).ljust(20, b"\0")
        major, minor, readahead, flags, more = wire.INIT_IN.unpack(fields)
        if major < 7 or (major == 7 and minor < 31):
            self._refuse("the kernel's FUSE is older than 7.31")
        if major > 7:
            return wire.OUT_HEADER.pack(16 + 64, 0, unique) + wire.INIT_OUT.pack(
                7, wire.KERNEL_MINOR, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
            )
        wanted = _WANTED
        if self.options.acl:
            wanted |= wire.POSIX_ACL
        if self.options.timeout is not None:
            # Contents may change below: pages go when a new size or time is seen.
            wanted = wanted & ~wire.EXPLICIT_INVAL_DATA | wire.AUTO_INVAL_DATA
        if self.options.writeback:
            wanted |= wire.WRITEBACK_CACHE
        if flags & wire.INIT_EXT:
            flags |= more << 32
        if self._passthrough is not None:
            if not flags & wire.PASSTHROUGH:
                self._refuse("the kernel has no FUSE passthrough (Linux 6.9)")
            wanted |= wire.PASSTHROUGH
            # What is written past us cannot clear set-id bits here: the kernel asks us to.
            wanted &= ~wire.HANDLE_KILLPRIV_V2
        agreed = flags & wanted
        self._setxattr_ext = bool(agreed & wire.SETXATTR_EXT)
        if not agreed & wire.MAX_PAGES:
            self.max_write = min(self.max_write, 128 << 10)
        self.protocol = (7, min(minor, wire.KERNEL_MINOR))
        self.features = [name for bit, name in wire.FLAG_NAMES.items() if agreed & bit]
        reply = wire.OUT_HEADER.pack(16 + 64, 0, unique) + wire.INIT_OUT.pack(
            7,
            self.protocol[1],
            readahead,
            agreed & 0xFFFFFFFF,
            64,
            48,
            self.max_write,
            1,
            self.max_write >> 12,
            0,
            agreed >> 32,
            1 if agreed & wire.PASSTHROUGH else 0,  # how deep the upper may be stacked, and one
        )
        os.write(self.fd, reply)
        self.ready.set()  # not before: the kernel sets the readahead window by the answer
        return None

    # -- requests ----------------------------------------------------------------------

    def _table(self) -> list[Handler]:
        table: list[Handler] = [self._unknown] * 64
        for opcode, handler in {
            Op.INIT: self._init,
            Op.LOOKUP: self._lookup,
            Op.FORGET: self._forget,
            Op.BATCH_FORGET: self._batch_forget,
            Op.GETATTR: self._getattr,
            Op.SETATTR: self._setattr,
            Op.READLINK: self._readlink,
            Op.SYMLINK: self._symlink,
            Op.MKNOD: self._mknod,
            Op.MKDIR: self._mkdir,
            Op.UNLINK: self._unlink,
            Op.RMDIR: self._rmdir,
            Op.RENAME: self._rename,
            Op.RENAME2: self._rename2,
            Op.LINK: self._link,
            Op.READ: self._read,
            Op.WRITE: self._write,
            Op.STATFS: self._statfs,
            Op.FSYNC: self._fsync,
            Op.FSYNCDIR: self._fsyncdir,
            Op.SETXATTR: self._setxattr,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
            Op.REMOVEXATTR: self._removexattr,
            Op.READDIR: self._readdir,
            Op.READDIRPLUS: self._readdirplus,
            Op.FALLOCATE: self._fallocate,
            Op.LSEEK: self._lseek,
            Op.COPY_FILE_RANGE: self._copy_file_range,
            Op.COPY_FILE_RANGE_64: self._copy_file_range_64,
            Op.TMPFILE: self._tmpfile,
            Op.SYNCFS: self._syncfs,
            **({Op.OPEN: self._open} if self._answers_open() else {}),
            # A listing cached for good would never show what appears in a lower.
            **({Op.OPENDIR: self._opendir} if self.options.timeout is not None else {}),
            Op.RELEASE: self._release,
            Op.RELEASEDIR: self._nothing,
            Op.DESTROY: self._nothing,
        }.items():
            table[opcode] = handler
        return table

    def _answers_open(self) -> bool:
        return self.options.copyup_at_open or self.options.passthrough

    def _unknown(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        # The kernel remembers ENOSYS and does without: OPEN, OPENDIR, CREATE, FLUSH, STATX …
        return wire.OUT_HEADER.pack(16, -errno.ENOSYS, unique)

    def _nothing(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        return wire.OUT_HEADER.pack(16, 0, unique)

    @staticmethod
    def _name(body: memoryview, offset: int = 0) -> bytes:
        return bytes(body[offset:-1])

    def _entry(self, unique: int, attr: tuple[int, ...], nodeid: int = 0) -> bytes:
        sec, nsec = self._valid
        return wire.ENTRY_REPLY.pack(
            wire.ENTRY_SIZE, 0, unique, nodeid or attr[0], 0, sec, sec, nsec, nsec, *attr
        )

    def _lookup(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        name = bytes(body[:-1])
        if self._second_root == _OFFERED and nodeid == ROOT_INO and name == formats.SECOND_ROOT:
            self._second_root = _TAKEN
            return self._entry(unique, self.ops.getattr(ROOT_INO), wire.SECOND_ROOT)
        attr = self.ops.lookup(nodeid, name)
        if attr is None:
            return wire.encode_negative(unique, self._valid)
        if nodeid in self._walks.listed:
            self._walks.looked_up(attr.mode)
        return self._entry(unique, attr)

    def _forget(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> None:
        self.ops.forget(nodeid, wire.FORGET_IN.unpack_from(body)[0])

    def _batch_forget(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> None:
        count, _ = wire.BATCH_FORGET_IN.unpack_from(body)
        forget = self.ops.forget
        for ino, nlookup in wire.FORGET_ONE.iter_unpack(body[8 : 8 + 16 * count]):
            forget(ino, nlookup)

    def _getattr(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        return wire.encode_attr(unique, self.ops.getattr(nodeid), self._valid)

    def _setattr(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        (
            valid,
            _,
            _fh,
            size,
            _owner,
            atime,
            mtime,
            _ctime,
            atimensec,
            mtimensec,
            _ctimensec,
            mode,
            _unused,
            new_uid,
            new_gid,
            _unused2,
        ) = wire.SETATTR_IN.unpack_from(body)
        when_a = when_m = None
        if valid & wire.FATTR_ATIME_NOW:
            when_a = (0, calls.UTIME_NOW)
        elif valid & wire.FATTR_ATIME:
            when_a = (atime, atimensec)
        if valid & wire.FATTR_MTIME_NOW:
            when_m = (0, calls.UTIME_NOW)
        elif valid & wire.FATTR_MTIME:
            when_m = (mtime, mtimensec)
        change = SetAttr(
            mode if valid & wire.FATTR_MODE else None,
            new_uid if valid & wire.FATTR_UID else None,
            new_gid if valid & wire.FATTR_GID else None,
            size if valid & wire.FATTR_SIZE else None,
            when_a,
            when_m,
            bool(valid & wire.FATTR_KILL_SUIDGID),
        )
        return wire.encode_attr(unique, self.ops.setattr(nodeid, change), self._valid)

    def _readlink(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        target = self.ops.readlink(nodeid)
        return wire.OUT_HEADER.pack(16 + len(target), 0, unique) + target

    def _symlink(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        name, target = bytes(body).split(b"\0")[:2]
        return self._entry(unique, self.ops.symlink(nodeid, name, target, Caller(uid, gid)))

    def _mknod(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        mode, rdev, umask, _ = wire.MKNOD_IN.unpack_from(body)
        caller = Caller(uid, gid, umask)
        return self._entry(unique, self.ops.mknod(nodeid, bytes(body[16:-1]), mode, rdev, caller))

    def _mkdir(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        mode, umask = wire.MKDIR_IN.unpack_from(body)
        caller = Caller(uid, gid, umask)
        return self._entry(unique, self.ops.mkdir(nodeid, bytes(body[8:-1]), mode, caller))

    def _tmpfile(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        _flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
        attr = self.ops.tmpfile(nodeid, mode, Caller(uid, gid, umask))
        entry = self._entry(unique, attr)
        if self._passthrough is not None:
            self._passthrough.opened_cached(attr.ino)
        # TMPFILE carries an open reply: no handle, cached pages kept.
        opened = wire.OPEN_OUT.pack(0, wire.FOPEN_KEEP_CACHE, 0)
        return wire.OUT_HEADER.pack(len(entry) + 16, 0, unique) + entry[16:] + opened

    def _unlink(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        self.ops.unlink(nodeid, bytes(body[:-1]))
        return wire.OUT_HEADER.pack(16, 0, unique)

    def _rmdir(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        self.ops.rmdir(nodeid, bytes(body[:-1]))
        return wire.OUT_HEADER.pack(16, 0, unique)

    def _rename(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        (parent,) = wire.RENAME_IN.unpack_from(body)
        old, new = bytes(body[8:]).split(b"\0")[:2]
        self.ops.rename(nodeid, old, _ino(parent), new, 0)
        return wire.OUT_HEADER.pack(16, 0, unique)

    def _rename2(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        parent, flags, _ = wire.RENAME2_IN.unpack_from(body)
        old, new = bytes(body[16:]).split(b"\0")[:2]
        self.ops.rename(nodeid, old, _ino(parent), new, flags)
        return wire.OUT_HEADER.pack(16, 0, unique)

    def _link(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        (ino,) = wire.LINK_IN.unpack_from(body)
        return self._entry(unique, self.ops.link(ino, nodeid, bytes(body[8:-1])))

    def _open(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        flags = wire.OPEN_IN.unpack_from(body)[0]
        answer = (0, wire.FOPEN_KEEP_CACHE, 0)
        if self._passthrough is not None:
            answer = self._passthrough.open(nodeid, flags)
        else:
            self.ops.open(nodeid, flags)
        return wire.OUT_HEADER.pack(32, 0, unique) + wire.OPEN_OUT.pack(*answer)

    def _release(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        if self._passthrough is not None:
            self._passthrough.release(nodeid, wire.RELEASE_IN.unpack_from(body)[0])
        return wire.OUT_HEADER.pack(16, 0, unique)

    def _opendir(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        return wire.OUT_HEADER.pack(32, 0, unique) + wire.OPEN_OUT.pack(0, 0, 0)

    def _read(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> None:
        _fh, offset, size, *_ = wire.READ_IN.unpack_from(body)
        worker = self._worker
        if size > len(worker.payload):
            # Kept, as zeroed memory takes longer to get than most reads.
            worker.payload = memoryview(mmap(-1, max(size, _PAYLOAD)))
        payload = worker.payload[:size]
        done = self.ops.read(nodeid, offset, payload)
        header = wire.OUT_HEADER.pack(16 + done, 0, unique)
        try:
            os.writev(self.fd, [header, payload[:done]])
        except OSError as error:
            self._undelivered(error)

    def _write(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        _fh, offset, size, flags, *_ = wire.WRITE_IN.unpack_from(body)
        kill = bool(flags & wire.WRITE_KILL_SUIDGID)
        done = self.ops.write(nodeid, offset, body[40 : 40 + size], kill_suidgid=kill)
        return wire.WRITE_REPLY.pack(24, 0, unique, done, 0)

    def _statfs(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        st = self.ops.statfs()
        return wire.OUT_HEADER.pack(16 + 80, 0, unique) + wire.STATFS_OUT.pack(
            st.f_blocks,
            st.f_bfree,
            st.f_bavail,
            st.f_files,
            st.f_ffree,
            st.f_bsize,
            st.f_namemax,
            st.f_frsize,
            0,
        )

    def _fsync(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        _fh, flags, _ = wire.FSYNC_IN.unpack_from(body)
        self.ops.fsync(nodeid, data_only=bool(flags & wire.FSYNC_FDATASYNC))
        return wire.OUT_HEADER.pack(16, 0, unique)

    def _fsyncdir(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        self.ops.fsyncdir(nodeid)
        return wire.OUT_HEADER.pack(16, 0, unique)

    def _syncfs(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        self.ops.syncfs()
        return wire.OUT_HEADER.pack(16, 0, unique)

    def _setxattr(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        kill = False
        if self._setxattr_ext:
            size, flags, extra, _ = wire.SETXATTR_IN.unpack_from(body)
            kill = bool(extra & wire.SETXATTR_ACL_KILL_SGID)
            rest = bytes(body[16:])
        else:
            size, flags = wire.SETXATTR_COMPAT_IN.unpack_from(body)
            rest = bytes(body[8:])
        name, _, value = rest.partition(b"\0")
        self.ops.setxattr(nodeid, name, value[:size], flags, kill_sgid=kill)
        return wire.OUT_HEADER.pack(16, 0, unique)

    def _sized(self, unique: int, size: int, value: bytes) -> bytes:
        """A reply to GETXATTR or LISTXATTR: the value, or its size if 0 is asked for."""
        if size == 0:
            return wire.OUT_HEADER.pack(24, 0, unique) + wire.XATTR_SIZE.pack(len(value), 0)
        if len(value) > size:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
        return wire.OUT_HEADER.pack(16 + len(value), 0, unique) + value

    def _getxattr(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        size, _ = wire.GETXATTR_IN.unpack_from(body)
        return self._sized(unique, size, self.ops.getxattr(nodeid, bytes(body[8:-1])))

    def _listxattr(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        size, _ = wire.GETXATTR_IN.unpack_from(body)
        names = b"".join(name + b"\0" for name in self.ops.listxattr(nodeid))
        return self._sized(unique, size, names)

    def _removexattr(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        self.ops.removexattr(nodeid, bytes(body[:-1]))
        return wire.OUT_HEADER.pack(16, 0, unique)

    def _send_prepared(
        self, unique: int, nodeid: int, cookie: int, size: int, directory: PreparedDir, plus: bool
    ) -> None:
        """A listing from an index. Hot path: nothing is packed, and copied by the kernel only."""
        dots = bytearray()
        if cookie < 2:
            entry_out = bytes(128 if plus else 0)  # "." and "..": no nodeid, no attributes
            for entry in islice(self.ops.readdir(nodeid, cookie, plus=False), 2 - cookie):
                length = len(entry.name)
                dots += entry_out
                dots += wire.DIRENT.pack(entry.ino, entry.cookie, length, entry.kind >> 12)
                dots += entry.name.ljust(8, b"\0")
        records = (directory.plus if plus else directory.plain)(cookie, size - len(dots))
        header = wire.OUT_HEADER.pack(16 + len(dots) + len(records), 0, unique)
        try:
            os.writev(self.fd, [header, dots, records])
        except OSError as error:
            self._undelivered(error)

    def _readdir(
        self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview
    ) -> bytes | None:
        _fh, cookie, size, *_ = wire.READ_IN.unpack_from(body)
        prepared = self.ops.prepared(nodeid)
        if prepared is not None:
            self._send_prepared(unique, nodeid, cookie, size, prepared, plus=False)
            return None
        out = bytearray(size + 16)
        at = 16
        limit = size + 16
        pack_into = wire.DIRENT.pack_into
        for entry in self.ops.readdir(nodeid, cookie, plus=False):
            name = entry.name
            end = at + 24 + len(name)
            stop = wire.padded(end)
            if stop > limit:
                break
            pack_into(out, at, entry.ino, entry.cookie, len(name), entry.kind >> 12)
            out[at + 24 : end] = name
            at = stop
        wire.OUT_HEADER.pack_into(out, 0, at, 0, unique)
        return bytes(memoryview(out)[:at])

    def _readdirplus(
        self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview
    ) -> bytes | None:
        _fh, cookie, size, *_ = wire.READ_IN.unpack_from(body)
        prepared = self.ops.prepared(nodeid)
        if prepared is not None:
            self._send_prepared(unique, nodeid, cookie, size, prepared, plus=True)
            return None
        out = bytearray(size + 16)
        at = 16
        limit = size + 16
        sec, nsec = self._valid
        pack_into = wire.DIRENTPLUS.pack_into
        ops = self.ops
        bare = self._walks.begin(nodeid) if cookie == 0 else 0
        for place, name, ino, kind, attr in ops.readdir(nodeid, cookie, plus=True, bare=bare):
            length = len(name)
            end = at + 152 + length
            stop = (end + 7) & ~7
            if stop > limit:
                if attr is not None:
                    ops.forget(ino, 0)
                break
            if attr is None:
                # "." and "..", and what nobody seems to ask of: no nodeid, no attributes
                wire.DIRENT.pack_into(out, at + 128, ino, place, length, kind >> 12)
            else:
                pack_into(
                    out, at, ino, 0, sec, sec, nsec, nsec, *attr, ino, place, length, kind >> 12
                )
                ops.reference(ino)
            out[at + 152 : end] = name
            at = stop
        wire.OUT_HEADER.pack_into(out, 0, at, 0, unique)
        return bytes(memoryview(out)[:at])

    def _fallocate(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        _fh, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(body)
        self.ops.fallocate(nodeid, mode, offset, length, Caller(uid, gid))
        return wire.OUT_HEADER.pack(16, 0, unique)

    def _lseek(self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview) -> bytes:
        _fh, offset, whence, _ = wire.LSEEK_IN.unpack_from(body)
        return wire.LSEEK_REPLY.pack(24, 0, unique, self.ops.lseek(nodeid, offset, whence))

    def _copy(self, nodeid: int, caller: Caller, body: memoryview) -> int:
        _fh, offset, target, _fh2, target_offset, length, _flags = wire.COPY_IN.unpack_from(body)
        return self.ops.copy_file_range(nodeid, offset, target, target_offset, length, caller)

    def _copy_file_range(
        self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview
    ) -> bytes:
        done = self._copy(nodeid, Caller(uid, gid), body)
        return wire.WRITE_REPLY.pack(24, 0, unique, done, 0)

    def _copy_file_range_64(
        self, unique: int, nodeid: int, uid: int, gid: int, body: memoryview
    ) -> bytes:
        return wire.LSEEK_REPLY.pack(24, 0, unique, self._copy(nodeid, Caller(uid, gid), body))


def describe(opcode: int, nodeid: int, body: bytes) -> str:
    """A request for a person: ``LOOKUP 17 'etc'``."""
    title = wire.NAMES.get(opcode, f"OPCODE-{opcode}")
    skip = {
        Op.LOOKUP: 0,
        Op.UNLINK: 0,
        Op.RMDIR: 0,
        Op.REMOVEXATTR: 0,
        Op.SYMLINK: 0,
        Op.MKNOD: 16,
        Op.MKDIR: 8,
        Op.LINK: 8,
        Op.RENAME: 8,
        Op.RENAME2: 16,
        Op.GETXATTR: 8,
        Op.SETXATTR: 16,
    }.get(opcode)
    if skip is not None:
        names = [os.fsdecode(part) for part in body[skip:].split(b"\0")[:2] if part]
        return f"{title} {nodeid} {' '.join(map(repr, names))}"
    if opcode in (Op.READ, Op.WRITE, Op.READDIR, Op.READDIRPLUS):
        _fh, offset, size, *_ = wire.READ_IN.unpack_from(body)
        return f"{title} {nodeid} {size}@{offset}"
    if opcode == Op.SETATTR:
        return f"{title} {nodeid} valid={int.from_bytes(body[:4], sys.byteorder):#x}"
    return f"{title} {nodeid}"


def report(text: str) -> None:
    """Say something unexpected where it can be found: standard error, or the system's log."""
    import syslog

    if os.environ.get("PYUNION_FOREGROUND"):
        sys.stderr.write(f"pyunion: {text}\n")
    else:
        syslog.openlog("pyunion", syslog.LOG_PID, syslog.LOG_DAEMON)
        for line in text.splitlines():
            syslog.syslog(syslog.LOG_ERR, line)
