"""The root under a second name: a mount below which nobody asks for the first root's ACL."""

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
from unionfs.daemon import Daemon, open_union
from unionfs.engine.mounting import MountRequest, open_mounted
from unionfs.options import MountOptions
from unionfs.types import Options

_NOBODY = 54_322
_NAME = os.fsdecode(formats.SECOND_ROOT)


class _Twice:
    """A union mounted at ``first``, its second root bound at ``top``."""

    def __init__(self, place: Path, options: MountOptions) -> None:
        self.first, self.top = Path(options.mountpoint), place / "second"
        for path in (self.first, self.top):
            path.mkdir()
        self.pid = 0
        self.fd = open_mounted(
            MountRequest(
                mountpoint=options.mountpoint, source="pyunion", fstype="fuse.pyunion",
                read_only=False, suid=True, dev=True, noexec=False, atime=False, allow_other=True,
            )
        )  # fmt: skip
        self._serve(options)
        subprocess.run(["mount", "--bind", self.first / _NAME, self.top], check=True)

    def _serve(self, options: MountOptions) -> None:
        self.pid = os.fork()
        if not self.pid:
            try:
                union = open_union(options)
                Daemon(options, union, self.fd, None, second_root=True).serve(None)
            finally:
                os._exit(0)
        os.close(self.fd)

    def counts(self) -> dict[str, int]:
        """Requests so far, by name."""
        counts: dict[str, int] = json.loads(os.getxattr(self.top, "user.pyunion.stats"))["requests"]
        return counts

    def close(self) -> None:
        """Unmount both; the daemon ends of it."""
        for path in (self.top, self.first):
            subprocess.run(["umount", path], check=False)
        if self.pid:
            assert os.waitpid(self.pid, 0)[1] == 0


@pytest.fixture
def twice(make_layers: MakeLayers, tmp_path: Path) -> Iterator[_Twice]:
    needs_fuse()
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts")
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    layers = make_layers(
        {b"d": Dir(), b"d/f": File(b"lower"), b"g": File(b"other")}, {b"low": File(b"lowest")}
    )
    options = MountOptions(
        union=Options(
            lowers=tuple(os.fsencode(path) for path in layers.lowers),
            upper=os.fsencode(layers.upper), work=os.fsencode(layers.work),
        ),
        mountpoint=str(tmp_path / "first"),
    )  # fmt: skip
    mounted = _Twice(tmp_path, options)
    try:
        yield mounted
    finally:
        mounted.close()


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


def test_paths_of_those_who_do_not_own_the_root_cost_no_message(twice: _Twice) -> None:
    _as_nobody(twice.top / "d/f", 1)
    before = twice.counts()
    _as_nobody(twice.top / "d/f", 100)
    after = twice.counts()
    more = {name: count - before.get(name, 0) for name, count in after.items()}
    assert sum(more.values()) < 20, more


def test_changes_in_the_second_root_are_changes_of_the_union(twice: _Twice) -> None:
    top = twice.top
    assert sorted(os.listdir(top)) == ["d", "g", "low"]
    assert os.stat(top).st_ino == 1 and stat.S_ISDIR(os.stat(top).st_mode)
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
    os.sync()
    assert sorted(os.listdir(twice.first)) == ["back", "d", "g", "link", "twin"]


def test_it_is_looked_up_once(twice: _Twice) -> None:
    for path in (twice.top / _NAME, twice.top / "d" / _NAME):
        with pytest.raises(OSError, match="No such file") as told:
            os.stat(path)
        assert told.value.errno == errno.ENOENT
    with pytest.raises(PermissionError):
        os.mkdir(twice.top / _NAME)
    assert _NAME not in os.listdir(twice.top)


def test_nobody_else_is_shown_it(make_layers: MakeLayers, tmp_path: Path) -> None:
    needs_fuse()
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts")
    layers = make_layers({b"f": File(b"x")})
    point = tmp_path / "m"
    point.mkdir()
    command = ["-m", "unionfs", "mount", str(layers.lowers[0]), str(layers.upper), str(point)]
    subprocess.run([sys.executable, *command], check=True)
    try:
        assert not (point / _NAME).exists()
    finally:
        subprocess.run(["umount", point], check=True)
