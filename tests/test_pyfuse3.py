"""The pyfuse3 engine on real mounts: what it shares with the direct one, and what it cannot do."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unionfs.cli import inspect
from unionfs.errors import UserError
from unionfs.sys import calls

pytest.importorskip("pyfuse3", reason="the library pyfuse3 is not installed", exc_type=ImportError)
if not os.access("/dev/fuse", os.R_OK | os.W_OK):
    pytest.skip("/dev/fuse is missing or not for us", allow_module_level=True)

ROOT = Path(__file__).resolve().parent.parent
RUN = "import sys; from unionfs.cli.main import main; sys.exit(main(sys.argv[1:]))"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NOBODY = 65534


def pyunion(*arguments: str, patch: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-c", f"{patch}\n{RUN}", *arguments],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Place:
    """Two lowers, an upper and a mount point."""

    def __init__(self, base: Path) -> None:
        self.low, self.deep = base / "low", base / "deep"
        self.upper, self.work, self.mnt = base / "upper", base / "work", base / "mnt"
        for folder in (self.low, self.deep, self.upper, self.work, self.mnt):
            folder.mkdir()
        self.files = contextlib.ExitStack()

    def arguments(self, *more: str) -> list[str]:
        """A command line that mounts by pyfuse3."""
        layers = [f"{self.low}:{self.deep}", str(self.upper), str(self.mnt)]
        return ["mount", "--engine", "pyfuse3", "--work", str(self.work), *more, *layers]

    def mount(self, *more: str, patch: str = "") -> Path:
        """Mount in the background; the mount point."""
        done = pyunion(*self.arguments(*more), patch=patch)
        assert (done.returncode, done.stderr) == (0, "")
        return self.mnt

    def is_mounted(self) -> bool:
        """Whether something is mounted there."""
        return os.path.ismount(self.mnt)

    def stats(self) -> dict[str, Any]:
        """What ``pyunion stat`` shows."""
        return dict(json.loads(os.getxattr(self.mnt, "user.pyunion.stats")))

    def umount(self) -> None:
        """Unmount and wait for the daemon."""
        assert inspect.umount(str(self.mnt), lazy=False) == 0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Layers with a few files, unmounted at the end whatever happens."""
    made = Place(tmp_path)
    (made.low / "file").write_bytes(b"low")
    (made.low / "dir").mkdir()
    (made.low / "dir" / "one").write_bytes(b"1")
    (made.deep / "dir").mkdir()
    (made.deep / "dir" / "two").write_bytes(b"22")
    os.symlink("file", made.low / "link")
    try:
        yield made
        if made.is_mounted():
            assert made.stats()["errors"] == 0
    finally:
        made.files.close()
        if made.is_mounted():
            with contextlib.suppress(UserError):
                inspect.umount(str(made.mnt), lazy=False)
        if made.is_mounted():
            inspect.umount(str(made.mnt), lazy=True)


def fails(number: int, call: Callable[[], object]) -> None:
    """``call`` fails with just this errno."""
    with pytest.raises(OSError) as caught:
        call()
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]


def eventually(done: Callable[[], bool]) -> bool:
    """Ask again, for some seconds, until ``done``: for what another process does by itself."""
    end = time.monotonic() + 10
    while not done():
        if time.monotonic() > end:
            return False
        os.sched_yield()
    return True


def opened(place: Place, name: str, mode: str = "rb") -> Any:
    """A file of the mount, unbuffered, closed before unmounting."""
    return place.files.enter_context(open(place.mnt / name, mode, buffering=0))


# -- the same filesystem as everywhere ------------------------------------------------


def test_reads_merge_all_layers(place: Place) -> None:
    mnt = place.mount()
    assert sorted(os.listdir(mnt)) == ["dir", "file", "link"]
    assert sorted(os.listdir(mnt / "dir")) == ["one", "two"]
    assert (mnt / "link").read_bytes() == b"low"
    assert (mnt / "dir" / "two").read_bytes() == b"22"
    assert os.readlink(mnt / "link") == "file"


def test_create_write_read_back_and_keep_in_the_upper(place: Place) -> None:
    mnt = place.mount()
    data = os.urandom(3 << 20)
    (mnt / "new").write_bytes(data)
    assert (mnt / "new").read_bytes() == data
    with opened(place, "new", "ab") as file:
        file.write(b"tail")
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    place.umount()
    assert (place.upper / "new").read_bytes() == data + b"tail"


def test_an_open_file_may_be_read_only_for_others(place: Place) -> None:
    mnt = place.mount()
    fd = os.open(mnt / "ro", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o400)
    assert os.write(fd, b"x") == 1
    os.close(fd)
    assert stat.S_IMODE(os.stat(mnt / "ro").st_mode) == 0o400


def test_copy_up_at_the_first_write_leaves_the_lower_alone(place: Place) -> None:
    mnt = place.mount()
    with opened(place, "file", "r+b") as file:
        assert not (place.upper / "file").exists()
        before = os.fstat(file.fileno()).st_ino
        file.write(b"L")
        assert (place.upper / "file").read_bytes() == b"Low"
        assert os.fstat(file.fileno()).st_ino == before == os.stat(mnt / "file").st_ino
    assert (place.low / "file").read_bytes() == b"low"


def test_truncation_at_open_is_done(place: Place) -> None:
    mnt = place.mount()
    (mnt / "file").write_bytes(b"")
    assert os.stat(mnt / "file").st_size == 0
    (mnt / "file").write_bytes(b"much longer")
    with opened(place, "file", "r+b") as file:
        file.truncate(4)
    assert (mnt / "file").read_bytes() == b"much"
    assert (place.low / "file").read_bytes() == b"low"


def test_a_descriptor_opened_before_copy_up_sees_what_is_written_after(place: Place) -> None:
    mnt = place.mount()
    with opened(place, "file") as old:
        with mmap.mmap(old.fileno(), 3, prot=mmap.PROT_READ) as shown:
            assert shown[:] == b"low"
            with opened(place, "file", "r+b") as new:
                new.write(b"new")
            assert shown[:] == b"new"
        assert old.read() == b"new"
    assert (mnt / "file").read_bytes() == b"new"


def test_rename_exchange_and_whiteouts(place: Place) -> None:
    mnt = place.mount()
    os.rename(mnt / "file", mnt / "dir" / "moved")
    assert (mnt / "dir" / "moved").read_bytes() == b"low"
    os.rename(mnt / "dir", mnt / "dir2")
    assert sorted(os.listdir(mnt / "dir2")) == ["moved", "one", "two"]
    fails(errno.ENOENT, lambda: os.stat(mnt / "file"))
    fails(errno.ENOENT, lambda: os.stat(mnt / "dir"))
    (mnt / "a").write_bytes(b"a")
    os.symlink("x", mnt / "b")
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(mnt / "a"), os.fsencode(mnt / "b")
    assert libc.renameat2(-100, paths[0], -100, paths[1], 2) == 0
    assert os.readlink(mnt / "a") == "x"
    assert (mnt / "b").read_bytes() == b"a"
    assert libc.renameat2(-100, paths[0], -100, paths[1], 1) == -1
    assert ctypes.get_errno() == errno.EEXIST
    place.umount()
    place.mount()
    assert sorted(os.listdir(mnt)) == ["a", "b", "dir2", "link"]


def test_unlink_and_rmdir_hide_the_lower(place: Place) -> None:
    mnt = place.mount()
    os.unlink(mnt / "file")
    fails(errno.ENOENT, lambda: os.stat(mnt / "file"))
    fails(errno.ENOTEMPTY, lambda: os.rmdir(mnt / "dir"))
    shutil.rmtree(mnt / "dir")
    assert os.listdir(mnt) == ["link"]
    (mnt / "dir").mkdir()
    assert os.listdir(mnt / "dir") == []


def test_hard_links_share_one_inode(place: Place) -> None:
    mnt = place.mount()
    os.link(mnt / "file", mnt / "dir" / "second")
    first, second = os.stat(mnt / "file"), os.stat(mnt / "dir" / "second")
    assert (first.st_ino, first.st_nlink) == (second.st_ino, 2)
    (mnt / "dir" / "second").write_bytes(b"both")
    assert (mnt / "file").read_bytes() == b"both"


def test_special_files(place: Place) -> None:
    mnt = place.mount()
    os.symlink("some/where", mnt / "sym")
    os.mkfifo(mnt / "fifo", 0o640)
    assert os.readlink(mnt / "sym") == "some/where"
    assert os.stat(mnt / "fifo").st_mode == stat.S_IFIFO | 0o640
    if os.geteuid() == 0:
        os.mknod(mnt / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        assert os.stat(mnt / "null").st_rdev == os.makedev(1, 3)


def test_attributes(place: Place) -> None:
    mnt = place.mount()
    os.chmod(mnt / "file", 0o600)
    os.utime(mnt / "file", ns=(-5_000_000_001, 1_700_000_000_123_456_789))
    st = os.stat(mnt / "file")
    assert stat.S_IMODE(st.st_mode) == 0o600
    assert (st.st_atime_ns, st.st_mtime_ns) == (-5_000_000_001, 1_700_000_000_123_456_789)
    (mnt / "file").touch()
    assert os.stat(mnt / "file").st_mtime > 1_700_000_001
    if os.geteuid() == 0:
        os.chown(mnt / "file", 7, 8)
        st = os.stat(mnt / "file")
        assert (st.st_uid, st.st_gid) == (7, 8)


def test_extended_attributes(place: Place) -> None:
    mnt = place.mount()
    file = mnt / "file"
    assert os.listxattr(file) == []
    os.setxattr(file, "user.one", b"1", os.XATTR_CREATE)
    fails(errno.EEXIST, lambda: os.setxattr(file, "user.one", b"2", os.XATTR_CREATE))
    fails(errno.ENODATA, lambda: os.setxattr(file, "user.two", b"2", os.XATTR_REPLACE))
    os.setxattr(file, "user.one", b"22", os.XATTR_REPLACE)
    assert os.listxattr(file) == ["user.one"]
    assert os.getxattr(file, "user.one") == b"22"
    os.removexattr(file, "user.one")
    fails(errno.ENODATA, lambda: os.getxattr(file, "user.one"))
    assert not [name for name in os.listxattr(mnt / "file") if "overlay" in name]


def test_statfs_is_the_uppers(place: Place) -> None:
    mnt = place.mount()
    ours, theirs = os.statvfs(mnt), os.statvfs(place.upper)
    assert (ours.f_blocks, ours.f_frsize) == (theirs.f_blocks, theirs.f_frsize)
    assert (ours.f_files, ours.f_namemax) == (theirs.f_files, theirs.f_namemax)


def test_a_listing_and_stat_agree_on_inode_numbers(place: Place) -> None:
    mnt = place.mount()
    (mnt / "file").write_bytes(b"copied up")
    (mnt / "new").mkdir()
    (mnt / "dir" / "one").touch()
    for folder in (mnt, mnt / "dir", mnt / "new"):
        for entry in os.scandir(folder):
            found = entry.stat(follow_symlinks=False)
            assert entry.inode() == found.st_ino == os.lstat(entry.path).st_ino
            assert entry.is_dir(follow_symlinks=False) == stat.S_ISDIR(found.st_mode)
    assert os.stat(mnt).st_ino == 1


def test_an_unlinked_open_file_lives_on(place: Place) -> None:
    mnt = place.mount()
    (mnt / "mine").write_bytes(b"mine")
    for name, content in (("file", b"low"), ("mine", b"mine")):
        with opened(place, name, "r+b") as file:
            os.unlink(mnt / name)
            assert file.read() == content
            file.write(b"+more")
            assert os.pread(file.fileno(), 99, 0) == content + b"+more"
            assert os.fstat(file.fileno()).st_nlink == 0
            os.fchmod(file.fileno(), 0o640)
    assert sorted(os.listdir(mnt)) == ["dir", "link"]


def test_a_big_directory_lists_every_name_once(place: Place) -> None:
    names = {f"{number:05d}-{'n' * (number % 200)}" for number in range(1500)}
    for name in sorted(names):
        os.close(os.open(place.low / "dir" / name, os.O_CREAT, 0o644))
    mnt = place.mount()
    found = os.listdir(mnt / "dir")
    assert len(found) == len(set(found)) == len(names) + 2
    assert set(found) == names | {"one", "two"}
    with os.scandir(mnt / "dir") as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(mnt / "dir") == []
    os.rmdir(mnt / "dir")


def test_a_new_file_obeys_the_umask(place: Place) -> None:
    mnt = place.mount()
    old = os.umask(0o027)
    try:
        os.close(os.open(mnt / "masked", os.O_CREAT, 0o666))
        os.mkdir(mnt / "masked.d")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(mnt / "masked").st_mode) == 0o640
    assert stat.S_IMODE(os.stat(mnt / "masked.d").st_mode) == 0o750


def test_a_read_only_union_refuses_writing(place: Place) -> None:
    arguments = ["mount", "--engine", "pyfuse3", str(place.low), str(place.mnt)]
    done = pyunion(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert (place.mnt / "file").read_bytes() == b"low"
    fails(errno.EROFS, lambda: (place.mnt / "new").mkdir())
    fails(errno.EROFS, lambda: (place.mnt / "file").write_bytes(b""))


def test_copy_up_at_open_if_asked_for(place: Place) -> None:
    mnt = place.mount("-o", "copyup=open")
    os.close(os.open(mnt / "file", os.O_RDONLY))
    assert not (place.upper / "file").exists()
    os.close(os.open(mnt / "file", os.O_RDWR))
    assert (place.upper / "file").read_bytes() == b"low"


def test_a_change_of_a_live_lower_is_seen(place: Place) -> None:
    place.mnt = place.low / "mnt"  # a lower that holds the mount point is watched
    place.mnt.mkdir()
    mnt = place.mount()
    assert (mnt / "file").read_bytes() == b"low"
    assert sorted(os.listdir(mnt / "dir")) == ["one", "two"]
    fails(errno.ENOENT, lambda: os.stat(mnt / "dir" / "three"))
    (place.low / "dir" / "three").write_bytes(b"333")
    assert eventually(lambda: sorted(os.listdir(mnt / "dir")) == ["one", "three", "two"])
    assert eventually(lambda: (mnt / "dir" / "three").exists())


def test_with_the_writeback_cache(place: Place) -> None:
    mnt = place.mount("-o", "writeback")
    assert "writeback_cache" in place.stats()["features"]
    with opened(place, "file", "ab") as file:
        file.write(b"+1")
    assert (mnt / "file").read_bytes() == b"low+1"
    place.umount()
    assert (place.upper / "file").read_bytes() == b"low+1"


def test_with_short_timeouts_nothing_is_remembered(place: Place) -> None:
    mnt = place.mount("-o", "timeout=0")
    for _ in range(2):
        fails(errno.ENOENT, lambda: os.stat(mnt / "none"))
    assert place.stats()["requests"]["LOOKUP"] >= 2
    assert (mnt / "file").read_bytes() == b"low"


def test_missing_names_are_remembered(place: Place) -> None:
    mnt = place.mount()
    for _ in range(5):
        fails(errno.ENOENT, lambda: os.stat(mnt / "none"))
    assert place.stats()["requests"]["LOOKUP"] == 1


# -- privileges and ACLs ----------------------------------------------------------------


def as_nobody(call: Callable[[], object]) -> None:
    """Run ``call`` in a process without privileges."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            call()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@contextlib.contextmanager
def reachable(place: Place) -> Iterator[int]:
    """The mount's root as a descriptor that unprivileged processes may use."""
    fd = os.open(place.mnt, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@needs_root
@pytest.mark.parametrize("how", ["write", "ftruncate", "O_TRUNC"])
def test_suid_and_sgid_go_when_others_change_the_file(place: Place, how: str) -> None:
    mnt = place.mount()
    os.chmod(mnt, 0o755)
    (mnt / "prog").write_bytes(b"#!")
    os.chmod(mnt / "prog", 0o6777)

    def change() -> None:
        fd = os.open("prog", os.O_WRONLY | (os.O_TRUNC if how == "O_TRUNC" else 0), dir_fd=root)
        if how == "write":
            os.write(fd, b"x")
        elif how == "ftruncate":
            os.ftruncate(fd, 1)

    with reachable(place) as root:
        as_nobody(change)
    assert stat.S_IMODE(os.stat(mnt / "prog").st_mode) == 0o777
    assert stat.S_IMODE(os.stat(place.upper / "prog").st_mode) == 0o777


@needs_root
def test_suid_stays_when_root_writes(place: Place) -> None:
    mnt = place.mount()
    os.chmod(mnt / "file", 0o4755)
    with opened(place, "file", "r+b") as file:
        file.write(b"x")
    assert stat.S_IMODE(os.stat(mnt / "file").st_mode) == 0o4755


def acl(*entries: tuple[int, int]) -> bytes:
    """An ACL without named users: (tag, permissions)."""
    parts = (struct.pack("<HHI", tag, perm, 0xFFFFFFFF) for tag, perm in entries)
    return struct.pack("<I", 2) + b"".join(parts)


@needs_root
def test_a_default_acl_replaces_the_umask(place: Place) -> None:
    mnt = place.mount()
    wide = acl((1, 7), (4, 7), (0x20, 7))
    try:
        os.setxattr(mnt / "dir", "system.posix_acl_default", wide)
    except OSError:
        pytest.skip("no ACLs on this filesystem")
    old = os.umask(0o077)
    try:
        os.close(os.open(mnt / "dir" / "file", os.O_CREAT, 0o666))
        os.mkdir(mnt / "dir" / "sub")
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(mnt / "dir" / "file").st_mode) == 0o666
    assert stat.S_IMODE(os.stat(mnt / "dir" / "sub").st_mode) == 0o777


@needs_root
def test_an_acl_set_from_outside_the_group_clears_sgid(place: Place) -> None:
    mnt = place.mount()
    (mnt / "theirs").write_bytes(b"")
    os.chown(mnt / "theirs", NOBODY, 0)
    os.chmod(mnt / "theirs", 0o2775)
    masked = acl((1, 7), (4, 7), (0x10, 7), (0x20, 5))

    def change() -> None:
        fd = os.open("theirs", os.O_RDWR, dir_fd=root)
        os.setxattr(fd, "system.posix_acl_access", masked)

    with reachable(place) as root:
        as_nobody(change)
    assert stat.S_IMODE(os.stat(mnt / "theirs").st_mode) == 0o775


# -- what the library cannot carry: docs/pyfuse3.md ----------------------------------------


@pytest.mark.parametrize("mode", [0, 1, 3, 16])
def test_fallocate_is_not_supported(place: Place, mode: int) -> None:
    place.mount()
    libc = ctypes.CDLL(None, use_errno=True)
    with opened(place, "file", "r+b") as file:
        done = libc.fallocate(file.fileno(), mode, ctypes.c_int64(0), ctypes.c_int64(100))
        assert (done, ctypes.get_errno()) == (-1, errno.EOPNOTSUPP)


def test_posix_fallocate_falls_back_to_writing(place: Place) -> None:
    mnt = place.mount()
    with opened(place, "file", "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 100)
    assert (mnt / "file").read_bytes() == b"low".ljust(100, b"\0")


def test_unnamed_temporary_files_are_not_supported(place: Place) -> None:
    mnt = place.mount()
    fails(errno.EOPNOTSUPP, lambda: os.open(mnt, os.O_TMPFILE | os.O_RDWR))


def test_holes_read_as_zeros_and_are_not_found(place: Place) -> None:
    place.mount()
    with opened(place, "sparse", "w+b") as file:
        file.truncate(1 << 20)
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 1 << 20
        assert os.pread(file.fileno(), 4, 4096) == bytes(4)


def test_copy_file_range_copies_through_the_kernel(place: Place) -> None:
    mnt = place.mount()
    with opened(place, "file") as source, opened(place, "copy", "w+b") as target:
        assert os.copy_file_range(source.fileno(), target.fileno(), 99) == 3
    assert (mnt / "copy").read_bytes() == b"low"
    requests = place.stats()["requests"]
    assert requests["READ"] and requests["WRITE"]


# -- the daemon ----------------------------------------------------------------------------


def test_stat_tells_engine_and_requests(place: Place) -> None:
    mnt = place.mount()
    (mnt / "new").write_bytes(b"x")
    stats = json.loads(pyunion("stat", "--json", str(mnt)).stdout)
    assert stats["engine"] == "pyfuse3"
    assert stats["mountpoint"] == str(mnt)
    assert stats["requests"]["CREATE"] == stats["requests"]["WRITE"] == 1
    assert stats["errors"] == 0
    assert "pyfuse3" in pyunion("list").stdout


def test_umount_ends_the_daemon_and_leaves_nothing(place: Place) -> None:
    mnt = place.mount()
    (mnt / "file").write_bytes(b"x")
    daemon = os.pidfd_open(place.stats()["pid"])
    try:
        place.umount()
        assert not place.is_mounted()
        poll = select.poll()
        poll.register(daemon, select.POLLIN)
        assert poll.poll(0), "the daemon still runs"
    finally:
        os.close(daemon)
    assert list((place.work / "pyunion" / "stage").iterdir()) == []
    place.mount()


class Foreground:
    """A mount served in the foreground, with the code in ``patch`` run first."""

    def __init__(self, place: Place, *more: str, patch: str = "") -> None:
        self.place = place
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", f"{patch}\n{RUN}", *place.arguments("-f", *more)],
            env=dict(os.environ, PYTHONPATH=str(ROOT)),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Foreground:
        # The first poll event on the mount table that shows it is the end of waiting.
        with open("/proc/self/mountinfo", "rb") as table:
            poll = select.poll()
            poll.register(table.fileno(), select.POLLPRI | select.POLLERR)
            while not self.place.is_mounted() and self.process.poll() is None:
                poll.poll(100)
        assert self.process.poll() is None
        return self

    def stop(self) -> tuple[int, str]:
        """SIGTERM; exit code and what was said."""
        self.process.send_signal(signal.SIGTERM)
        said = self.process.communicate(timeout=30)[1]
        return self.process.returncode, said

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(UserError):
                inspect.umount(str(self.place.mnt), lazy=True)
            try:
                self.process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()


def test_sigterm_unmounts_and_sigusr1_reports(place: Place) -> None:
    with Foreground(place) as daemon:
        assert (place.mnt / "file").read_bytes() == b"low"
        daemon.process.send_signal(signal.SIGUSR1)
        assert daemon.process.stderr is not None
        line = daemon.process.stderr.readline()
        assert json.loads(line.removeprefix("pyunion: "))["engine"] == "pyfuse3"
        assert daemon.stop() == (0, "")
    assert not place.is_mounted()


def test_a_volatile_mount_that_ends_well_may_be_mounted_again(place: Place) -> None:
    guard = place.work / "work" / "incompat" / "volatile"
    for _ in range(2):
        place.mount("--volatile")
        assert guard.exists()
        place.umount()
        assert not guard.exists()


def test_a_trace_has_one_line_a_request(place: Place, tmp_path: Path) -> None:
    mnt = place.mount("--trace", str(tmp_path / "trace"))
    fails(errno.ENOENT, lambda: os.readlink(mnt / "none"))
    fails(errno.ENODATA, lambda: os.getxattr(mnt, "user.none"))
    place.umount()
    lines = (tmp_path / "trace").read_text().splitlines()
    assert any(line.startswith("LOOKUP 1 'none' ok ") for line in lines)
    assert any(line.startswith("GETXATTR 1 'user.none' ENODATA ") for line in lines)


def test_an_unexpected_error_is_eio_and_the_daemon_lives_on(place: Place) -> None:
    patch = "from unionfs.ops import Ops\ndef bug(*_): 1 / 0\nOps.readlink = bug"
    with Foreground(place, patch=patch) as daemon:
        fails(errno.EIO, lambda: os.readlink(place.mnt / "link"))
        assert (place.mnt / "file").read_bytes() == b"low"
        stats = place.stats()
        assert stats["errors"] == 1
        assert "ZeroDivisionError" in stats["last_error"]
        code, said = daemon.stop()
    assert code == 0
    assert "ZeroDivisionError" in said


def test_enosys_from_below_does_not_switch_an_operation_off(place: Place) -> None:
    patch = (
        "import errno\nfrom unionfs.ops import Ops\nreal = Ops.getxattr\n"
        "def odd(self, ino, name):\n"
        "    if name == b'user.odd': raise OSError(errno.ENOSYS, 'no')\n"
        "    return real(self, ino, name)\n"
        "Ops.getxattr = odd"
    )
    with Foreground(place, patch=patch) as daemon:
        for _ in range(2):
            fails(errno.EOPNOTSUPP, lambda: os.getxattr(place.mnt / "file", "user.odd"))
        fails(errno.ENODATA, lambda: os.getxattr(place.mnt / "file", "user.other"))
        assert daemon.stop() == (0, "")


def test_a_name_that_cannot_be_read_hides_no_other(place: Place) -> None:
    patch = (
        "import errno\nfrom unionfs.union import Union\n"
        "def broken(real):\n"
        "    def find(self, *arguments):\n"
        "        if b'two' in arguments: raise OSError(errno.EIO, 'broken')\n"
        "        return real(self, *arguments)\n"
        "    return find\n"
        "Union.find, Union.listed = broken(Union.find), broken(Union.listed)"
    )
    with Foreground(place, patch=patch) as daemon:
        for _ in range(2):
            assert sorted(os.listdir(place.mnt / "dir")) == ["one", "two"]
            fails(errno.EIO, lambda: os.stat(place.mnt / "dir" / "two"))
            assert (place.mnt / "dir" / "one").read_bytes() == b"1"
        assert daemon.stop() == (0, "")


SLOW_COPY = """
from unionfs import copyup
real = copyup.copy_data
def slow(*arguments):
    with open({fifo!r}, "rb") as gate:
        gate.read()
    real(*arguments)
copyup.copy_data = slow
"""
SLOW_READ = """
import errno, os
real = os.preadv
def slow(fd, buffers, offset, flags=0):
    if flags:
        raise BlockingIOError(errno.EAGAIN, "cold")
    with open({fifo!r}, "rb") as gate:
        gate.read()
    return real(fd, buffers, offset)
os.preadv = slow
"""


@pytest.mark.parametrize("patch", [SLOW_COPY, SLOW_READ], ids=["copy-up", "cold read"])
def test_a_slow_operation_holds_nobody_up(place: Place, tmp_path: Path, patch: str) -> None:
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    big = os.urandom(1 << 20)
    (place.low / "big").write_bytes(big)
    results: list[bytes] = []

    def work() -> None:
        with open(place.mnt / "big", "r+b", buffering=0) as file:
            if patch is SLOW_COPY:
                file.write(big[:1])
                results.append(big)
            else:
                # One request, so that the gate opens once.
                results.append(os.pread(file.fileno(), 4096, 0))

    with Foreground(place, patch=patch.format(fifo=str(fifo))) as daemon:
        worker = threading.Thread(target=work)
        worker.start()
        with open(fifo, "wb"):  # opens when the daemon is at the gate
            (place.mnt / "meanwhile").mkdir()
            assert sorted(os.listdir(place.mnt / "dir")) == ["one", "two"]
            assert worker.is_alive()
        worker.join(30)
        assert results and big.startswith(results[0])
        assert place.stats()["errors"] == 0
        assert daemon.stop()[0] == 0


# -- what goes wrong ------------------------------------------------------------------------


def test_without_the_library_the_error_says_what_to_do(place: Place) -> None:
    done = pyunion(*place.arguments(), patch="import sys; sys.modules['pyfuse3'] = None")
    assert done.returncode == 1
    first, second = done.stderr.splitlines()
    assert first.startswith("error: the pyfuse3 engine needs the library pyfuse3")
    assert second.startswith("hint: pip install 'pyunion[pyfuse3]'")
    assert not place.is_mounted()


@pytest.mark.parametrize("more", [(), ("-f",)], ids=["background", "foreground"])
def test_an_engine_that_cannot_start_leaves_no_mount(place: Place, more: tuple[str, ...]) -> None:
    patch = (
        "import pyfuse3\n"
        "def fail(*_): raise RuntimeError('fuse_session_new() failed')\n"
        "pyfuse3.init = fail"
    )
    done = pyunion(*place.arguments(*more), patch=patch)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].endswith("fuse_session_new() failed")
    assert not place.is_mounted()
    place.mount()


def test_a_second_mount_of_the_same_upper_is_refused(place: Place, tmp_path: Path) -> None:
    place.mount()
    (tmp_path / "other").mkdir()
    layers = [str(place.low), str(place.upper), str(tmp_path / "other")]
    done = pyunion("mount", "--engine", "pyfuse3", "--work", str(place.work), *layers)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert not os.path.ismount(tmp_path / "other")


def test_an_unknown_engine_is_refused(place: Place) -> None:
    layers = f"lowerdir={place.low},engine=fast"
    done = pyunion("mount", "-o", layers, str(place.mnt))
    assert done.returncode == 1
    assert done.stderr == "error: engine=fast: expected auto, direct or pyfuse3\n"


@needs_root
def test_a_descriptor_mounted_by_somebody_else_is_served(place: Place) -> None:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        data = b"fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions" % fd
        calls.mount(b"given", os.fsencode(place.mnt), b"fuse.pyunion", 0, data)
        arguments = place.arguments()
        arguments[-1] = f"/dev/fd/{fd}"
        command = [sys.executable, "-m", "unionfs", *arguments]
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        subprocess.run(command, env=environment, pass_fds=[fd], timeout=60, check=True)
    finally:
        os.close(fd)
    assert (place.mnt / "file").read_bytes() == b"low"
