"""Containers that go on: exec, logs, stop, restart, and what is left when helpers die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.runtime.conftest import PATIENCE, Pyrun

_WAIT = ("sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 60 & wait; done")


def _state(pyrun: Pyrun, name: str) -> dict[str, object]:
    item: dict[str, object] = json.loads(pyrun("inspect", name).stdout)[0]
    return item


def wait_for_line(pyrun: Pyrun, name: str) -> None:
    """Wait until the container has said something: its command runs."""
    with subprocess.Popen(
        [*pyrun.command, "logs", "-f", name],
        env=pyrun.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "up\n"
        follower.kill()


def test_from_start_to_removal(pyrun: Pyrun) -> None:
    container = pyrun.start("one", *_WAIT)
    wait_for_line(pyrun, "one")
    assert pyrun("ps", "-q", "--no-trunc").stdout.strip() == container
    assert pyrun("ps", "--format", "{{.Name}} {{.Status}}").stdout == "one running\n"
    assert pyrun("exec", "one", "sh", "-c", "echo $((1+1)); exit 5", code=5).stdout == "2\n"
    assert pyrun("exec", "-i", "one", "cat", stdin="typed").stdout == "typed"
    pyrun("exec", "one", "nonesuch", code=127)
    assert pyrun("rm", "one", code=1).stderr.startswith("error: container one is running")
    assert pyrun("stop", "one").stdout == "one\n"
    assert pyrun("wait", "one").stdout == "3\n"
    assert pyrun("logs", "one").stdout == "up\nbye\n"
    assert pyrun("logs", "--tail", "1", "one").stdout == "bye\n"
    pyrun("rename", "one", "two")
    assert pyrun("ps", "-a", "--format", "{{.Name}} {{.Status}}").stdout == "two exited\n"
    pyrun("start", "two")
    pyrun("kill", "two")
    assert _state(pyrun, "two")["ExitCode"] == 137
    pyrun("rm", "two")
    pyrun("inspect", "two", code=1)


def test_changes_stay_until_the_container_is_removed(any_pyrun: Pyrun) -> None:
    create = ("create", "--name", "c", "--network", "none", "--rootfs", str(any_pyrun.rootfs))
    any_pyrun(*create, "sh", "-c", "cat /mark 2>/dev/null; echo more >>/mark")
    assert _state(any_pyrun, "c")["Status"] == "created"
    assert any_pyrun("start", "-a", "c").stdout == ""
    assert any_pyrun("start", "-a", "c").stdout == "more\n"
    assert "A /mark" in any_pyrun("diff", "c").stdout.splitlines()


def test_names_are_taken_once(any_pyrun: Pyrun) -> None:
    any_pyrun.start("n", "sleep", "100")
    done = any_pyrun.run("true", options=("--name", "n"), code=125)
    assert "in use" in done.stderr


def test_the_end_of_a_command_that_cannot_be_executed_in_the_background(any_pyrun: Pyrun) -> None:
    rootfs = str(any_pyrun.rootfs)
    base = ("run", "-d", "--rm", "--network", "none", "--rootfs", rootfs)
    done = any_pyrun(*base, "nope", code=127)
    assert "nope" in done.stderr
    assert any_pyrun("ps", "-aq").stdout == ""


def test_copies_in_and_out(pyrun: Pyrun, tmp_path: Path) -> None:
    pyrun.start("c", "sleep", "100")
    here = tmp_path / "here"
    here.mkdir()
    here.chmod(0o777)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/f").write_text("text\n")
    (tmp_path / "src/f").chmod(0o754)
    (tmp_path / "src/l").symlink_to("/etc/passwd")
    pyrun("cp", f"{tmp_path}/src", "c:/root")
    assert pyrun("exec", "c", "stat", "-c", "%a %u", "/root/src/f").stdout == "754 0\n"
    pyrun("cp", "c:/root/src/f", f"{here}/g")
    assert (here / "g").read_text() == "text\n"
    pyrun("cp", "c:/root/src", f"{here}")
    assert os.readlink(here / "src/l") == "/etc/passwd"
    assert "no such file" in pyrun("cp", "c:/none", str(here), code=1).stderr
    pyrun("stop", "-t", "0", "c")
    pyrun("cp", f"{tmp_path}/src/f", "c:/etc/late")
    assert "late" in pyrun("cp", "c:/etc/late", "-").stdout


def test_a_symlink_in_the_container_does_not_lead_a_copy_out(
    any_pyrun: Pyrun, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    victim.chmod(0o777)
    any_pyrun.start("c", "sh", "-c", f"ln -s {victim} /trap; echo up; sleep 100")
    wait_for_line(any_pyrun, "c")
    source = tmp_path / "s"
    source.write_text("x")
    source.chmod(0o644)
    any_pyrun("cp", str(source), "c:/trap/", code=None)
    assert list(victim.iterdir()) == []


def test_a_copy_goes_to_what_a_symlink_names(any_pyrun: Pyrun, tmp_path: Path) -> None:
    """As /etc/os-release, or a resolv.conf."""
    script = "mkdir /real; echo old >/real/file; ln -s /real/file /etc/link; echo up; sleep 100"
    any_pyrun.start("c", "sh", "-c", script)
    wait_for_line(any_pyrun, "c")
    (tmp_path / "new").write_text("new\n")
    (tmp_path / "new").chmod(0o644)
    any_pyrun("cp", str(tmp_path / "new"), "c:/etc/link")
    told = any_pyrun("exec", "c", "sh", "-c", "cat /real/file; test -L /etc/link && echo link")
    assert told.stdout == "new\nlink\n"


def test_hard_links_stay_together_in_a_copy(any_pyrun: Pyrun, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "two/a").write_text("mine")
    (tmp_path / "two/a").chmod(0o644)
    os.link(tmp_path / "two/a", tmp_path / "two/b")
    any_pyrun.start("c", "sh", "-c", "mkdir -p /root/two; echo not >/root/two/a; echo up; sleep 99")
    wait_for_line(any_pyrun, "c")
    any_pyrun("cp", str(tmp_path / "two"), "c:/root/new")
    told = any_pyrun("exec", "c", "sh", "-c", "cd /root/new; cat a b; test a -ef b && echo same")
    assert told.stdout == "minemine" + "same\n"
    any_pyrun("cp", f"{tmp_path}/two/.", "c:/root/new")  # once more, over what is there
    any_pyrun("exec", "c", "sh", "-c", "rm /root/new/a; echo other >/root/new/a")
    any_pyrun("cp", f"{tmp_path}/two/.", "c:/root/new")
    told = any_pyrun("exec", "c", "sh", "-c", "cd /root/new; cat a b; test a -ef b && echo same")
    assert told.stdout == "minemine" + "same\n"


def test_looking_at_a_file_of_a_network(any_pyrun: Pyrun) -> None:
    """What the container would see, started or not."""
    options = ("--network", "host", "--dns-search", "foo.test")
    any_pyrun("create", "--name", "h", *options, "--rootfs", str(any_pyrun.rootfs), "true")
    assert "search foo.test" in any_pyrun("cp", "h:/etc/resolv.conf", "-").stdout


@pytest.mark.parametrize("how", ["name", "link"])
def test_an_archive_does_not_lead_out_of_its_target(
    any_pyrun: Pyrun, tmp_path: Path, how: str
) -> None:
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        absolute = tarfile.TarInfo("/outside")
        archive.addfile(absolute)
        link = tarfile.TarInfo("hard")
        link.type, link.linkname = tarfile.LNKTYPE, "../outside"
        archive.addfile({"name": tarfile.TarInfo("x/../../outside"), "link": link}[how])
    any_pyrun.start("c", "sleep", "100")
    with open(tmp_path / "a.tar", "rb") as stdin:
        done = subprocess.run(
            [*any_pyrun.command, "cp", "-", "c:/root"], env=any_pyrun.environment,
            stdin=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1 and "error: refused: " in done.stderr
    any_pyrun("exec", "c", "sh", "-c", "test ! -e /outside")


def test_export_is_the_whole_tree(any_pyrun: Pyrun, tmp_path: Path) -> None:
    any_pyrun.start("c", "sh", "-c", "echo new >/etc/new; echo up; sleep 100")
    wait_for_line(any_pyrun, "c")
    output = any_pyrun.place / "x.tar"
    any_pyrun("export", "-o", str(output), "c")
    import tarfile

    with tarfile.open(output) as archive:
        names = archive.getnames()
        assert "etc/new" in names and "usr/bin/sh" in names
        assert not any(name.startswith("proc/") for name in names)


def test_restart_policies(any_pyrun: Pyrun) -> None:
    any_pyrun.start("r", "sh", "-c", "echo run >>/runs; test $(wc -l </runs) -ge 3",
                    options=("--restart", "on-failure:5"))  # fmt: skip
    assert any_pyrun("wait", "r").stdout == "0\n"
    assert _state(any_pyrun, "r")["Restarts"] == 2


def test_health_checks_tell_the_truth(any_pyrun: Pyrun) -> None:
    options = (
        "--health-cmd",
        "test -e /well",
        "--health-interval",
        "50ms",
        "--health-retries",
        "1",
    )
    any_pyrun.start("h", "sleep", "100", options=options)
    _until(any_pyrun, "health_status=unhealthy")
    any_pyrun("exec", "h", "touch", "/well")
    _until(any_pyrun, "health_status=healthy")
    assert _state(any_pyrun, "h")["Health"] == "healthy"


def _until(pyrun: Pyrun, action: str) -> None:
    with subprocess.Popen(
        [*pyrun.command, "events", "--since", "1h"],
        env=pyrun.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as events:
        assert events.stdout is not None
        for line in events.stdout:
            if action in line:
                break
        events.kill()


def test_two_containers_share_namespaces(pyrun: Pyrun) -> None:
    pyrun.start("a", "sh", "-c", "echo up; sleep 100")
    wait_for_line(pyrun, "a")
    single = ("--userns", "single") if pyrun.kind == "single" else ()
    base = ("run", "--rm", *single, "--rootfs", str(pyrun.rootfs))
    shared = ("--network", "container:a", "--pid", "container:a", "--ipc", "container:a")
    told = pyrun(*base, *shared, "sh", "-c", "readlink /proc/self/ns/net; cat /proc/1/comm")
    inode, name = told.stdout.split()
    assert inode == pyrun("exec", "a", "readlink", "/proc/self/ns/net").stdout.strip()
    assert name == "pyrun-init"


@pytest.mark.parametrize("victim", ["supervisor", "pid", "union_pid"])
def test_a_helper_that_is_killed_leaves_nothing_that_rm_cannot_handle(
    any_pyrun: Pyrun, victim: str
) -> None:
    any_pyrun.start("k", "sh", "-c", "echo kept >/kept; echo up; sleep 100")
    wait_for_line(any_pyrun, "k")
    directory = Path(str(_state(any_pyrun, "k")["Directory"]))
    told = json.loads((directory / "state.json").read_text())
    watched = [os.pidfd_open(told[key]) for key in ("supervisor", "pid", "union_pid")]
    os.kill(told[victim], signal.SIGKILL)
    for fd in watched:
        import select

        assert select.select([fd], [], [], PATIENCE)[0], "it lives on"
        os.close(fd)
    assert any_pyrun("ps", "-a", "--format", "{{.Status}}").stdout == "exited\n"
    any_pyrun("start", "k")
    assert any_pyrun("exec", "k", "cat", "/kept").stdout == "kept\n"
    any_pyrun("rm", "-f", "k")


def test_a_removed_on_exit_container_of_a_dead_supervisor_is_swept(any_pyrun: Pyrun) -> None:
    any_pyrun.start("s", "sleep", "100", options=("--rm",))
    directory = Path(str(_state(any_pyrun, "s")["Directory"]))
    told = json.loads((directory / "state.json").read_text())
    fds = [os.pidfd_open(told[key]) for key in ("supervisor", "pid", "union_pid")]
    os.kill(told["supervisor"], signal.SIGKILL)
    import select

    for fd in fds:
        select.select([fd], [], [], PATIENCE)
        os.close(fd)
    assert any_pyrun("ps", "-aq").stdout == ""
    assert not directory.exists()


def test_many_at_once_leave_nothing(any_pyrun: Pyrun) -> None:
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    base = ("run", "--rm", "--network", "none", *single, "--rootfs", str(any_pyrun.rootfs))
    words = [*any_pyrun.command, *base]
    running = [
        subprocess.Popen(
            [*words, "sh", "-c", f"echo {number}"],
            env=any_pyrun.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(12)
    ]
    said = [process.communicate(timeout=PATIENCE)[0].strip() for process in running]
    assert said == [str(number) for number in range(12)]
    assert any_pyrun("ps", "-aq").stdout == ""


_DEADLINE = PATIENCE


def _done(pyrun: Pyrun, *words: str) -> None:
    """A command that must not wait for anything else."""
    subprocess.run(
        [*pyrun.command, *words], env=pyrun.environment, check=True, timeout=_DEADLINE,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def _told(pyrun: Pyrun, name: str) -> dict[str, int]:
    directory = Path(str(_state(pyrun, name)["Directory"]))
    told: dict[str, int] = json.loads((directory / "state.json").read_text())
    return told


def _gone(fds: list[int]) -> None:
    import select

    for fd in fds:
        assert select.select([fd], [], [], _DEADLINE)[0], "it lives on"
        os.close(fd)


def _pid_of(pyrun: Pyrun, name: str, word: str) -> int:
    for entry in json.loads(pyrun("top", "--json", name).stdout):
        if word in entry["Command"]:
            return int(entry["Pid"])
    raise AssertionError(word)


@pytest.mark.parametrize("how", ["end", "stop", "rm", "supervisor"])
@pytest.mark.parametrize("pid", ["host", "container:other"])
def test_what_outlives_the_command_with_pids_of_others_is_ended(
    pyrun: Pyrun, pid: str, how: str
) -> None:
    if pyrun.kind == "single" and pid == "host":
        from runtime.sys import calls

        if calls.landlock_abi() < 6:
            pytest.skip("one id and the host's pids need Landlock of Linux 6.12")
    if pid != "host":
        pyrun.start("other", "sleep", "1000")
    script = "sleep 2222 & echo up; test $0 = end || exec sleep 3333; read x"
    pyrun.start("p", "sh", "-c", script, how, options=("--pid", pid, "-i"))
    wait_for_line(pyrun, "p")
    told = _told(pyrun, "p")
    fds = [os.pidfd_open(told["union_pid"]), os.pidfd_open(_pid_of(pyrun, "p", "sleep 2222"))]
    if how == "end":
        pyrun("attach", "p", stdin="\n")
    elif how == "stop":
        _done(pyrun, "stop", "-t", "0", "p")
    elif how == "rm":
        _done(pyrun, "rm", "-f", "p")
    else:
        watched = os.pidfd_open(told["supervisor"])
        os.kill(told["supervisor"], signal.SIGKILL)
        _gone([watched])
        assert "exited" in pyrun("ps", "-a", "--format", "{{.Status}}").stdout
    _gone(fds)
    if pid != "host":
        assert pyrun("exec", "other", "sh", "-c", "echo here").stdout == "here\n"


@pytest.mark.parametrize("how", ["rm", "kill", "stop", "supervisor"])
def test_a_frozen_container_ends_as_others_do(root_pyrun: Pyrun, how: str) -> None:
    from tests.runtime.test_limits import _needs_v1, _ours

    if not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        _needs_v1("freezer")
    before = _ours()
    root_pyrun.start("f", "sleep", "1000")
    told = _told(root_pyrun, "f")
    fds = [os.pidfd_open(told[key]) for key in ("pid", "union_pid")]
    root_pyrun("pause", "f")
    if how == "rm":
        _done(root_pyrun, "rm", "-f", "f")
    elif how == "kill":
        _done(root_pyrun, "kill", "f")
    elif how == "stop":
        _done(root_pyrun, "stop", "-t", "0", "f")
    else:
        watched = os.pidfd_open(told["supervisor"])
        os.kill(told["supervisor"], signal.SIGKILL)
        _gone([watched])
        assert root_pyrun("ps", "-a", "--format", "{{.Status}}").stdout == "exited\n"
    _gone(fds)
    assert _ours() == before


def test_who_does_not_read_on_holds_up_nobody_else(any_pyrun: Pyrun) -> None:
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    base = ("run", "--name", "r", "--network", "none", *single)
    with subprocess.Popen(
        [*any_pyrun.command, *base, "--rootfs", str(any_pyrun.rootfs), "seq", "1", "100000000"],
        env=any_pyrun.environment, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.read(2) == b"1\n"
        _done(any_pyrun, "stop", "-t", "0", "r")
        assert any_pyrun("ps", "-a", "--format", "{{.Status}}").stdout == "exited\n"
        any_pyrun("rm", "r")
        # Nothing that was said before the end is lost.
        lines = process.stdout.read().split(b"\n")
        assert lines[:2] == [b"2", b"3"] and len(lines) > 10_000
        assert process.wait() in (137, 143)  # SIGKILL comes right after SIGTERM


def test_a_new_name_and_an_end_at_the_same_time_are_both_kept(any_pyrun: Pyrun) -> None:
    """Only the supervisor writes the state."""
    any_pyrun.start("n", "sh", "-c", "echo up; read x; exit 7", options=("-i",))
    wait_for_line(any_pyrun, "n")
    before = _told(any_pyrun, "n")
    any_pyrun("rename", "n", "m")
    assert _told(any_pyrun, "m") == before
    any_pyrun("attach", "m", stdin="\n", code=7)
    assert any_pyrun("ps", "-a", "--format", "{{.Name}} {{.ExitCode}}").stdout == "m 7\n"


def test_a_container_that_is_being_removed_is_not_started(root_pyrun: Pyrun) -> None:
    from runtime import removal, state

    root_pyrun(
        "create", "--name", "c", "--network", "none", "--rootfs", str(root_pyrun.rootfs), "ls"
    )
    root = str(root_pyrun.place / "pyrun")
    container = state.Containers(root).find("c")
    lock = container.lock()
    assert "running" in root_pyrun("rm", "c", code=1).stderr
    opened = os.open(container.path("lock"), os.O_RDWR)  # by who is about to start it
    removal.remove_files(container)
    os.close(lock)
    os.mkdir(container.directory)
    os.close(opened)
    os.rmdir(container.directory)
    with pytest.raises(FileNotFoundError):
        container.lock()
