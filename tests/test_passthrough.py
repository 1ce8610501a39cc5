"""Files of the upper are the kernel's to read and write; files of lowers must not be."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs_fuse
from tests.helpers import Mounted
from tests.layers import File, Layers
from tests.test_mount import opened, passthrough_works

pytestmark = pytest.mark.skipif(not passthrough_works(), reason="no FUSE passthrough here")

MIB = 1 << 20
COMMAND = (sys.executable, "-m", "unionfs")


@pytest.fixture
def passed(tmp_path: Path) -> Iterator[Mounted]:
    needs_fuse()
    layers = Layers.make(tmp_path / "u", {b"f": File(b"lower"), b"big": File(b"b" * MIB)})
    mounted = Mounted(layers, "-o", "passthrough")
    try:
        yield mounted
    finally:
        mounted.stop()
        layers.remove()


def requests(mounted: Mounted) -> dict[str, int]:
    """Requests so far, by name."""
    stats = mounted.stats()
    assert "passthrough" in stats["features"]
    found: dict[str, int] = stats["requests"]
    return found


def test_new_data_goes_past_the_daemon(passed: Mounted) -> None:
    data = os.urandom(MIB)
    before = requests(passed)
    (passed.mnt / "new").write_bytes(data)
    assert (passed.mnt / "new").read_bytes() == data
    with open(passed.mnt / "new", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:5] = b"mapped"[:5]
    assert (passed.mnt / "new").read_bytes() == b"mappe" + data[5:]
    after = requests(passed)
    assert after.get("WRITE", 0) == before.get("WRITE", 0)
    assert after.get("READ", 0) == before.get("READ", 0)
    assert (passed.layers.upper / "new").read_bytes() == b"mappe" + data[5:]


def test_nothing_written_reaches_a_lower_that_is_being_read(passed: Mounted) -> None:
    """The kernel reopens what is registered with the flags of the caller."""
    path, below = passed.mnt / "f", passed.layers.lowers[0] / "f"
    with opened(path, os.O_RDONLY) as reader, opened(path, os.O_RDWR) as writer:
        assert os.read(reader, 100) == b"lower"
        assert os.pwrite(writer, b"above", 0) == 5
        assert os.pread(reader, 100, 0) == b"above"
        with opened(path, os.O_RDWR | os.O_APPEND) as third:
            os.write(third, b" it")
        assert os.pread(writer, 100, 0) == b"above it"
    assert below.read_bytes() == b"lower"
    with opened(path, os.O_RDWR) as alone:
        os.pwrite(alone, b"passed", 0)
    assert path.read_bytes() == b"passedit"
    assert (passed.layers.upper / "f").read_bytes() == b"passedit"
    assert below.read_bytes() == b"lower"


def test_pages_read_before_the_copy_up_are_not_shown_after_it(passed: Mounted) -> None:
    path = passed.mnt / "big"
    assert path.read_bytes() == b"b" * MIB
    with opened(path, os.O_RDWR) as fd:
        os.pwrite(fd, b"changed", 5000)
    with opened(path, os.O_RDONLY) as fd:
        assert os.pread(fd, 7, 5000) == b"changed"
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[5000:5007] == b"changed"


def test_a_file_without_a_name_gets_one_and_is_opened_again(passed: Mounted) -> None:
    with opened(passed.mnt, os.O_TMPFILE | os.O_RDWR) as fd:
        os.write(fd, b"one")
        os.link(f"/proc/self/fd/{fd}", passed.mnt / "named", src_dir_fd=fd, follow_symlinks=True)
        with opened(passed.mnt / "named", os.O_RDWR) as again:
            os.pwrite(again, b"two", 3)
        assert os.pread(fd, 100, 0) == b"onetwo"
    assert (passed.mnt / "named").read_bytes() == b"onetwo"


def test_what_was_opened_is_given_up(passed: Mounted) -> None:
    for round_ in range(3):
        with opened(passed.mnt / "n", os.O_CREAT | os.O_RDWR) as fd:
            os.unlink(passed.mnt / "n")
            os.write(fd, b"%d" % round_)
            assert os.pread(fd, 10, 0) == b"%d" % round_
    assert set(os.listdir(passed.mnt)) == {"big", "f"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "passthrough", "-o", "writeback=1"], "exclude each other"),
        (["-o", "passthrough", "--engine", "pyfuse3"], "needs the direct engine"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    layers = Layers.make(tmp_path / "u", {b"f": File(b"")})
    place = [os.fspath(layers.lowers[0]), os.fspath(layers.upper), os.fspath(layers.mnt)]
    done = subprocess.run(
        [*COMMAND, "mount", *words, *place], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert said in done.stderr and "Traceback" not in done.stderr


def test_it_is_refused_in_a_user_namespace(tmp_path: Path) -> None:
    layers = Layers.make(tmp_path / "u", {b"f": File(b"")})
    place = [os.fspath(layers.lowers[0]), os.fspath(layers.upper), os.fspath(layers.mnt)]
    done = subprocess.run(
        ["unshare", "-Urm", *COMMAND, "mount", "-o", "passthrough", *place],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: passthrough needs root outside of user namespaces")
