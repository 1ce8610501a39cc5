"""The process behind a mount: open, mount, detach, serve until unmounted.

Everything that can fail for a user's reason happens before the fork, with the
error on the caller's terminal; the parent leaves when the kernel's first
request has been answered.
"""

from __future__ import annotations

import os
import select
import sys
import time

from unionfs import __version__, codecache, compiled, index, masks
from unionfs.errors import UserError, in_words, printable, suppress
from unionfs.live import Changes
from unionfs.monitor import Event
from unionfs.ops import Ops
from unionfs.options import MountOptions
from unionfs.record import Protocol
from unionfs.sys import calls
from unionfs.sys.mountinfo import MOUNTINFO
from unionfs.union import Union

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import IO, NoReturn

    from unionfs.engine.mounting import Mounted
    from unionfs.types import LayerOpener
else:
    import _signal as signal  # without its enumerations

VOLATILE_GUARD = b"work/incompat/volatile"
#: As much as one READ may ask for: a message a MiB instead of eight.
_READ_AHEAD_KIB = 1024


class Engine(Protocol):
    """What a daemon needs of an engine."""

    name: str
    features: list[str]
    ready: Event
    done: Event

    def start(self) -> None:
        """Serve in threads of its own."""

    def counters(self) -> dict[str, int]:
        """Requests by name."""

    def invalidate(self, changes: Changes) -> None:
        """Make the kernel ask again for what changed in a lower. Not inside the monitor."""

    def settle_second_root(self, taken: bool) -> None:
        """The mount is in its place, by its second root or not: that is not offered any more."""


def open_union(options: MountOptions, open_layer: LayerOpener | None = None) -> Union:
    """The union of checked options, its work directory recovered and swept.

    ``open_layer`` opens lowers that are files, as ``options.union.open_layer`` does.

    Raises:
        UserError: locked, a dirty volatile work directory, a layer that cannot be opened.
    """
    told = options.union.replace(open_layer=open_layer) if open_layer else options.union
    for path in told.lowers if told.open_layer is None else ():
        if os.path.isfile(path):
            raise UserError(f"lower {os.fsdecode(path)}: not a directory")
    try:
        union = Union(told)
    except OSError as error:
        raise UserError(in_words(error)) from None
    try:
        masks.update(union)
        if union.upper is not None:
            _check_volatile(union)
            with union.monitor:
                index.recover(union, keep=options.union.index)
            union.upper.sweep()
            if options.union.xattr_permissions and union.upper.layer.override is None:
                union.upper.enable_override()
    except OSError as error:
        union.close()
        raise UserError(f"{os.fsdecode(options.union.work or b'')}: {error.strerror}") from None
    except BaseException:
        union.close()
        raise
    return union


def _check_volatile(union: Union) -> None:
    upper = union.upper
    assert upper is not None
    with suppress(FileNotFoundError):
        os.stat(VOLATILE_GUARD, dir_fd=upper.work_fd)
        raise UserError(
            f"{os.fsdecode(upper.layer.path)} was mounted volatile and not unmounted cleanly:"
            " its contents may be incomplete",
            "start from a fresh upper; or, if the machine has not crashed since, remove "
            f"{os.fsdecode(upper.work_path + b'/' + VOLATILE_GUARD)}",
        )
    if union.options.volatile:
        for name in (b"work", b"work/incompat", VOLATILE_GUARD):
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=upper.work_fd)


def _clear_volatile(union: Union) -> None:
    """A clean end of a volatile mount: write everything, then take the guard away."""
    upper = union.upper
    if upper is not None and union.options.volatile:
        calls.syncfs(upper.upper_fd)
        for name in (VOLATILE_GUARD, b"work/incompat", b"work"):
            with suppress(OSError):
                os.rmdir(name, dir_fd=upper.work_fd)


def resident_bytes() -> int:
    """Resident set size of this process (proc_pid_statm(5))."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def _wake(pipe: int) -> None:
    with suppress(BlockingIOError):  # full: it wakes anyway
        os.write(pipe, b"\0")


def _is_closed(pipe: int) -> bool:
    """Whether nobody will read what is written."""
    poll = select.poll()
    poll.register(pipe, 0)
    return bool(poll.poll(0))


class Daemon:
    """One mounted union and the engine that serves it.

    ``discard``: the caller throws the upper away afterwards, so nothing is written out at the end.
    """

    def __init__(
        self,
        options: MountOptions,
        union: Union,
        mounted: Mounted,
        trace: IO[str] | None,
        *,
        discard: bool = False,
    ) -> None:
        self.options = options
        self._discard = discard
        self.union = union
        self.ops = Ops(union)
        self.ops.stats = self.stats
        self.started = time.time()
        self._mounted = mounted
        self.engine = make_engine(options, self.ops, mounted, trace)

    def stats(self) -> bytes:
        """The state as JSON, for ``pyunion stat`` and SIGUSR1."""
        union, engine = self.union, self.engine
        options = self.options.union
        state = {
            "version": __version__,
            "pid": os.getpid(),
            "engine": engine.name,
            "compiled": compiled(),
            "features": engine.features,
            "mountpoint": self.options.mountpoint,
            "lower": [os.fsdecode(path) for path in options.lowers],
            "upper": os.fsdecode(options.upper) if options.upper else None,
            "work": os.fsdecode(options.work) if options.work else None,
            "read_only": options.read_only,
            "volatile": options.volatile,
            "redirect_dir": options.redirect_dir,
            "uptime_seconds": round(time.time() - self.started, 1),
            "requests": engine.counters(),
            "inodes": len(union.table),
            "listed_names": union.listings.names,
            "open_directories": len(union.fds.dirs),
            "open_files": len(union.fds.data),
            "pinned_files": union.fds.pins,
            "resident_bytes": resident_bytes(),
            "live": [
                os.fsdecode(layer.path)
                for layer in union.layers
                if layer is not None and layer.live
            ],
            "unwatched_directories": union.watcher is not None and union.watcher.full,
            "errors": getattr(engine, "errors", 0),
            "last_error": getattr(engine, "last_error", ""),
        }
        if union.upper is not None:
            state["whiteouts"] = union.upper.whiteout_style
            state["xattr_prefix"] = os.fsdecode(union.upper.prefix or b"")
        import json  # slow to load, for what most mounts are never asked

        return json.dumps(state).encode()

    def serve(self, ready: int | None) -> int:
        """Serve until unmounted; tells ``ready`` (a pipe) when the mount answers. The exit code.

        Raises:
            UserError: the engine cannot serve here; nothing is left mounted.
        """
        wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write)
        wanted: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, lambda signum, _frame: wanted.append(signum))
        self.engine.on_done = lambda: _wake(wake_write)  # type: ignore[attr-defined]
        self.union.fds.on_dead = lambda: _wake(wake_write)
        codecache.leave()
        self.engine.start()
        while not self.engine.ready.wait(0.05):
            if self.engine.done.is_set():
                self._abandon()
        if ready is not None and _is_closed(ready):
            self._mounted.detach()  # nobody waits for it any more
        try:
            second = self._mounted.attach(self.options.mountpoint)
        except UserError:
            self._finish()
            raise
        if second is not None:
            self.engine.settle_second_root(second)
        if calls.in_initial_user_namespace():
            self._mounted.read_ahead(self.options.mountpoint, _READ_AHEAD_KIB)
        if ready is not None:
            with suppress(BrokenPipeError):
                os.write(ready, b"1")
            os.close(ready)
        self._poll(wake_read, wanted)
        self._finish()
        return 0

    def _abandon(self) -> NoReturn:
        """The engine ended before it had begun: leave nothing behind."""
        from unionfs.engine.mounting import unmount

        if self._mounted.tree >= 0:
            self._mounted.detach()
        else:
            with suppress(UserError):
                unmount(self.options.mountpoint, lazy=True)
        self._finish()
        reason = getattr(self.engine, "last_error", "").strip().rpartition("\n")[2]
        raise UserError(
            f"the {self.engine.name} engine cannot serve {self.options.mountpoint}: {reason}"
        )

    def _poll(self, wake_read: int, wanted: list[int]) -> None:
        poll = select.poll()
        poll.register(wake_read, select.POLLIN)
        with open(MOUNTINFO, "rb") as mountinfo:
            poll.register(mountinfo.fileno(), select.POLLPRI | select.POLLERR)
            masks.update(self.union)  # from here on changes are told
            watched = False
            while not self.engine.done.is_set():
                if not watched and self.union.watcher is not None:
                    watched = True
                    poll.register(self.union.watcher.fd, select.POLLIN)
                ready = {fd for fd, _ in poll.poll()}
                if mountinfo.fileno() in ready:
                    masks.update(self.union)
                if self.union.watcher is not None and self.union.watcher.fd in ready:
                    with self.union.monitor:
                        changes = self.union.watcher.read()
                    if changes:
                        self.engine.invalidate(changes)
                with suppress(BlockingIOError):
                    os.read(wake_read, 4096)
                self.union.fds.close_dead()
                while wanted:
                    self._on_signal(wanted.pop(0))

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGUSR1:
            from unionfs.engine.direct import report

            with self.union.monitor:
                text = self.stats().decode()
            report(text)
            return
        from unionfs.engine.mounting import unmount

        try:
            unmount(self.options.mountpoint, lazy=True)
        except UserError:
            # Not ours to unmount (a descriptor was handed to us): closing it ends the connection.
            self._finish()
            os._exit(1)

    def _finish(self) -> None:
        with self.union.monitor:
            upper = self.union.upper
            if upper is not None and not self._discard:
                with suppress(OSError):
                    upper.sweep()
                with suppress(OSError):
                    _clear_volatile(self.union)
            self.union.close()
        with suppress(OSError):
            os.close(self._mounted.fd)


def make_engine(options: MountOptions, ops: Ops, mounted: Mounted, trace: IO[str] | None) -> Engine:
    """The engine that the options name; ``auto`` is the direct one."""
    from unionfs.engine.direct import DirectEngine
    from unionfs.types import EngineOptions

    told = EngineOptions(
        writeback=options.union.writeback,
        copyup_at_open=options.union.copyup_at_open,
        acl=options.acl,
        timeout=options.union.timeout,
        busy_poll=options.busy_poll,
        passthrough=options.passthrough,
        second_root=mounted.second_root and options.acl and options.second_root,
        debug=options.debug,
        trace=trace,
    )
    if options.engine == "pyfuse3":
        from unionfs.engine.pyfuse3 import Pyfuse3Engine

        return Pyfuse3Engine(ops, mounted.fd, told)
    return DirectEngine(ops, mounted.fd, told)


def _check_engine(name: str) -> None:
    """Raises UserError for an engine whose library is not here."""
    if name == "pyfuse3":
        try:
            import unionfs.engine.pyfuse3  # noqa: F401
        except ImportError as error:
            raise UserError(
                f"the pyfuse3 engine needs the library pyfuse3: {error}",
                "pip install 'pyunion[pyfuse3]', or leave --engine out",
            ) from None


def _others_allowed(options: MountOptions, root: bool) -> bool:
    """root's mounts are open to all unless ``allow_root`` says root only; others' are closed."""
    if options.allow_other is not None:
        return options.allow_other
    return root and not options.allow_root


def mount(options: MountOptions, ready: int | None = None) -> int:
    """Mount and serve; in the background this returns in the caller, with the exit code.

    ``ready`` is a pipe if this process is to become the daemon: it is told when the mount answers.

    Raises:
        UserError: see docs; nothing is left mounted or written.
    """
    from unionfs.engine.mounting import MountRequest, open_mounted

    _check_engine(options.engine)
    os.umask(0)
    trace: IO[str] | None = None
    if options.trace is not None:
        try:
            trace = open(  # noqa: SIM115  (lives as long as the mount)
                options.trace, "w", encoding="utf-8", errors="surrogateescape"
            )
        except OSError as error:
            raise UserError(f"trace file {options.trace}: {error.strerror}") from None
    union = open_union(options)
    root = calls.has_sys_admin()
    if options.allow_root and not root:
        union.close()
        raise UserError("allow_root is not possible here", "use allow_other")
    initial = root and calls.in_initial_user_namespace()
    request = MountRequest(
        mountpoint=options.mountpoint,
        source=options.fsname or "pyunion",
        fstype=f"fuse.{options.subtype}",
        read_only=options.union.read_only,
        suid=options.suid if options.suid is not None else root,
        dev=options.dev and initial,
        noexec=options.noexec,
        atime=options.atime,
        allow_other=_others_allowed(options, root),
        send_umask=options.engine == "pyfuse3" and options.acl,
    )
    try:
        mounted = open_mounted(request)
    except BaseException:
        union.close()
        raise
    if not (options.foreground or options.debug):
        told = _fork() if ready is None else ready
        _serve_apart(lambda: Daemon(options, union, mounted, trace), told)
    os.environ["PYUNION_FOREGROUND"] = "1"
    return Daemon(options, union, mounted, trace).serve(None)


def _fork() -> int:
    """In a child: the pipe to tell the caller by, who waits there, shows what is said, and ends."""
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    if os.fork():
        os.close(ready_write)
        with open(ready_read, encoding="utf-8", errors="replace") as told:
            said = told.read()
        answered = said == "1"
        # The child holds the locks; leave without touching what it shares.
        sys.stderr.flush()
        if not answered:
            sys.stderr.write(said or "error: the union's daemon died while starting\n")
        sys.stderr.flush()
        os._exit(0 if answered else 1 if said else 2)
    os.close(ready_read)
    return ready_write


def _serve_apart(make: Callable[[], Daemon], ready: int) -> NoReturn:
    """Serve as a process that has nothing to do any more with who started it."""
    code = 2
    try:
        os.setsid()
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        if null > 2:
            os.close(null)
        calls.set_process_name(b"pyunion")
        code = make().serve(ready)
    except UserError as error:
        hint = f"hint: {printable(error.hint)}\n" if error.hint else ""
        with suppress(BrokenPipeError):
            os.write(ready, f"error: {printable(str(error))}\n{hint}".encode())
        code = 1
    except BaseException:
        import traceback

        from unionfs.engine.direct import report

        report(traceback.format_exc())
    os._exit(code)
