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
from tests.layers import Dir, File
from unionfs import formats
from unionfs.sys import calls

_NOBODY = 54_322
_NAME = os.fsdecode(formats.SECOND_ROOT)
pytestmark = pytest.mark.skipif(not calls.has_sys_admin(), reason="needs root: it mounts")


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
        subprocess.run(["umount", self.top], check=True)


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
