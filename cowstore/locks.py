"""Locks between processes, and sessions: what a running command has staged.

All locks are flock(2): they go with their process, however it ends, and hold
between threads that opened the file each for themselves. The table of locks and
their order is in docs/store.md, "Locks".
"""

from __future__ import annotations

import errno
import os
import time

from cowstore.errors import StoreError
from cowstore.layout import Layout, remove_tree
from unionfs.errors import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

JOURNAL = "journal"
#: What a session keeps that puts nothing in: digests of layers and of chains, one a line.
KEEPS = "keeps"


class Lock:
    """One lock file, held until ``release`` or the end of the process."""

    __slots__ = ("fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    @classmethod
    def acquire(
        cls, path: str, *, shared: bool = False, wait: bool = True, create: bool = True
    ) -> Lock | None:
        """Take the lock; None if it is taken and ``wait`` is false.

        Raises:
            OSError: the file cannot be made, or with ``create`` false is not there.
        """
        import fcntl

        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        while True:
            fd = os.open(path, flags, 0o600)
            try:
                fcntl.flock(fd, how)
            except OSError as error:
                os.close(fd)
                if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                    return None
                raise
            # Its last holder may have unlinked it while we waited.
            try:
                if os.stat(path).st_ino == os.fstat(fd).st_ino:
                    return cls(path, fd)
            except FileNotFoundError:
                pass
            os.close(fd)

    def release(self, *, remove: bool = False) -> None:
        """Let go; ``remove`` the file as well, which only a holder of an exclusive lock may."""
        if self.fd >= 0:
            if remove:
                import contextlib

                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path)
            os.close(self.fd)
            self.fd = -1

    def lend(self) -> None:
        """Let another process take it, and keep the file, whose inode is nobody else's then."""
        import fcntl

        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class Session:
    """A staging directory that belongs to a living process.

    Attributes:
        name: of the directory in ``tmp/``, and of this session's leases, if it takes any.
        path: the directory.
        lock: the path of its lock, which other processes may share, to keep it alive.

    ``keeps``: diff ids and chain ids that no collection takes as long as the session lives. One
    before it may have: whether they are there is to be asked afterwards.
    """

    __slots__ = ("_lock", "layout", "lock", "name", "path")

    def __init__(self, layout: Layout, keeps: Iterable[str] = ()) -> None:
        self.layout = layout
        self.name = f"{boot_id()[:8]}-{os.urandom(6).hex()}"
        self.path = layout.path("tmp", self.name)
        # The sweeper holds this one: it must not see a session between mkdir and its lock; and
        # a collection, until it has taken away what none kept.
        gate = Lock.acquire(layout.path("locks", "sessions"), shared=True)
        assert gate is not None
        with gate:
            os.mkdir(self.path, 0o700)
            self.lock = os.path.join(self.path, "lock")
            held = Lock.acquire(self.lock, shared=True)
            assert held is not None
            self._lock = held
            if keeps:
                self._write(keeps)

    def _write(self, keeps: Iterable[str]) -> None:
        try:
            with open(self.place(KEEPS), "wb") as file:
                file.write("".join(f"{digest}\n" for digest in keeps).encode())
        except BaseException:
            self.close()
            raise

    @property
    def fd(self) -> int:
        """As long as it is open the session lives."""
        return self._lock.fd

    def place(self, *parts: str) -> str:
        """A path in the staging directory."""
        return os.path.join(self.path, *parts)

    def clear(self) -> None:
        """Remove what is staged; the journal stays."""
        for name in os.listdir(self.path):
            path = self.place(name)
            if os.path.isdir(path):
                remove_tree(path)
            elif name not in ("lock", "resume", JOURNAL):
                os.unlink(path)

    def abandon(self) -> None:
        """Let go and leave everything to the next command's sweep."""
        self._lock.release()

    def close(self) -> None:
        """Remove what is left and let go."""
        remove_staging(self.path)
        self._lock.release()


def remove_staging(path: str) -> None:
    """Remove a session's directory, its lock last: mostly there is nothing else in it.

    Who used it may be removing it at the same time.
    """
    with suppress(FileNotFoundError):
        # In this order: who is cut off leaves a session that is found, and what is to be done.
        for name in sorted(os.listdir(path), key=lambda name: (name == "lock", name == JOURNAL)):
            entry = os.path.join(path, name)
            if os.path.isdir(entry) and not os.path.islink(entry):
                remove_tree(entry)
            else:
                with suppress(FileNotFoundError):
                    os.unlink(entry)
        os.rmdir(path)


def kept(layout: Layout, session: str) -> list[str]:
    """Digests of layers and chains that a session keeps."""
    try:
        with open(layout.path("tmp", session, KEEPS), "rb") as file:
            return file.read().decode().split()
    except FileNotFoundError:
        return []


#: Seconds that a union's daemon may take to end once it is unmounted.
_ENDING = 2
#: Dead sessions that are buried before others are looked at: each is an open file.
_AT_ONCE = 32


def dead_sessions(layout: Layout) -> Iterator[str]:
    """Names of sessions whose process is gone; each is locked while the caller has it.

    New sessions wait while those are looked for, not while they are buried.
    """
    names = [name for name in os.listdir(layout.path("tmp")) if not name.startswith("format.")]
    while names:
        found: list[tuple[str, Lock]] = []
        gate = Lock.acquire(layout.path("locks", "sessions"), wait=False)
        if gate is None:
            return
        with gate:
            while names and len(found) < _AT_ONCE:
                name = names.pop()
                lock = _lock_of_dead(layout.path("tmp", name))
                if lock is not None:
                    found.append((name, lock))
        try:
            for name, _ in found:
                yield name
        finally:
            for _, lock in found:
                lock.release()


def _lock_of_dead(path: str) -> Lock | None:
    """The lock of a session that nobody holds; None: it lives, or is gone."""
    try:
        if not os.path.isdir(path):
            os.unlink(path)
            return None
        return Lock.acquire(os.path.join(path, "lock"), wait=False, create=False)
    except FileNotFoundError:
        pass
    try:
        os.rmdir(path)  # just being removed, or cut off before it had a lock
    except FileNotFoundError:
        pass
    except OSError:
        # Of a program that removed the lock first.
        return Lock.acquire(os.path.join(path, "lock"), wait=False)
    return None


def boot_id() -> str:
    """The kernel's id of this boot (random(4)); zeros where it is hidden."""
    try:
        # As bytes: the codec for ASCII is a module of its own.
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return file.read().decode().strip().replace("-", "")
    except OSError:
        return "0" * 32


def commit_lock(layout: Layout, snapshot: str, *, removing: bool = False) -> Lock:
    """What a reader of a snapshot's changes holds while it reads; and who removes it, alone.

    Raises:
        StoreError: it is being read.
    """
    path = layout.path("locks", f"commit-{snapshot}")
    lock = Lock.acquire(path, shared=not removing, wait=not removing)
    if lock is None:
        raise StoreError(f"snapshot {snapshot} is being committed", "try again when that is done")
    return lock


def check_snapshot_free(layout: Layout, snapshot: str) -> Lock:
    """The lock of a snapshot that nobody has mounted.

    The daemon of one that was just unmounted has a moment to end.

    Raises:
        StoreError: it is mounted.
    """
    path = layout.path("locks", f"snapshot-{snapshot}")
    lock = Lock.acquire(path, wait=False)
    if lock is None and not _is_mounted(snapshot):
        end = time.monotonic() + _ENDING
        while lock is None and time.monotonic() < end:
            time.sleep(0.005)
            lock = Lock.acquire(path, wait=False)
    if lock is None:
        raise _in_use(snapshot)
    return lock


def _is_mounted(snapshot: str) -> bool:
    """Whether it is to be seen here as ``cowstore mount`` mounts it."""
    with open("/proc/self/mountinfo", "rb") as mountinfo:
        return f" cowstore:{snapshot} ".encode() in mountinfo.read()


def take_lent(path: str, inode: int, snapshot: str) -> Lock:
    """The lock of a snapshot, from a process that has lent it and knows its inode.

    Raises:
        StoreError: somebody was quicker.
    """
    lock = Lock.acquire(path, wait=False)
    if lock is None:
        raise _in_use(snapshot)
    if os.fstat(lock.fd).st_ino != inode:
        # Who clones or removes a snapshot unlinks the file: what was found is no more.
        lock.release()
        raise _in_use(snapshot)
    return lock


def _in_use(snapshot: str) -> StoreError:
    return StoreError(f"snapshot {snapshot} is in use", "unmount it first")
