"""What goes to terminals and into files."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from runtime.cli.files import _keep
from runtime.cli.output import table
from runtime.errors import RunError
from tests.runtime.conftest import Pyrun
from unionfs.errors import printable, show


def test_no_terminal_obeys_what_an_image_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert printable("é ü 漢 ok") == "é ü 漢 ok"
    assert printable("a\x1b[2J\r\nb\x9b\u202e") == "a\\x1b[2J\\r\\nb\\x9b\\u202e"
    table(("COMMAND",), [("sh \x1b]0;title\x07",)])
    show(RunError("no \x1b[31m", "\x07"))
    told = capsys.readouterr()
    assert "\x1b" not in told.out + told.err and "\x07" not in told.out + told.err
    assert told.err == "error: no \\x1b[31m\nhint: \\x07\n"


def test_a_command_is_listed_in_one_line(any_pyrun: Pyrun) -> None:
    any_pyrun.start("c", "sh", "-c", "sleep 100 # \x1b[2J\nx")
    told = any_pyrun("ps").stdout
    assert "\x1b" not in told and len(told.splitlines()) == 2


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "there.tar"
    target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(target)

    def fail() -> None:
        raise RunError("cut off")

    def stream(data: bytes) -> int:
        read, write = os.pipe()
        os.write(write, data)
        os.close(write)
        return read

    with open(stream(b"new"), "rb") as source, pytest.raises(RunError, match="cut off"):
        _keep(source, str(link), fail)
    assert target.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == ["link", "there.tar"]
    with open(stream(b"new"), "rb") as source:
        _keep(source, str(link), lambda: None)
    assert target.read_bytes() == b"new" and link.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["link", "there.tar"]


def test_an_export_of_nothing_leaves_the_file_alone(any_pyrun: Pyrun) -> None:
    target = any_pyrun.place / "kept"
    target.write_text("old")
    any_pyrun("export", "--output", str(target), "nosuch", code=1)
    assert target.read_text() == "old"


def test_what_cannot_be_written_is_told(any_pyrun: Pyrun) -> None:
    base = ("run", "--rm", "--network", "none", "--rootfs", str(any_pyrun.rootfs))
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*any_pyrun.command, *base, "sh", "-c", "echo hello"],
            env=any_pyrun.environment, stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 125
    assert done.stderr == "error: standard output: No space left on device\n"


def test_a_reader_that_is_slow_gets_all(any_pyrun: Pyrun) -> None:
    """What we write to may have been made non-blocking by others."""
    base = ("run", "--rm", "--network", "none", "--rootfs", str(any_pyrun.rootfs))
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write, False)
    with subprocess.Popen(
        [*any_pyrun.command, *base, "head", "-c", "1000000", "/dev/zero"],
        env=any_pyrun.environment, stdout=write,
    ) as process:  # fmt: skip
        os.close(write)
        got = 0
        while data := os.read(read, 1 << 14):
            got += len(data)
            time.sleep(0.001)
    os.close(read)
    assert (got, process.returncode) == (1_000_000, 0)
