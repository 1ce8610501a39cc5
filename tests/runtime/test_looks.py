"""``cp`` and ``export`` of a container that does not run, beside other commands."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

from runtime.state import Containers, start_time
from tests.runtime.conftest import Pyrun


def _stopped(pyrun: Pyrun) -> None:
    single = ("--userns", "single") if pyrun.kind == "single" else ()
    base = ("run", "--name", "c", "--network", "none", *single, "--rootfs", str(pyrun.rootfs))
    pyrun(*base, "sh", "-c", "head -c 4000000 /dev/zero >/big")


def _exporting(pyrun: Pyrun) -> subprocess.Popen[bytes]:
    """An export that nobody reads on."""
    process = subprocess.Popen(
        [*pyrun.command, "export", "c"],
        env=pyrun.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.read(1)
    return process


def test_an_export_that_is_held_up_holds_up_nobody_else(pyrun: Pyrun) -> None:
    _stopped(pyrun)
    with _exporting(pyrun) as process:
        for words in (("start", "c"), ("rm", "c"), ("cp", "c:/big", "-"), ("restart", "c")):
            said = pyrun(*words, code=None)
            assert said.returncode in (1, 125)
            assert f"its files are being copied by process {process.pid}" in said.stderr
        assert pyrun("ps", "-a", "--format", "{{.Status}}").stdout == "exited\n"
        assert pyrun("stop", "c").stdout == "c\n"
        pyrun("system", "prune", "--force")
        assert pyrun("ps", "-a", "--format", "{{.Name}}").stdout == "c\n"
        pyrun("rm", "--force", "c")
        assert process.wait() == 128 + signal.SIGTERM
    assert os.listdir(pyrun.place / "pyrun/containers") == []


def test_after_an_export_that_was_killed_the_container_starts(any_pyrun: Pyrun) -> None:
    _stopped(any_pyrun)
    with _exporting(any_pyrun) as process:
        process.kill()
        process.wait()
    any_pyrun("start", "c")
    assert any_pyrun("wait", "c").stdout == "0\n"


def test_a_number_that_was_given_out_again_is_nobody_who_looks(any_pyrun: Pyrun) -> None:
    """The lock may outlive who took it by a moment; its number may be another's by then."""
    _stopped(any_pyrun)
    container = Containers(str(any_pyrun.place / "pyrun")).find("c")
    lock = container.lock(looking=True)
    assert container.looked_into() == os.getpid()
    os.pwrite(lock, b"%d %d" % (os.getpid(), start_time(os.getpid()) - 1), 0)
    assert container.looked_into() == 0
    os.ftruncate(lock, 0)
    assert container.looked_into() == 0
    os.close(lock)
    assert not container.supervised()


def test_cp_leaves_alone_what_is_no_file(any_pyrun: Pyrun, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    pipe.chmod(0o666)
    mine = tmp_path / "mine"
    mine.write_text("x")
    mine.chmod(0o604)
    out = tmp_path / "out"
    out.mkdir(mode=0o777)
    out.chmod(0o777)
    os.mkfifo(out / "link")
    any_pyrun.start(
        "c", "sh", "-c", "ln -s /etc/passwd /root/link; exec sleep 1000",
        options=("-v", f"{pipe}:/dev/mine"),
    )  # fmt: skip
    any_pyrun("exec", "c", "sh", "-c", "until [ -h /root/link ]; do :; done")
    before = os.stat(pipe)
    for source, target in (
        (str(mine), "c:/dev/mine"),
        ("c:/etc/passwd", str(pipe)),
        ("c:/root/link", str(out / "link")),
        ("c:/root/.", str(out)),
    ):
        done = any_pyrun("cp", source, target, code=None)
        assert done.returncode == 1 and "neither a file nor a directory" in done.stderr, source
    assert os.stat(pipe) == before and stat.S_ISFIFO(os.lstat(out / "link").st_mode)


def test_cp_of_hard_links_can_be_repeated(any_pyrun: Pyrun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o777)
    script = "mkdir /root/d; echo x >/root/d/a; ln /root/d/a /root/d/b; exec sleep 1000"
    any_pyrun.start("c", "sh", "-c", script)
    any_pyrun("exec", "c", "sh", "-c", "until [ -e /root/d/b ]; do :; done")
    for _ in range(2):
        any_pyrun("cp", "c:/root/d", str(out))
        assert (out / "d/a").stat().st_ino == (out / "d/b").stat().st_ino
