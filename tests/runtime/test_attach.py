"""attach: what is typed and said goes both ways, the keys leave it running, sizes are passed on."""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from tests.runtime.conftest import PATIENCE, Pyrun
from tests.runtime.test_lifecycle import wait_for_line

_DEADLINE = PATIENCE


def _until(fd: int, wanted: bytes) -> bytes:
    said = b""
    while wanted not in said:
        assert select.select([fd], [], [], _DEADLINE)[0], said
        data = os.read(fd, 4096)
        assert data, said
        said += data
    return said


def test_a_terminal_is_attached_to_and_left(pyrun: Pyrun) -> None:
    pyrun.start(
        "t", "sh", "-c", "echo up; while read line; do echo got $line $(stty size); done",
        options=("-i", "-t"),
    )  # fmt: skip
    wait_for_line_of_terminal(pyrun, "t")
    for number in range(2):
        master, slave = os.openpty()
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30 + number, 99, 0, 0))
        with subprocess.Popen(
            [*pyrun.command, "attach", "t"],
            env=pyrun.environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        ) as process:  # fmt: skip
            os.close(slave)
            try:
                os.write(master, b"word%d\n" % number)
                said = _until(master, b"got word%d 3%d 99" % (number, number))
                os.write(master, b"\x10\x11")
                assert process.wait(_DEADLINE) == 0, said
            finally:
                process.kill()
        os.close(master)
    assert pyrun("ps", "--format", "{{.Status}}").stdout == "running\n"


def wait_for_line_of_terminal(pyrun: Pyrun, name: str) -> None:
    """As ``wait_for_line``; a terminal ends lines in two characters."""
    with subprocess.Popen(
        [*pyrun.command, "logs", "-f", name], env=pyrun.environment, stdout=subprocess.PIPE
    ) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline().strip() == b"up"
        follower.kill()


def test_pipes_are_attached_to_until_the_end(any_pyrun: Pyrun) -> None:
    any_pyrun.start("p", "sh", "-c", "echo up; read x; echo told $x; exit 7", options=("-i",))
    wait_for_line(any_pyrun, "p")
    done = any_pyrun("attach", "p", stdin="this\n", code=7)
    assert done.stdout == "told this\n"
    assert any_pyrun("attach", "p", code=125).stderr.startswith("error: the container is not")


def test_an_attachment_without_input(any_pyrun: Pyrun) -> None:
    any_pyrun.start("n", "sh", "-c", "echo up; read x; echo end", options=("-i",))
    wait_for_line(any_pyrun, "n")
    with subprocess.Popen(
        [*any_pyrun.command, "attach", "--no-stdin", "n"],
        env=any_pyrun.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        any_pyrun("attach", "n", stdin="\n")
        try:
            assert process.stdout is not None
            process.wait(_DEADLINE)
            assert process.stdout.read() in (b"end\n", b"")
        finally:
            process.kill()


@pytest.mark.parametrize("how", ["end", "kill"])
def test_who_follows_a_log_gets_to_its_end(any_pyrun: Pyrun, how: str) -> None:
    for _ in range(3):
        any_pyrun.start("f", "sh", "-c", "echo up; read x; echo last", options=("-i",))
        with subprocess.Popen(
            [*any_pyrun.command, "logs", "-f", "f"],
            env=any_pyrun.environment,
            stdout=subprocess.PIPE,
        ) as follower:
            assert follower.stdout is not None and follower.stdout.readline() == b"up\n"
            if how == "end":
                any_pyrun("attach", "f", stdin="\n")
                assert follower.communicate(timeout=_DEADLINE)[0] == b"last\n"
            else:
                told = json.loads(any_pyrun("inspect", "f").stdout)[0]["Directory"]
                os.kill(json.loads(Path(told, "state.json").read_text())["supervisor"], 9)
                follower.communicate(timeout=_DEADLINE)
        any_pyrun("rm", "--force", "f")


def test_a_further_command_is_left_at_its_terminal(any_pyrun: Pyrun) -> None:
    any_pyrun.start("x", "sleep", "1000")
    master, slave = os.openpty()
    say = "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done"
    script = f"echo up; sleep 1; {say}; : >/ended; exec sleep 999"
    with subprocess.Popen(
        [*any_pyrun.command, "exec", "-i", "-t", "x", "sh", "-c", script],
        env=any_pyrun.environment, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    ) as process:  # fmt: skip
        os.close(slave)
        try:
            said = _until(master, b"up")
            os.write(master, b"\x10\x11")
            assert process.wait(_DEADLINE) == 0, said
        finally:
            process.kill()
    os.close(master)
    wait = "i=0; until [ -e /ended -o $i = 400 ]; do sleep 0.05; i=$((i+1)); done; [ -e /ended ]"
    any_pyrun("exec", "x", "sh", "-c", wait)
    assert "sleep 999" in any_pyrun("top", "x").stdout
