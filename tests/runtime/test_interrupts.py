"""``run`` that is interrupted, or whose processes die, before its container is there."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.runtime.conftest import PATIENCE, Pyrun


@contextmanager
def _running(caller: Pyrun, *words: str) -> Iterator[subprocess.Popen[str]]:
    """``run --rm`` with a session of its own, as from a terminal."""
    base = ("run", "--rm", "--network", "none", *words)
    with subprocess.Popen(
        [*caller.command, *base],
        env=caller.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        yield process


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _ended(fd: int) -> None:
    """The process of a pidfd is gone, or will be at once."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(PATIENCE * 1000)
    os.close(fd)


def _nothing_left(caller: Pyrun) -> None:
    root = caller.place / "pyrun"
    assert os.listdir(root / "containers") == os.listdir(root / "names") == []


@pytest.fixture
def planning(any_pyrun: Pyrun) -> Iterator[subprocess.Popen[str]]:
    """A ``run`` whose container has a directory, and that waits for a file of its options."""
    fifo = any_pyrun.place / "environment"
    os.mkfifo(fifo)
    fifo.chmod(0o644)
    words = ("--env-file", str(fifo), "--rootfs", str(any_pyrun.rootfs), "true")
    with _running(any_pyrun, *words) as process:
        writer = os.open(fifo, os.O_WRONLY)
        assert len(os.listdir(any_pyrun.place / "pyrun/containers")) == 1
        yield process
        os.close(writer)


@pytest.mark.parametrize("whole", [False, True], ids=["the-command", "its-group"])
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=lambda n: n.name
)
def test_an_interrupted_run_takes_back_what_it_has_made(
    any_pyrun: Pyrun, planning: subprocess.Popen[str], number: signal.Signals, whole: bool
) -> None:
    (os.killpg if whole else os.kill)(planning.pid, number)
    assert planning.communicate(timeout=PATIENCE) == ("", "")
    assert planning.returncode == 128 + number
    _nothing_left(any_pyrun)


def test_a_run_whose_caller_dies_takes_back_what_it_has_made(
    any_pyrun: Pyrun, planning: subprocess.Popen[str]
) -> None:
    child = os.pidfd_open(_child_of(planning.pid))
    planning.kill()
    _ended(child)
    _nothing_left(any_pyrun)


def test_a_run_whose_child_dies_ends_as_that_did(
    any_pyrun: Pyrun, planning: subprocess.Popen[str]
) -> None:
    os.kill(_child_of(planning.pid), signal.SIGKILL)
    planning.communicate(timeout=PATIENCE)
    assert planning.returncode == 128 + signal.SIGKILL
    assert any_pyrun("ps", "-aq").stdout.count("\n") == 1
    any_pyrun("rm", "--all")
    assert any_pyrun("ps", "-aq").stdout == ""
    _nothing_left(any_pyrun)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_a_pull_ends_with_its_command(any_pyrun: Pyrun, number: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as registry:
        registry.settimeout(PATIENCE)
        image = f"127.0.0.1:{registry.getsockname()[1]}/none"
        with _running(any_pyrun, image, "true") as process:
            connection, _ = registry.accept()
            with connection:
                connection.settimeout(PATIENCE)
                process.send_signal(number)
                while connection.recv(1 << 16):
                    pass  # until who pulls is gone
            process.communicate(timeout=PATIENCE)
    assert process.returncode == (130 if number == signal.SIGINT else -number)


def test_errors_of_the_child_are_the_commands(any_pyrun: Pyrun) -> None:
    done = any_pyrun("run", "--rootfs", "/nonesuch", "true", code=125)
    assert done.stderr == "error: --rootfs /nonesuch: No such file or directory\n"
    assert "usage: pyrun run" in any_pyrun("run", "--help").stdout
    words = ("run", "--dry-run", "--network", "none", "--rootfs", str(any_pyrun.rootfs), "true")
    assert "execute: true" in any_pyrun(*words).stdout


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_the_caller_has_closed_stay_so(any_pyrun: Pyrun, closed: str) -> None:
    words = ("run", "-i", "--rm", "--network", "none", "--rootfs", str(any_pyrun.rootfs))
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *any_pyrun.command, *words,
         "sh", "-c", "cat; echo said; exit 4"],
        env=any_pyrun.environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert (done.stdout, done.stderr) == ("" if " >&-" in closed else "said\n", "")


def test_hints_of_the_store_name_the_command_that_was_called(any_pyrun: Pyrun) -> None:
    assert any_pyrun("rmi", "nosuch", code=1).stderr.endswith("hint: pyrun images\n")
    words = ("run", "--pull", "never", "--network", "none", "nosuch", "true")
    assert any_pyrun(*words, code=125).stderr.endswith("hint: pyrun images\n")


@pytest.mark.parametrize("network", ["none:x", "host:y", "pasta:--tcp"])
def test_a_network_whose_options_would_be_ignored_is_refused(
    any_pyrun: Pyrun, network: str
) -> None:
    said = any_pyrun("run", "--network", network, "--rootfs", "/", "true", code=125).stderr
    assert said.startswith(f"error: --network {network}: ")


def test_a_start_may_be_larger_than_a_message(any_pyrun: Pyrun) -> None:
    words = [f"{number:05}{'x' * 1000}" for number in range(500)]
    assert any_pyrun.out("sh", "-c", "echo $#", "sh", *words) == "500\n"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=lambda n: n.name
)
def test_signals_that_are_not_proxied_end_the_command_alone(
    any_pyrun: Pyrun, number: signal.Signals
) -> None:
    words = ("--sig-proxy=false", "--name", "alone", "--rootfs", str(any_pyrun.rootfs))
    with _running(any_pyrun, *words, "sh", "-c", "echo up; exec sleep 1000") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
        assert process.returncode == (130 if number == signal.SIGINT else -number)
    said = any_pyrun("inspect", "alone").stdout
    assert '"running"' in said, said
    any_pyrun("rm", "--force", "alone")


def test_an_interrupt_ends_a_further_command(any_pyrun: Pyrun) -> None:
    """A terminal sends it to all that exec consists of on this side."""
    any_pyrun.start("x", "sleep", "1000")
    for _ in range(3):
        with subprocess.Popen(
            [*any_pyrun.command, "exec", "x", "sh", "-c", "echo up; exec sleep 999"],
            env=any_pyrun.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None and process.stdout.readline() == b"up\n"
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(PATIENCE) == 130, process.stderr
            assert process.stderr is not None and process.stderr.read() == b""
    left = [line for line in any_pyrun("top", "x").stdout.splitlines() if "[sleep]" in line]
    assert "sleep 999" not in any_pyrun("top", "x").stdout and not left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_further_command_interrupted_at_any_moment(
    any_pyrun: Pyrun, number: signal.Signals
) -> None:
    """Either it has not begun, or it gets the signal: none goes on without its caller."""
    any_pyrun.start("x", "sleep", "1000")
    for step in range(16):
        with subprocess.Popen(
            [*any_pyrun.command, "exec", "x", "sleep", "777"], env=any_pyrun.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        ) as process:  # fmt: skip
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            if step % 2:  # from the fork on it matters, and up to there it is Python that begins
                while not children.read_text():
                    time.sleep(0.0005)
            time.sleep(step * 0.002)
            process.send_signal(number)
            try:
                process.wait(20)
            finally:
                process.kill()
    assert "sleep 777" not in any_pyrun("top", "x").stdout


def test_a_further_command_whose_output_nobody_reads(any_pyrun: Pyrun) -> None:
    """When it is over, a signal is for who still has its output."""
    any_pyrun.start("x", "sleep", "1000")
    with subprocess.Popen(
        [*any_pyrun.command, "exec", "x", "sh", "-c", "head -c 100000 /dev/zero; echo up >&2"],
        env=any_pyrun.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        (joiner,) = _children_of(process)
        end = time.monotonic() + PATIENCE
        while "\nState:\tZ" not in Path(f"/proc/{joiner}/status").read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_a_further_command_that_waits_to_be_read_ends_by_a_second_signal(any_pyrun: Pyrun) -> None:
    any_pyrun.start("x", "sleep", "1000")
    with subprocess.Popen(
        [*any_pyrun.command, "exec", "x", "sh", "-c", "echo up >&2; exec head -c 999999 /dev/zero"],
        env=any_pyrun.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None and process.stderr.readline() == b"up\n"
        end = time.monotonic() + PATIENCE
        while process.poll() is None:
            assert time.monotonic() < end
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        assert process.returncode == 128 + signal.SIGINT


def _children_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Once there are some."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (text := children.read_text()):
        time.sleep(0.005)
    return [int(word) for word in text.split()]


@pytest.mark.parametrize("detach", [(), ("-d",)])
def test_a_further_command_that_cannot_begin(any_pyrun: Pyrun, detach: tuple[str, ...]) -> None:
    """Its program is not to be read: an interrupt ends it all the same."""
    any_pyrun.start("x", "sleep", "1000")
    (path,) = (any_pyrun.place / "pyrun/containers").glob("*/state.json")
    union = json.loads(path.read_text())["union_pid"]
    os.kill(union, signal.SIGSTOP)
    try:
        with subprocess.Popen(
            [*any_pyrun.command, "exec", *detach, "x", "sleep", "776"], env=any_pyrun.environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        ) as process:  # fmt: skip
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while not children.read_text():
                time.sleep(0.01)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 130
    finally:
        os.kill(union, signal.SIGCONT)
    assert "sleep 776" not in any_pyrun("top", "x").stdout


def test_interrupts_at_any_moment(any_pyrun: Pyrun) -> None:
    """It ends in the usual way, or the container gets the signal; nothing is left."""
    for step in range(24):
        with _running(any_pyrun, "--rootfs", str(any_pyrun.rootfs), "sleep", "1000") as process:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            while not children.read_text():  # before that it is Python that begins
                time.sleep(0.001)
            time.sleep(step * 0.004)
            os.killpg(process.pid, signal.SIGINT)
            said = process.communicate(timeout=PATIENCE)[1]
            assert process.returncode == 130, (step, process.returncode, said)
            assert said in ("", "error: interrupted before its start\n"), (step, said)
    any_pyrun("ps", "-a")
    _nothing_left(any_pyrun)


def test_an_interrupt_while_another_has_the_volumes(any_pyrun: Pyrun) -> None:
    any_pyrun("run", "--rm", "-v", "x:/x", "--network", "none", "--rootfs", str(any_pyrun.rootfs),
              "true")  # fmt: skip
    volumes = os.open(any_pyrun.place / "pyrun/volumes", os.O_RDONLY)
    fcntl.flock(volumes, fcntl.LOCK_EX)
    try:
        words = ("-v", "/x", "--rootfs", str(any_pyrun.rootfs), "true")
        with _running(any_pyrun, *words) as process:
            _until_it_holds(any_pyrun)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(PATIENCE) == 130
    finally:
        os.close(volumes)
    _nothing_left(any_pyrun)


def _until_it_holds(caller: Pyrun) -> None:
    end = time.monotonic() + PATIENCE
    while not os.listdir(caller.place / "pyrun/containers"):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_signal_between_two_starts(any_pyrun: Pyrun) -> None:
    """There is no process to get it: what it would have ended is not begun again."""
    with subprocess.Popen(
        [*any_pyrun.command, "run", "--restart", "always", "--network", "none", "--name", "r",
         "--rootfs", str(any_pyrun.rootfs), "false"], env=any_pyrun.environment,
    ) as process:  # fmt: skip
        end = time.monotonic() + PATIENCE
        while "restarting" not in any_pyrun("ps", "-a", "--format", "{{.Status}}").stdout:
            assert time.monotonic() < end
            time.sleep(0.02)
        process.terminate()
        process.wait(PATIENCE)
    end = time.monotonic() + PATIENCE
    while any_pyrun("ps", "-a", "--format", "{{.Status}}").stdout != "exited\n":
        assert time.monotonic() < end
        time.sleep(0.05)
    any_pyrun("rm", "r")
