"""POSIX as seen through the kernel and the direct engine.

Most tests share one mount (``posix``), each in a directory of its own that
the lower has made ready; the others need layers or options of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.conftest import Mount, needs_fuse
from tests.helpers import Mounted, command, is_mounted, wait_for_end
from tests.invariants import check_disk, check_tree
from tests.layers import OLD_NS, Dir, File, Layers, Link, Special, Symlink, Tree
from unionfs.sys import calls

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, devices, mounts")

MIB = 1 << 20
PUNCH = calls.FALLOC_FL_PUNCH_HOLE | calls.FALLOC_FL_KEEP_SIZE
LOWER: Tree = {
    b"hard/a": File(b"one file"),
    b"hard/b": Link(b"hard/a"),
    b"hard/sub/c": Link(b"hard/a"),
    b"stale/f": File(b"before"),
    b"map/f": File(b"m" * 8192),
    b"truncate/f": File(b"t" * 10_000),
    b"range/f": File(bytes(range(256)) * 4096),
    b"open/f": File(b"still here", 0o600),
    b"locks/f": File(b"locked"),
    b"suid/f": File(b"#!/bin/sh\n", 0o6755),
    b"exec/true": File(b"#!/bin/sh\nexit 7\n", 0o755),
    b"fifo/p": Special(stat.S_IFIFO),
    b"xattr/f": File(b"x", xattrs=((b"user.low", b"1"),)),
    b"xattr/d/inside": File(b"visible"),
    b"append/f": File(b""),
    b"cwd/sub/f": File(b"here"),
    b"times/f": File(b"old"),
    b"links/s": Symlink(b"f"),
    b"links/f": File(b"target"),
    b"setgid": Dir(0o2777, gid=77),
    **{b"many/%04d" % number: File(b"") for number in range(1500)},
}


def passthrough_works() -> bool:
    """Linux 6.9, and root outside of user namespaces."""
    version = tuple(int(part) for part in os.uname().release.split(".")[:2])
    return version >= (6, 9) and calls.has_sys_admin() and calls.in_initial_user_namespace()


@pytest.fixture(scope="module", params=["", "passthrough"], ids=["messages", "passthrough"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mounted]:
    """One mount for the tests that need nothing special."""
    needs_fuse()
    if request.param and not passthrough_works():
        pytest.skip("no FUSE passthrough here")
    layers = Layers.make(tmp_path_factory.mktemp("posix") / "u", LOWER)
    sparse = layers.lowers[0] / "sparse"
    sparse.mkdir()
    with open(sparse / "f", "wb") as file:
        file.truncate(8 * MIB)
        file.seek(4 * MIB)
        file.write(b"island")
    words = ("-o", request.param) if request.param else ()
    mounted = Mounted(layers, "--engine", "direct", *words)
    try:
        yield mounted
        check_tree(mounted)
    finally:
        mounted.stop()
        check_disk(layers)
        layers.remove()


@pytest.fixture
def posix(shared: Mounted) -> Path:
    """The shared mount's root."""
    return shared.mnt


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    """open(2), closed at the end."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def in_process(work: Callable[[], None]) -> None:
    """Run in a forked process, which must end well."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def as_user(uid: int, root: Path, work: Callable[[], None]) -> None:
    """Run in a forked process as somebody without rights, in ``root``."""

    def become() -> None:
        os.chdir(root)  # others may not pass through pytest's directories
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        work()

    in_process(become)


def refused(number: int, work: Callable[[], object]) -> None:
    """The call fails with this errno."""
    with pytest.raises(OSError) as caught:
        work()
    assert caught.value.errno == number, caught.value


# -- one file, one inode -------------------------------------------------------------


def test_a_hard_linked_lower_file_stays_one_file(posix: Path) -> None:
    names = [posix / "hard/a", posix / "hard/b", posix / "hard/sub/c"]
    numbers = {name.stat().st_ino for name in names}
    assert len(numbers) == 1
    names[1].write_bytes(b"changed")
    assert {name.read_bytes() for name in names} == {b"changed"}
    assert {name.stat().st_ino for name in names} == numbers
    assert {name.stat().st_nlink for name in names} == {3}
    names[0].unlink()
    assert {name.stat().st_nlink for name in names[1:]} == {2}


def test_a_descriptor_opened_before_copy_up_sees_later_writes(posix: Path) -> None:
    path = posix / "stale/f"
    with opened(path, os.O_RDONLY) as early:
        assert os.read(early, 6) == b"before"
        number = os.fstat(early).st_ino
        path.write_bytes(b"after and longer")
        assert os.pread(early, 100, 0) == b"after and longer"
        assert (os.fstat(early).st_size, os.fstat(early).st_ino) == (16, number)


def test_a_map_made_before_copy_up_sees_later_writes(posix: Path) -> None:
    path = posix / "map/f"
    with opened(path, os.O_RDONLY) as fd, mmap.mmap(fd, 8192, prot=mmap.PROT_READ) as early:
        assert early[:2] == b"mm"
        with open(path, "r+b") as file:
            file.write(b"NEW")
        assert early[:4] == b"NEWm"


def test_a_shared_map_writes_to_the_file(posix: Path) -> None:
    path = posix / "map/g"
    path.write_bytes(bytes(8192))
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 8192) as shared_map:
        shared_map[4096:4101] = b"wrote"
        shared_map.flush()
        assert os.pread(fd, 5, 4096) == b"wrote"
    assert path.read_bytes()[4096:4101] == b"wrote"


def test_one_device_number_for_all(posix: Path) -> None:
    devices = {path.lstat().st_dev for path in posix.iterdir()}
    assert devices == {posix.stat().st_dev}


def test_a_directory_may_be_renamed_beneath_its_users(posix: Path) -> None:
    with opened(posix / "cwd/sub", os.O_RDONLY | os.O_DIRECTORY) as fd:
        number = os.fstat(fd).st_ino
        os.rename(posix / "cwd/sub", posix / "cwd/moved")
        assert os.listdir(fd) == ["f"]
        with open("f", "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=fd)) as file:
            assert file.read() == b"here"
        assert (posix / "cwd/moved").stat().st_ino == number == os.fstat(fd).st_ino


# -- contents ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5000, 10_000, 20_000])
def test_truncation_of_a_lower_file(mount: Mount, size: int) -> None:
    mounted = mount({b"f": File(b"t" * 10_000), b"g": File(b"t" * 10_000)})
    os.truncate(mounted.mnt / "f", size)
    expected = (b"t" * 10_000)[:size].ljust(size, b"\0")
    assert (mounted.mnt / "f").read_bytes() == expected
    with opened(mounted.mnt / "g", os.O_RDWR | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
        os.write(fd, b"anew")
    assert (mounted.mnt / "g").read_bytes() == b"anew"


def test_an_unnamed_file_lives_and_may_get_a_name(posix: Path) -> None:
    (posix / "tmpfile").mkdir()
    with opened(posix / "tmpfile", os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
        os.write(fd, b"nameless")
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(posix / "tmpfile") == []
        with opened(posix / "tmpfile", os.O_PATH) as where:
            os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=where, follow_symlinks=True)
        assert os.fstat(fd).st_nlink == 1
        assert (posix / "tmpfile/named").read_bytes() == b"nameless"
        os.write(fd, b" once")
        number = os.fstat(fd).st_ino
    st = (posix / "tmpfile/named").stat()
    assert (st.st_ino, st.st_mode, st.st_size) == (number, stat.S_IFREG | 0o640, 13)


def test_holes_are_seen_and_kept_by_copy_up(posix: Path) -> None:
    path = posix / "sparse/f"
    for fresh in (True, False):
        with opened(path, os.O_RDONLY if fresh else os.O_RDWR) as fd:
            assert os.lseek(fd, 0, os.SEEK_DATA) == 4 * MIB
            assert os.lseek(fd, 4 * MIB, os.SEEK_HOLE) < 5 * MIB
            refused(errno.ENXIO, lambda fd=fd: os.lseek(fd, 6 * MIB, os.SEEK_DATA))  # type: ignore[misc]
        if fresh:
            os.chmod(path, 0o600)
    assert path.stat().st_blocks * 512 < MIB
    with opened(path, os.O_RDONLY) as fd:
        assert os.pread(fd, 8, 4 * MIB - 1) == b"\0island\0"


def test_fallocate(posix: Path) -> None:
    path = posix / "fallocate"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        calls.fallocate(fd, 0, 0, 8192)
        assert os.fstat(fd).st_size == 8192
        calls.fallocate(fd, calls.FALLOC_FL_KEEP_SIZE, 0, MIB)
        assert os.fstat(fd).st_size == 8192
        assert os.fstat(fd).st_blocks * 512 >= MIB
        os.pwrite(fd, b"z" * 8192, 0)
        calls.fallocate(fd, PUNCH, 4096, 4096)
        assert os.pread(fd, 8192, 0) == b"z" * 4096 + bytes(4096)
        calls.fallocate(fd, calls.FALLOC_FL_ZERO_RANGE, 1000, 1000)
        assert os.pread(fd, 4096, 0) == b"z" * 1000 + bytes(1000) + b"z" * 2096
        refused(errno.EOPNOTSUPP, lambda: calls.fallocate(fd, 0x08, 0, 4096))  # COLLAPSE_RANGE


def test_copy_file_range_from_a_lower_file(posix: Path) -> None:
    whole = bytes(range(256)) * 4096
    with opened(posix / "range/f", os.O_RDONLY) as source:
        with opened(posix / "range/g", os.O_CREAT | os.O_RDWR) as target:
            done = 0
            while done < len(whole):
                count = os.copy_file_range(source, target, len(whole) - done, done, done)
                assert count > 0
                done += count
            assert os.pread(target, len(whole) + 1, 0) == whole
            assert os.copy_file_range(source, target, 10, 250, 0) == 10
            assert os.pread(target, 12, 0) == whole[250:260] + whole[10:12]
    assert (posix / "range/f").read_bytes() == whole


def test_appends_of_several_processes_are_all_kept(posix: Path) -> None:
    path = posix / "append/f"
    processes = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                fd = os.open(path, os.O_WRONLY | os.O_APPEND)
                for _ in range(50):
                    os.write(fd, b"%d" % number * 37 + b"\n")
                code = 0
            finally:
                os._exit(code)
        processes.append(pid)
    for pid in processes:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d" % number * 37 for number in range(4) for _ in range(50))


def test_direct_io(posix: Path) -> None:
    path = posix / "direct"
    with mmap.mmap(-1, 8192) as buffer, opened(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT) as fd:
        buffer[:] = b"D" * 8192
        assert os.pwritev(fd, [buffer], 4096) == 8192
        buffer[:] = bytes(8192)
        assert os.preadv(fd, [buffer], 4096) == 8192
        assert buffer[:] == b"D" * 8192
    assert path.read_bytes() == bytes(4096) + b"D" * 8192


def test_fsync_of_everything(posix: Path, shared: Mounted) -> None:
    path = posix / "synced"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"safe")
        os.fsync(fd)
        os.fdatasync(fd)
        calls.syncfs(fd)
    with opened(posix, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
    assert (shared.layers.upper / "synced").read_bytes() == b"safe"


# -- locks ---------------------------------------------------------------------------


def test_locks_hold_between_processes(posix: Path) -> None:
    path = posix / "locks/f"
    with opened(path, os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.lockf(fd, fcntl.LOCK_EX, 2, 0)

        def other() -> None:
            with opened(path, os.O_RDWR) as mine:
                refused(errno.EAGAIN, lambda: fcntl.flock(mine, fcntl.LOCK_SH | fcntl.LOCK_NB))
                refused(errno.EAGAIN, lambda: fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 1))
                fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 5)

        in_process(other)
        os.pwrite(fd, b"copied up under locks", 0)  # close(2) would drop the POSIX lock
        in_process(other)


# -- unlinked and open ---------------------------------------------------------------


@pytest.mark.parametrize("change_first", [False, True], ids=["lower", "upper"])
def test_an_unlinked_open_file_is_a_file_still(mount: Mount, change_first: bool) -> None:
    mounted = mount({b"f": File(b"still here", 0o600)})
    path = mounted.mnt / "f"
    if change_first:
        path.write_bytes(b"still here")
    with opened(path, os.O_RDWR) as fd:
        number = os.fstat(fd).st_ino
        path.unlink()
        refused(errno.ENOENT, path.stat)
        assert os.fstat(fd).st_nlink == 0
        assert os.read(fd, 100) == b"still here"
        os.pwrite(fd, b"STILL", 0)
        os.fchmod(fd, 0o640)
        os.utime(fd, ns=(OLD_NS, OLD_NS))
        os.setxattr(fd, "user.late", b"1")
        st = os.fstat(fd)
        assert (st.st_ino, st.st_nlink, st.st_mode) == (number, 0, stat.S_IFREG | 0o640)
        assert st.st_mtime_ns == OLD_NS
        assert os.getxattr(fd, "user.late") == b"1"
        path.write_bytes(b"another")
        assert path.stat().st_ino != number
        assert os.pread(fd, 100, 0) == b"STILL here"
        os.ftruncate(fd, 3)
        assert os.fstat(fd).st_size == 3
    assert path.read_bytes() == b"another"


def test_a_replaced_open_file_is_a_file_still(posix: Path) -> None:
    (posix / "open/new").write_bytes(b"new")
    with opened(posix / "open/f", os.O_RDONLY) as fd:
        os.rename(posix / "open/new", posix / "open/f")
        assert os.fstat(fd).st_nlink == 0
        assert os.read(fd, 100) == b"still here"
    assert (posix / "open/f").read_bytes() == b"new"


def test_a_removed_open_directory_is_empty(posix: Path) -> None:
    (posix / "gone").mkdir()
    with opened(posix / "gone", os.O_RDONLY | os.O_DIRECTORY) as fd:
        (posix / "gone").rmdir()
        assert os.listdir(fd) == []
        assert os.fstat(fd).st_nlink == 0
        refused(errno.ENOENT, lambda: os.mkdir("below", dir_fd=fd))


def _hold_unlinked(root: str, number: int, count: int) -> None:

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    held = []
    for index in range(count):
        path = f"{root}/{number}-{index}"
        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        os.write(fd, path.encode())
        os.unlink(path)
        held.append((fd, path))
    for fd, path in held:
        assert os.pread(fd, 4096, 0) == path.encode()
        assert os.fstat(fd).st_nlink == 0
    for fd, path in held[::7]:
        os.pwrite(fd, b"changed", 0)
        assert os.pread(fd, 4096, 0) == b"changed" + path.encode()[7:]


@pytest.mark.full
def test_25_000_unlinked_open_files(mounted: Mounted) -> None:
    """More than a process may have descriptors, the daemon included."""
    context = get_context("fork")
    processes = [
        context.Process(target=_hold_unlinked, args=(os.fspath(mounted.mnt), number, 3125))
        for number in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    for process in processes:
        process.close()
    assert os.listdir(mounted.mnt) == []


# -- owners, modes, attributes -------------------------------------------------------


def test_writing_by_others_clears_suid_and_sgid(mount: Mount) -> None:
    mounted = mount({b"f": File(b"x", 0o6777), b"g": File(b"x", 0o6777), b"h": File(b"x", 0o6777)})
    root = mounted.mnt
    (root / "f").write_bytes(b"by root")
    assert (root / "f").stat().st_mode & 0o7777 == 0o6777

    def write() -> None:
        with open("g", "r+b") as file:
            file.write(b"by somebody")
        os.truncate("h", 0)

    as_user(4321, root, write)
    assert (root / "g").stat().st_mode & 0o7777 == 0o777
    assert (root / "h").stat().st_mode & 0o7777 == 0o777
    os.chown(root / "f", 5, 6)
    assert (root / "f").stat().st_mode & 0o7777 == 0o777


def test_what_others_wrote_to_runs_without_the_owners_rights(posix: Path) -> None:
    """The kernel asks for the mode alone before it runs a program: it must not be an old one."""
    shutil.copy("/usr/bin/id", posix / "suid/id")
    os.chmod(posix / "suid/id", 0o6777)

    def extend_and_run() -> None:
        with open("id", "ab") as program:
            program.write(b"\0")
        found = subprocess.run(["./id", "-u"], capture_output=True, check=True)
        assert found.stdout == b"4321\n"

    as_user(4321, posix / "suid", extend_and_run)
    assert (posix / "suid/id").stat().st_mode & 0o7777 == 0o777


def test_new_files_belong_to_their_makers(posix: Path) -> None:
    (posix / "public").mkdir()
    os.chmod(posix / "public", 0o1777)

    def make() -> None:
        os.umask(0o027)
        Path("f").write_bytes(b"mine")
        os.mkdir("d")
        os.symlink("f", "s")
        os.mkfifo("p")

    as_user(4321, posix / "public", make)
    for name, mode in (("f", 0o640), ("d", 0o750), ("s", 0o777), ("p", 0o640)):
        st = (posix / "public" / name).lstat()
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (4321, 4321, mode), name
    as_user(1234, posix / "public", lambda: refused(errno.EPERM, Path("f").unlink))


def test_a_setgid_directory_passes_its_group_on(posix: Path) -> None:
    root = posix / "setgid"

    def make() -> None:
        Path("f").write_bytes(b"")
        os.mkdir("d")

    as_user(4321, root, make)
    assert (root / "f").stat().st_gid == 77
    st = (root / "d").stat()
    assert (st.st_gid, bool(st.st_mode & stat.S_ISGID)) == (77, True)


def test_a_file_may_be_written_through_a_descriptor_that_its_mode_forbids(posix: Path) -> None:
    def make() -> None:
        with opened(Path("f"), os.O_CREAT | os.O_RDWR, 0o400) as fd:
            os.write(fd, b"written all the same")
            refused(errno.EACCES, lambda: os.open("f", os.O_WRONLY))

    (posix / "public2").mkdir()
    os.chmod(posix / "public2", 0o777)
    as_user(4321, posix / "public2", make)
    assert (posix / "public2/f").read_bytes() == b"written all the same"


def test_times_survive_copy_up_and_can_be_set(posix: Path) -> None:
    path = posix / "times/f"
    above = path.parent.stat().st_mtime_ns
    os.chmod(path, 0o600)
    assert path.stat().st_mtime_ns == OLD_NS
    assert path.parent.stat().st_mtime_ns == above == OLD_NS
    os.utime(path, ns=(1, 2_000_000_000_999_999_999))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (1, 2_000_000_000_999_999_999)
    path.write_bytes(b"new")
    assert path.stat().st_mtime_ns not in (OLD_NS, 2_000_000_000_999_999_999)


def test_attributes_of_ours_are_the_users_own_when_set_through_the_mount(
    posix: Path, shared: Mounted
) -> None:
    path = posix / "xattr/f"
    os.setxattr(path, "user.new", b"2")
    assert sorted(os.listxattr(path)) == ["user.low", "user.new"]
    os.removexattr(path, "user.low")
    assert os.listxattr(path) == ["user.new"]
    refused(errno.ENODATA, lambda: os.getxattr(path, "user.low"))
    refused(errno.EEXIST, lambda: os.setxattr(path, "user.new", b"3", os.XATTR_CREATE))
    directory = posix / "xattr/d"
    for name in ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"):
        os.setxattr(directory, name, b"y")
    assert len(os.listxattr(directory)) == 3
    shared.remount()
    assert os.listdir(directory) == ["inside"]
    assert os.getxattr(directory, "user.overlay.opaque") == b"y"


def test_a_program_runs_from_a_lower_and_after_copy_up(posix: Path) -> None:
    path = posix / "exec/true"
    assert subprocess.run([path], check=False).returncode == 7
    path.write_bytes(b"#!/bin/sh\nexit 8\n")
    assert subprocess.run([path], check=False).returncode == 8


def test_fifos_and_sockets_connect(posix: Path) -> None:
    with opened(posix / "fifo/p", os.O_RDWR) as fd:
        with opened(posix / "fifo/p", os.O_WRONLY) as writer:
            os.write(writer, b"through")
        assert os.read(fd, 100) == b"through"
    address = f"/proc/self/fd/{os.open(posix / 'fifo', os.O_PATH)}/socket"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(address)
        server.listen()
        assert stat.S_ISSOCK((posix / "fifo/socket").lstat().st_mode)
        client.connect(address)
        peer, _ = server.accept()
        with peer:
            client.sendall(b"hello")
            assert peer.recv(5) == b"hello"
    os.close(int(address.split("/")[4]))


def test_a_device_that_would_be_a_whiteout_cannot_be_made(posix: Path) -> None:
    refused(errno.EPERM, lambda: os.mknod(posix / "w", stat.S_IFCHR | 0o600, 0))
    refused(errno.ENOENT, (posix / "w").lstat)


# -- names ---------------------------------------------------------------------------


def test_the_longest_and_strangest_names(posix: Path) -> None:
    root = os.fsencode(posix) + b"/names"
    os.mkdir(root)
    names = [b"n" * 255, b"\xff\xfe\x01 \n\\", b" ", b"-o", b"a:b,c", "é".encode() * 127, b".wh"]
    for name in names:
        with open(root + b"/" + name, "xb") as file:
            file.write(name)
    assert sorted(os.listdir(root)) == sorted(names)
    for name in names:
        with open(root + b"/" + name, "rb") as file:
            assert file.read() == name
    refused(errno.ENAMETOOLONG, lambda: os.mkdir(root + b"/" + b"n" * 256))
    refused(errno.ENAMETOOLONG, lambda: os.lstat(root + b"/" + b"n" * 256))
    for name in (b".wh.x", b".wh..wh..opq"):
        refused(errno.EPERM, lambda name=name: os.mkdir(root + b"/" + name))  # type: ignore[misc]
        refused(errno.EPERM, lambda name=name: os.rename(root + b"/ ", root + b"/" + name))  # type: ignore[misc]
    assert sorted(os.listdir(root)) == sorted(names)


def test_paths_as_long_as_the_kernel_takes_and_longer(posix: Path) -> None:
    top = posix / "deep"
    top.mkdir()
    fds = [os.open(top, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for _ in range(20):
            os.mkdir(b"d" * 250, dir_fd=fds[-1])
            fds.append(os.open(b"d" * 250, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fds[-1]))
        with open("f", "xb", opener=lambda name, flags: os.open(name, flags, dir_fd=fds[-1])) as f:
            f.write(b"at the bottom, beyond PATH_MAX")
        os.rename("f", "g", src_dir_fd=fds[-1], dst_dir_fd=fds[-1])
        os.chmod("g", 0o600, dir_fd=fds[-1])
        assert os.stat("g", dir_fd=fds[-1]).st_mode & 0o777 == 0o600
    finally:
        for fd in fds:
            os.close(fd)
    longest = os.fsencode(top) + b"/" + b"d" * 250
    while len(longest) + 251 < 4096:
        longest += b"/" + b"d" * 250
    assert stat.S_ISDIR(os.lstat(longest).st_mode)
    os.rename(top, posix / "deep2")
    shutil.rmtree(posix / "deep2")
    assert not (posix / "deep2").exists()


def test_symlinks_are_followed_by_the_kernel_alone(posix: Path) -> None:
    assert (posix / "links/s").read_bytes() == b"target"
    os.chown(posix / "links/s", 3, 4, follow_symlinks=False)
    assert (posix / "links/s").lstat().st_uid == 3
    assert (posix / "links/f").stat().st_uid == 0
    os.symlink("x" * 4095, posix / "links/long")
    assert os.readlink(posix / "links/long") == "x" * 4095
    (posix / "links/s").unlink()
    assert (posix / "links/f").read_bytes() == b"target"


def test_a_directory_is_emptied_while_it_is_listed(posix: Path) -> None:
    seen = []
    with os.scandir(posix / "many") as entries:
        for entry in entries:
            os.unlink(entry)
            seen.append(entry.name)
    assert len(seen) == len(set(seen)) == 1500
    assert os.listdir(posix / "many") == []
    (posix / "many").rmdir()


@pytest.mark.full
def test_a_directory_of_100_000_entries(mount: Mount) -> None:
    mounted = mount({b"big/%06d" % number: File(b"") for number in range(50_000)})
    root = mounted.mnt / "big"
    for number in range(50_000, 100_000):
        os.close(os.open(root / f"{number:06d}", os.O_CREAT | os.O_WRONLY, 0o644))
    assert sorted(os.listdir(root)) == [f"{number:06d}" for number in range(100_000)]
    for number in range(0, 100_000, 2):
        os.unlink(root / f"{number:06d}")
    assert sorted(os.listdir(root)) == [f"{number:06d}" for number in range(1, 100_000, 2)]
    mounted.remount()
    assert len(os.listdir(root)) == 50_000
    shutil.rmtree(root)
    assert os.listdir(mounted.mnt) == []


# -- layers --------------------------------------------------------------------------


def test_500_lowers(tmp_path: Path) -> None:
    needs_fuse()
    trees = [{b"f%d" % number: File(b"%d" % number), b"d/x": File(b"%d" % number)}
             for number in range(500)]  # fmt: skip
    layers = Layers.make(tmp_path / "u", *trees)
    places = ":".join(os.path.relpath(path, layers.base) for path in layers.lowers)
    done = command(
        "mount",
        "-o",
        f"lowerdir={places},upperdir=upper,workdir=work",
        os.fspath(layers.mnt),
        cwd=layers.base,
    )
    assert done.returncode == 0, done.stderr
    try:
        assert len(os.listdir(layers.mnt)) == 501
        assert (layers.mnt / "f499").read_bytes() == b"499"
        assert (layers.mnt / "d/x").read_bytes() == b"0"
        (layers.mnt / "d/x").unlink()
        assert os.listdir(layers.mnt / "d") == []
        (layers.mnt / "f499").write_bytes(b"changed")
    finally:
        assert command("umount", os.fspath(layers.mnt)).returncode == 0
    assert (layers.upper / "f499").read_bytes() == b"changed"
    assert (layers.lowers[499] / "f499").read_bytes() == b"499"
    check_disk(layers)


@pytest.mark.parametrize("name", ["a:b", "c,d", "with space", "back\\slash", 'quo"te', "ü\udcff"])
def test_layers_with_strange_paths(tmp_path: Path, name: str) -> None:
    needs_fuse()
    layers = Layers.make(tmp_path / name, {b"f": File(b"1")}, {b"g": File(b"2")})
    mounted = Mounted(layers)
    try:
        assert sorted(os.listdir(mounted.mnt)) == ["f", "g"]
        (mounted.mnt / "f").write_bytes(b"new")
    finally:
        mounted.stop()
    assert (layers.upper / "f").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["a:b", "c,d", "with space", "back\\slash"])
def test_layers_with_strange_paths_in_option_form(tmp_path: Path, name: str) -> None:
    needs_fuse()
    layers = Layers.make(tmp_path / name, {b"f": File(b"1")}, {b"g": File(b"2")})

    def escape(path: Path) -> str:
        text = os.fspath(path)
        return text.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")

    def comma(path: Path) -> str:
        return os.fspath(path).replace("\\", "\\\\").replace(",", "\\,")

    words = f"lowerdir={':'.join(map(escape, layers.lowers))}"
    words += f",upperdir={comma(layers.upper)},workdir={comma(layers.work)}"
    done = command("mount", "-o", words, os.fspath(layers.mnt))
    assert done.returncode == 0, done.stderr
    try:
        assert sorted(os.listdir(layers.mnt)) == ["f", "g"]
    finally:
        assert command("umount", os.fspath(layers.mnt)).returncode == 0


def test_a_union_on_a_union(mount: Mount, tmp_path: Path) -> None:
    first = mount({b"d/f": File(b"lowest"), b"gone": File(b"x")})
    (first.mnt / "d/g").write_bytes(b"middle")
    (first.mnt / "gone").unlink()
    layers = Layers.make(tmp_path / "second")
    layers.lowers.append(first.mnt)
    second = Mounted(layers)
    try:
        assert sorted(os.listdir(second.mnt / "d")) == ["f", "g"]
        assert os.listdir(second.mnt) == ["d"]
        (second.mnt / "d/f").write_bytes(b"top")
        os.rename(second.mnt / "d", second.mnt / "e")
        check_tree(second)
        assert (second.mnt / "e/f").read_bytes() == b"top"
        assert (first.mnt / "d/f").read_bytes() == b"lowest"
    finally:
        second.stop()
    check_disk(layers)


def test_a_lower_that_holds_upper_work_and_mount_point(tmp_path: Path) -> None:
    """As with the host's own root: the server must not walk into its own mount."""
    needs_fuse()
    layers = Layers.make(tmp_path / "root" / "var")
    layers.lowers.append(tmp_path / "root")
    (tmp_path / "root/etc").mkdir()
    (tmp_path / "root/etc/file").write_bytes(b"found")
    inner = layers.base / "inner"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
    (inner / "secret").write_bytes(b"on another filesystem")
    try:
        mounted = Mounted(layers)
        try:
            found = subprocess.run(
                ["find", ".", "-ls"], cwd=mounted.mnt, capture_output=True, timeout=30, check=True
            )
            assert b"./etc/file" in found.stdout
            assert found.stderr == b""
            for name in ("upper", "work", "mnt", "inner"):
                assert os.listdir(mounted.mnt / "var" / name) == [], name
            (mounted.mnt / "var/new").write_bytes(b"x")
            (mounted.mnt / "etc/file").unlink()
        finally:
            mounted.stop()
    finally:
        subprocess.run(["umount", inner], check=True)
    assert (tmp_path / "root/etc/file").read_bytes() == b"found"
    assert sorted(path.name for path in layers.upper.iterdir()) == ["etc", "var"]


def test_a_read_only_union_refuses_every_change(mount: Mount) -> None:
    mounted = mount({b"f": File(b"1"), b"d/x": File(b"2")}, {b"d/y": File(b"3")}, read_only=True)
    root = mounted.mnt
    assert sorted(os.listdir(root / "d")) == ["x", "y"]
    changes: list[Callable[[], object]] = [
        lambda: (root / "new").write_bytes(b""),
        lambda: (root / "f").write_bytes(b""),
        lambda: os.mkdir(root / "e"),
        lambda: (root / "f").unlink(),
        lambda: os.rename(root / "f", root / "g"),
        lambda: os.chmod(root / "f", 0o600),
        lambda: os.setxattr(root / "f", "user.x", b""),
        lambda: os.link(root / "f", root / "g"),
        lambda: os.symlink("f", root / "g"),
        lambda: os.utime(root / "f"),
        lambda: os.truncate(root / "f", 0),
        lambda: os.rmdir(root / "d"),
    ]
    for change in changes:
        refused(errno.EROFS, change)
    assert (root / "f").read_bytes() == b"1"


# -- the daemon ----------------------------------------------------------------------


def test_the_mount_command_leaves_no_pipe_open(make_layers: Callable[..., Layers]) -> None:
    """A container engine reads standard error to its end before it goes on."""
    needs_fuse()
    layers = make_layers()
    places = [os.fspath(path) for path in (layers.lowers[0], layers.upper, layers.mnt)]
    process = subprocess.Popen(
        [sys.executable, "-m", "unionfs", "mount", *places],
        env=dict(os.environ, PYTHONPATH=os.fspath(Path(__file__).parent.parent)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, b"", b"")
        assert is_mounted(layers.mnt)
    finally:
        assert command("umount", os.fspath(layers.mnt)).returncode == 0
        shutil.rmtree(layers.base / "upper.work", ignore_errors=True)


class _Statfs(ctypes.Structure):
    _fields_ = [("f_type", ctypes.c_long), ("rest", ctypes.c_char * 256)]


def test_the_mount_is_recognised_by_its_magic_number(posix: Path) -> None:
    buffer = _Statfs()
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.statfs(os.fsencode(posix), ctypes.byref(buffer)) == 0
    assert buffer.f_type == 0x65735546


def test_statfs_is_the_uppers(posix: Path, shared: Mounted) -> None:
    ours, theirs = os.statvfs(posix), os.statvfs(shared.layers.upper)
    assert (ours.f_blocks, ours.f_bsize) == (theirs.f_blocks, theirs.f_bsize)
    assert ours.f_namemax == 255


def test_sigterm_unmounts(mount: Mount) -> None:
    mounted = mount({b"f": File(b"1")})
    (mounted.mnt / "g").write_bytes(b"2")
    os.kill(mounted.pid, signal.SIGTERM)
    wait_for_end(mounted.pid)
    assert not is_mounted(mounted.mnt)
    assert (mounted.layers.upper / "g").read_bytes() == b"2"


def test_a_killed_daemon_leaves_an_upper_that_mounts_again(mount: Mount) -> None:
    mounted = mount({b"f": File(b"1"), b"d/g": File(b"2")})
    (mounted.mnt / "f").write_bytes(b"changed")
    with opened(mounted.mnt / "d/g", os.O_RDWR) as fd:
        os.write(fd, b"X")
        (mounted.mnt / "d/g").unlink()
        os.kill(mounted.pid, signal.SIGKILL)
        wait_for_end(mounted.pid)
        refused(errno.ENOTCONN, lambda: os.fstat(fd))
    calls.umount2(os.fsencode(mounted.mnt), calls.MNT_DETACH)
    mounted.mount()
    assert (mounted.mnt / "f").read_bytes() == b"changed"
    assert os.listdir(mounted.mnt / "d") == []


def test_a_volatile_upper_is_guarded_after_a_crash(mount: Mount) -> None:
    mounted = mount({b"f": File(b"1")}, arguments=("--volatile",))
    mounted.remount()
    os.kill(mounted.pid, signal.SIGKILL)
    wait_for_end(mounted.pid)
    calls.umount2(os.fsencode(mounted.mnt), calls.MNT_DETACH)
    layers = mounted.layers
    places = [os.fspath(path) for path in (layers.lowers[0], layers.upper, layers.mnt)]
    for options in ((), ("--volatile",)):
        done = command("mount", *options, "--work", os.fspath(layers.work), *places)
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: ")
        assert b"volatile" in done.stderr
        assert not is_mounted(layers.mnt)
    os.rmdir(layers.work / "work/incompat/volatile")
    mounted.mount()
    assert (mounted.mnt / "f").read_bytes() == b"1"


def test_one_upper_or_work_directory_serves_one_union(mount: Mount, tmp_path: Path) -> None:
    mounted = mount({b"f": File(b"1")})
    layers = mounted.layers
    other = Layers.make(tmp_path / "other")
    for upper, work in ((layers.upper, other.work), (other.upper, layers.work)):
        done = command(
            "mount",
            "--work",
            os.fspath(work),
            os.fspath(other.lowers[0]) if other.lowers else os.fspath(layers.lowers[0]),
            os.fspath(upper),
            os.fspath(other.mnt),
        )
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: ")
        assert b"in use" in done.stderr
        assert not is_mounted(other.mnt)
    assert (mounted.mnt / "f").read_bytes() == b"1"


def test_many_processes_at_one_directory(posix: Path, shared: Mounted) -> None:
    root = posix / "crowd"
    root.mkdir()

    def work(number: int) -> None:
        for index in range(60):
            name = root / f"{number}-{index}"
            name.write_bytes(b"%d" % index)
            os.rename(name, root / f"{number}-{index}.new")
            os.link(root / f"{number}-{index}.new", root / f"{number}-{index}.link")
            with contextlib.suppress(FileExistsError):
                os.mkdir(root / f"common{index % 5}")
            if index % 2:
                (root / f"{number}-{index}.new").unlink()
            assert f"{number}-{index}.link" in os.listdir(root)

    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                work(number)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    for pid in pids:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(os.listdir(root)) == 4 * (60 + 30) + 5
    assert not shared.stats()["errors"]


def test_the_space_of_a_deleted_file_is_free_at_once(tmp_path: Path) -> None:
    """The kernel tells us late that nobody has the file open; whoever needs its space waits."""
    needs_fuse()
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", full], check=True)
    try:
        layers = Layers.make(full / "u", {})
        mounted = Mounted(layers)
        try:
            for _ in range(40):
                with pytest.raises(OSError) as caught, open(mounted.mnt / "big", "wb") as file:
                    while True:
                        file.write(bytes(MIB))
                assert caught.value.errno == errno.ENOSPC
                (mounted.mnt / "big").unlink()
                (mounted.mnt / "small").write_bytes(bytes(MIB))
                (mounted.mnt / "small").unlink()
        finally:
            mounted.stop()
    finally:
        subprocess.run(["umount", full], check=True)


def test_roots_mounts_read_ahead_by_a_mebibyte(shared: Mounted) -> None:
    device = os.stat(shared.mnt).st_dev
    window = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert window.read_text() == "1024\n"


def test_a_write_takes_a_new_files_capability(mount: Mount) -> None:
    """The kernel asks before a write; what is known of a new file must not outlive setxattr(2)."""
    top = mount({}).mnt
    path = top / "new"
    path.write_bytes(b"1")
    value = bytes.fromhex("0100000200040000000000000000000000000000")
    os.setxattr(path, "security.capability", value)
    assert os.getxattr(path, "security.capability") == value
    with path.open("ab") as file:
        file.write(b"2")
    assert "security.capability" not in os.listxattr(path)
