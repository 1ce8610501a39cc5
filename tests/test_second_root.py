"""The root under a second name: below it nobody asks for the first root's ACL."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeLayers, needs_fuse
from tests.helpers import wait_for_end
from tests.layers import Dir, File
from unionfs import formats
from unionfs.sys import calls

_NOBODY = 54_322
_NAME = os.fsdecode(formats.SECOND_ROOT)
pytestmark = pytest.mark.skipif(not calls.has_sys_admin(), reason="needs root: it mounts")


def _unmount(top: Path) -> None:
    """Until its daemon has ended."""
    pid = int(json.loads(os.getxattr(top, "user.pyunion.stats"))["pid"])
    subprocess.run(["umount", top], check=True)
    wait_for_end(pid)


class _Mount:
    """A union mounted with options; ``upper`` is its upper."""

    def __init__(self, make_layers: MakeLayers, *words: str) -> None:
        needs_fuse()
        layers = make_layers(
            {b"d": Dir(), b"d/f": File(b"lower"), b"g": File(b"other")}, {b"low": File(b"lowest")}
        )
        self.top, self.upper = layers.mnt, layers.upper
        for path in (self.top, *self.top.parents):
            if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o001:
                path.chmod(path.stat().st_mode | 0o011)
        lowers = ":".join(map(str, layers.lowers))
        command = [sys.executable, "-m", "unionfs", "mount", *words]
        subprocess.run([*command, lowers, layers.upper, self.top], check=True)

    def counts(self) -> dict[str, int]:
        """Requests so far, by name."""
        counts: dict[str, int] = json.loads(os.getxattr(self.top, "user.pyunion.stats"))["requests"]
        return counts

    def root(self) -> str:
        """What of its filesystem is mounted (proc_pid_mountinfo(5), field 4)."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        (fields,) = [line.split() for line in lines if line.split()[4] == str(self.top)]
        return fields[3]

    def close(self) -> None:
        """Unmount; the daemon ends of it."""
        _unmount(self.top)


@pytest.fixture
def mounted(make_layers: MakeLayers) -> Iterator[_Mount]:
    made = _Mount(make_layers)
    try:
        if made.root() != f"/{_NAME}":
            pytest.skip("no copies of detached mounts before Linux 6.15")
        yield made
    finally:
        made.close()


def _as_nobody(path: Path, times: int) -> None:
    pid = os.fork()
    if not pid:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
            for _ in range(times):
                os.stat(path)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def test_paths_of_those_who_do_not_own_the_root_cost_no_message(mounted: _Mount) -> None:
    _as_nobody(mounted.top / "d/f", 1)
    before = mounted.counts()
    _as_nobody(mounted.top / "d/f", 100)
    after = mounted.counts()
    more = {name: count - before.get(name, 0) for name, count in after.items()}
    assert sum(more.values()) < 20, more


def test_an_acl_of_the_root_is_obeyed_and_its_changes_too(mounted: _Mount) -> None:
    os.chmod(mounted.top, 0o700)
    subprocess.run(["setfacl", "-m", f"u:{_NOBODY}:x", mounted.top], check=True)
    _as_nobody(mounted.top / "d/f", 1)
    subprocess.run(["setfacl", "-b", mounted.top], check=True)
    os.chmod(mounted.top, 0o700)
    with pytest.raises(AssertionError):
        _as_nobody(mounted.top / "d/f", 1)


def test_changes_in_the_second_root_are_changes_of_the_union(mounted: _Mount) -> None:
    top = mounted.top
    assert os.stat(top).st_ino == 1 and stat.S_ISDIR(os.stat(top).st_mode)
    assert sorted(os.listdir(top)) == ["d", "g", "low"]
    assert os.stat(top / "d/..").st_ino == 1
    (top / "new").write_text("1")
    os.rename(top / "new", top / "d/moved")
    os.rename(top / "d/moved", top / "back")
    os.link(top / "back", top / "twin")
    os.symlink("back", top / "link")
    os.mkdir(top / "dir")
    os.rename(top / "dir", top / "dir2")
    os.rmdir(top / "dir2")
    os.unlink(top / "low")
    os.chmod(top, 0o751)
    os.setxattr(top, "user.x", b"1")
    assert sorted(os.listdir(top)) == ["back", "d", "g", "link", "twin"]
    assert (top / "link").read_text() == "1" and os.stat(top / "twin").st_nlink == 2
    assert os.stat(top).st_mode & 0o7777 == 0o751 and os.getxattr(top, "user.x") == b"1"
    assert (mounted.upper / "back").read_text() == "1"
    assert stat.S_ISCHR(os.lstat(mounted.upper / "low").st_mode)


def test_it_is_looked_up_once(mounted: _Mount) -> None:
    for path in (mounted.top / _NAME, mounted.top / "d" / _NAME):
        with pytest.raises(FileNotFoundError):
            os.stat(path)
    with pytest.raises(OSError, match="not permitted") as told:
        os.mkdir(mounted.top / _NAME)
    assert told.value.errno == errno.EPERM
    assert _NAME not in os.listdir(mounted.top)


def test_without_acls_there_is_none(make_layers: MakeLayers) -> None:
    made = _Mount(make_layers, "-o", "noacl")
    try:
        assert made.root() == "/"
        assert not (made.top / _NAME).exists()
        assert (made.top / "d/f").read_text() == "lower"
    finally:
        made.close()


def test_nothing_is_mounted_before_it_is_served(make_layers: MakeLayers, tmp_path: Path) -> None:
    """An engine that cannot begin leaves the directory as it was."""
    needs_fuse()
    layers = make_layers({b"f": File(b"x")})
    (layers.mnt / "beneath").write_text("1")
    command = [sys.executable, "-m", "unionfs", "mount", "-o", "passthrough", "--foreground"]
    before = Path("/proc/self/mountinfo").read_text()
    with subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", *command,
         layers.lowers[0], layers.upper, layers.mnt],
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1 and said.startswith("error: "), said
    assert Path("/proc/self/mountinfo").read_text() == before
    assert os.listdir(layers.mnt) == ["beneath"]


@pytest.mark.parametrize("fault", [errno.ENOSYS, errno.EACCES])
def test_where_the_newer_calls_are_forbidden_mount_is_called(
    make_layers: MakeLayers, fault: int
) -> None:
    script = f"""
import sys, unionfs.sys.mounts as mounts
def refuse(*_):
    raise OSError({fault}, "refused")
mounts.new_mount = refuse
from unionfs.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    needs_fuse()
    layers = make_layers({b"f": File(b"x")})
    words = ["mount", str(layers.lowers[0]), str(layers.upper), str(layers.mnt)]
    subprocess.run([sys.executable, "-c", script, *words], check=True)
    try:
        assert (layers.mnt / "f").read_text() == "x"
    finally:
        _unmount(layers.mnt)


def test_without_copies_of_detached_mounts_nobody_finds_the_name(make_layers: MakeLayers) -> None:
    script = """
import sys, unionfs.sys.mounts as mounts
real = mounts.open_tree
def refuse(*words):
    import os
    os.close(real(*words))
    raise OSError(22, "looked up, not copied")
mounts.open_tree = refuse
from unionfs.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    needs_fuse()
    layers = make_layers({b"d": Dir(), b"d/f": File(b"x")})
    words = ["mount", str(layers.lowers[0]), str(layers.upper), str(layers.mnt)]
    subprocess.run([sys.executable, "-c", script, *words], check=True)
    try:
        assert not (layers.mnt / _NAME).exists()
        assert (layers.mnt / "d/f").read_text() == "x"
        os.rename(layers.mnt / "d/f", layers.mnt / "g")
        assert (layers.mnt / "g").read_text() == "x" and not (layers.mnt / "d/f").exists()
    finally:
        _unmount(layers.mnt)


def test_a_long_source_is_taken(make_layers: MakeLayers) -> None:
    made = _Mount(make_layers, "-o", f"fsname={'x' * 300}")
    try:
        assert "x" * 300 in Path("/proc/self/mountinfo").read_text()
    finally:
        made.close()


def test_who_has_gone_leaves_no_mount(make_layers: MakeLayers) -> None:
    """The command is killed before the daemon is ready: it mounts nothing, or it serves."""
    needs_fuse()
    layers = make_layers({b"f": File(b"x")})
    script = """
import os, signal, sys
from unionfs import daemon
wait = daemon.Event.wait
def slow(self, seconds=None):
    os.kill(int(os.environ["CALLER"]), signal.SIGKILL)
    while os.getppid() == int(os.environ["CALLER"]):
        pass
    return wait(self, seconds)
daemon.Event.wait = slow
os.environ["CALLER"] = str(os.getpid())
from unionfs.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
    words = ["mount", str(layers.lowers[0]), str(layers.upper), str(layers.mnt)]
    assert subprocess.run([sys.executable, "-c", script, *words]).returncode == -9
    locked = layers.work / "work"
    for _ in range(2000):  # until the daemon has gone, which holds the locks
        done = subprocess.run(
            [sys.executable, "-m", "unionfs", *words], capture_output=True, text=True
        )
        if done.returncode == 0:
            break
        assert "in use" in done.stderr or "locked" in done.stderr, done.stderr
    assert done.returncode == 0, (done, locked)
    try:
        assert (layers.mnt / "f").read_text() == "x"
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        assert len([line for line in lines if line.split()[4] == str(layers.mnt)]) == 1
    finally:
        _unmount(layers.mnt)
