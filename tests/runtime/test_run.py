"""``pyrun run``: what a command finds in its container, and how its end is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.runtime.conftest import Pyrun


def test_the_commands_status_and_streams_are_its_own(pyrun: Pyrun) -> None:
    done = pyrun.run("sh", "-c", "echo out; echo err >&2; exit 7", code=7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    assert pyrun.run("cat", options=("-i",), stdin="typed\n").stdout == "typed\n"
    assert pyrun.run("cat", stdin="not passed on").stdout == ""


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (("nonesuch",), 127, "nonesuch: executable file not found"),
        (("/etc",), 126, "/etc: is a directory"),
        (("/etc/passwd",), 126, "permission denied"),
        (("sh", "-c", "kill -9 $$"), 137, ""),
        (("sh", "-c", "kill -TERM $$"), 143, ""),
    ],
)
def test_exit_statuses_of_engines(
    any_pyrun: Pyrun, command: tuple[str, ...], code: int, said: str
) -> None:
    done = any_pyrun.run(*command, code=code)
    assert said.lower() in done.stderr.lower()
    assert len(done.stderr.splitlines()) <= 2


def test_a_broken_interpreter_or_format_is_told_as_such(any_pyrun: Pyrun, tmp_path: Path) -> None:
    for name, text, code in (
        ("script", "#!/none/such\n", 127),
        ("garbage", "garbage", 126),
    ):
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o755)
        done = any_pyrun.run(f"/x/{name}", options=("-v", f"{tmp_path}:/x"), code=code)
        assert done.stderr.startswith("error: ")


def test_what_a_container_looks_like(pyrun: Pyrun) -> None:
    told = pyrun.out(
        "sh",
        "-c",
        "id -u; id -g; echo $$; hostname; pwd; ls /proc | grep -c '^[0-9]';"
        "ls /proc/self/fd | wc -l;"
        "grep -c . /proc/net/dev; env | grep -c '^container=pyrun$'",
        options=("--hostname", "box", "--workdir", "/tmp"),
    ).split()
    assert told[:2] == ["0", "0"]
    assert int(told[2]) == 2
    assert told[3:5] == ["box", "/tmp"]
    assert int(told[5]) <= 4
    assert int(told[6]) == 4  # 0, 1, 2 and the listing itself
    assert told[7] == "3"  # two lines of heading, and lo
    assert told[8] == "1"


def test_the_root_is_the_union_and_the_tree_below_stays_as_it_is(pyrun: Pyrun) -> None:
    before = sorted(os.listdir(pyrun.rootfs / "etc"))
    told = pyrun.out(
        "sh",
        "-c",
        "grep ' / ' /proc/self/mountinfo; echo x >/etc/new; rm /etc/group;"
        "mkdir /usr/made; cat /etc/new",
    )
    assert "fuse.pyunion" in told and told.endswith("x\n")
    assert sorted(os.listdir(pyrun.rootfs / "etc")) == before
    assert not (pyrun.rootfs / "usr/made").exists()


def test_owners_can_be_changed_inside(pyrun: Pyrun) -> None:
    told = pyrun.out("sh", "-c", "touch /x && chown 1000:50 /x && stat -c %u:%g /x").strip()
    assert told == ("0:0" if pyrun.kind == "single" else "1000:50")


def test_users_by_name_number_and_group(pyrun: Pyrun) -> None:
    if pyrun.kind == "single":
        done = pyrun.run("true", options=("--user", "alice"), code=125)
        assert "not mapped" in done.stderr
        return
    told = pyrun.out("sh", "-c", "id -u; id -G; echo $HOME", options=("--user", "alice"))
    assert told.split() == ["1000", "1000", "50", "/home"]
    assert pyrun.out("id", "-u", options=("--user", "77")).strip() == "77"
    assert pyrun.out("id", "-g", options=("--user", "alice:staff")).strip() == "50"
    for user in ("nobody-here", "alice:no-group", "-1", "4294967295"):
        done = pyrun.run("true", options=(f"--user={user}",), code=125)
        assert done.stderr.startswith("error: ")


def test_environment(any_pyrun: Pyrun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("# comment\nB=2\n\nC= 3 \n")
    options = ("-e", "A=1", "--env-file", str(tmp_path / "file"), "-e", "B=9", "-e", "UNSET")
    told = any_pyrun.out("sh", "-c", "echo $A $B \"[$C]\" ${UNSET-none}; env | grep -c HOME",
                         options=options)  # fmt: skip
    assert told == "1 9 [ 3 ] none\n1\n"


def test_volumes_and_their_options(pyrun: Pyrun, tmp_path: Path) -> None:
    source = tmp_path / "v"
    source.mkdir()
    source.chmod(0o777)
    (source / "in").write_text("host\n")
    (source / "in").chmod(0o644)
    options = ("-v", f"{source}:/v", "-v", f"{source}:/r:ro", "--tmpfs", "/t:size=1m,mode=700")
    told = pyrun.out(
        "sh",
        "-c",
        "cat /v/in; echo made >/v/out; touch /r/x 2>/dev/null || echo ro;"
        "stat -c %a /t; dd if=/dev/zero of=/t/x bs=1M count=3 2>/dev/null || echo full",
        options=options,
    )
    assert told == "host\nro\n700\nfull\n"
    assert (source / "out").read_text() == "made\n"
    (source / "out").unlink()


def test_a_named_volume_outlives_its_containers(any_pyrun: Pyrun) -> None:
    any_pyrun.run("sh", "-c", "echo kept >/d/f", options=("-v", "data:/d"))
    assert any_pyrun.out("cat", "/d/f", options=("-v", "data:/d")) == "kept\n"
    assert "data" in any_pyrun("volume", "ls").stdout
    any_pyrun("volume", "rm", "data")
    assert any_pyrun("volume", "rm", "data", code=1).stderr.startswith("error: no volume data")


def test_a_read_only_root(any_pyrun: Pyrun) -> None:
    told = any_pyrun.out(
        "sh", "-c", "touch /x 2>/dev/null || echo ro; touch /tmp/y && echo rw",
        options=("--read-only", "--tmpfs", "/tmp"),
    )  # fmt: skip
    assert told == "ro\nrw\n"


def test_locked_down_by_default(pyrun: Pyrun) -> None:
    told = dict(
        line.split(":\t")
        for line in pyrun.out("cat", "/proc/self/status").splitlines()
        if ":\t" in line
    )
    assert told["CapEff"] == told["CapBnd"] == told["CapPrm"] == "00000000800405fb"
    assert told["CapInh"] == told["CapAmb"] == "0000000000000000"
    assert told["NoNewPrivs"] == "1" and told["Seccomp"] == "2"
    none = pyrun.out("grep", "CapEff", "/proc/self/status", options=("--cap-drop", "all"))
    assert none.split()[1] == "0000000000000000"
    told_off = pyrun.out("cat", "/proc/self/status", options=("--security-opt",
        "seccomp=unconfined", "--security-opt", "no-new-privileges=false"))  # fmt: skip
    assert "Seccomp:\t0" in told_off and "NoNewPrivs:\t0" in told_off


def test_a_seccomp_profile_of_the_users(any_pyrun: Pyrun, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"],'
        ' "action": "SCMP_ACT_ERRNO", "errnoRet": 42}]}'
    )
    options = ("--security-opt", f"seccomp={profile}")
    any_pyrun.run("sh", "-c", "touch /tmp/f && ! mkdir /tmp/d", options=options)
    profile.write_text("{")
    assert "seccomp profile" in any_pyrun.run("true", options=options, code=125).stderr
    options = ("--security-opt", "seccomp=/none/such")
    assert "No such file" in any_pyrun.run("true", options=options, code=125).stderr


def test_a_terminal(any_pyrun: Pyrun) -> None:
    told = any_pyrun.out("sh", "-c", "test -t 0 && test -t 1 && ls /dev/pts", options=("-t",))
    assert told.split() == ["0", "ptmx"]


def test_process_1_is_the_command_itself_without_init(any_pyrun: Pyrun) -> None:
    assert any_pyrun.out("sh", "-c", "echo $$", options=("--init=false",)).strip() == "1"


def test_limits_of_processes(any_pyrun: Pyrun) -> None:
    options = ("--ulimit", "nofile=100:200", "--ulimit", "core=0")
    assert any_pyrun.out(
        "sh", "-c", "ulimit -n; ulimit -Hn; ulimit -c", options=options
    ).split() == [
        "100",
        "200",
        "0",
    ]
    done = any_pyrun.run("true", options=("--ulimit", "bogus=1"), code=125)
    assert "--ulimit" in done.stderr


def test_sysctls_of_its_own_namespaces(any_pyrun: Pyrun) -> None:
    options = ("--sysctl", "net.ipv4.ip_forward=1")
    assert any_pyrun.out("cat", "/proc/sys/net/ipv4/ip_forward", options=options) == "1\n"
    for name in ("kernel.panic", "vm.swappiness", "vm/swappiness", "net/../vm/swappiness", "net"):
        done = any_pyrun.run("true", options=("--sysctl", f"{name}=60"), code=125)
        assert f"--sysctl {name}: not of a namespace" in done.stderr
    for kind, name in (("network", "net.ipv4.ip_forward"), ("ipc", "fs.mqueue.msg_max")):
        shared = (f"--{kind}", "host", "--sysctl", f"{name}=1")
        assert f"--sysctl {name}: not of" in any_pyrun.run("true", options=shared, code=125).stderr


def test_the_time_namespace(any_pyrun: Pyrun) -> None:
    if not os.path.exists("/proc/self/ns/time"):
        pytest.skip("this kernel has no time namespaces")
    with open("/proc/uptime", encoding="ascii") as file:
        here = float(file.read().split()[0])
    options = ("--time-offset", "boottime=1000000")
    there = float(any_pyrun.out("cat", "/proc/uptime", options=options).split()[0])
    assert 1_000_000 <= there - here < 1_001_000


def test_dry_run_prints_and_does_nothing(any_pyrun: Pyrun) -> None:
    done = any_pyrun.run("true", options=("--dry-run",))
    assert "mount: proc on /proc" in done.stdout and "execute: true" in done.stdout
    assert any_pyrun("ps", "-a", "-q").stdout == ""


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("run", "--rootfs", "/none/such", "true"),
        ("run", "--rootfs", "/etc/passwd", "true"),
        ("run", "--rootfs", "/", "--name", "../x", "true"),
        ("run", "--rootfs", "/", "--memory", "lots", "true"),
        ("run", "--rootfs", "/", "--network", "bridge0", "true"),
        ("run", "--rootfs", "/", "--userns", "what", "true"),
        ("run", "--rootfs", "/", "--network", "container:nobody", "true"),
        ("run", "--rootfs", "/", "--restart", "sometimes", "true"),
        ("run", "--rootfs", "/", "--cap-add", "FLY", "true"),
        ("run", "--rootfs", "/", "--device", "/dev/none", "true"),
        ("run", "--rootfs", "/", "--device", "/etc/passwd", "true"),
        ("run", "--rootfs", "/", "-v", "/a:b", "true"),
        ("run", "--rootfs", "/", "--mount", "type=bind,src=/none/such,dst=/x", "true"),
        ("run", "--rootfs", "/", "--network", "none", "-p", "80:80", "true"),
        ("run", "--rootfs", "/", "--stop-signal", "SIGFOO", "true"),
        ("run", "--rootfs", "/", "--workdir", "relative", "true"),
        ("run", "--rootfs", "/", "--nonsense", "true"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(any_pyrun: Pyrun, words: tuple[str, ...]) -> None:
    done = any_pyrun(*words, code=125)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ") and len(lines) <= 2, done.stderr
    assert len(lines) < 2 or lines[1].startswith("hint: ")
    assert any_pyrun("ps", "-a", "-q").stdout == ""


def test_a_working_directory_that_is_missing_is_made(any_pyrun: Pyrun) -> None:
    assert (
        any_pyrun.out("sh", "-c", "pwd", options=("--workdir", "/no/such/yet")) == "/no/such/yet\n"
    )


def test_on_the_hosts_own_root(root_pyrun: Pyrun) -> None:
    done = root_pyrun(
        "run", "--rm", "--network", "none", "--rootfs", "/", "sh", "-c",
        "echo changed >/etc/hostname-of-a-test && cat /etc/hostname-of-a-test;"
        "ls /proc | grep -c '^1$'",
    )  # fmt: skip
    assert done.stdout == "changed\n1\n"
    assert not os.path.exists("/etc/hostname-of-a-test")


def test_keep_id_and_nomap(any_pyrun: Pyrun, tmp_path: Path) -> None:
    if any_pyrun.kind != "user":
        pytest.skip("needs a user with subordinate ids")
    from tests.runtime.conftest import UID

    told = any_pyrun.out("sh", "-c", "id -u; stat -c %u /etc", options=("--userns", "keep-id"))
    own = str(UID) if os.geteuid() == 0 else str(os.geteuid())
    assert told.split() == [own, "0"]
    told = any_pyrun.out("sh", "-c", "id -u; stat -c %u /v", options=(
        "--userns", "nomap", "-v", f"{tmp_path}:/v"))  # fmt: skip
    assert told.split() == ["0", "65534"]


def test_limits_of_a_process_hold_for_those_that_join(any_pyrun: Pyrun) -> None:
    options = ("--ulimit", "nofile=64", "--oom-score-adj", "500")
    any_pyrun.start("l", "sleep", "100", options=options)
    script = "ulimit -n; cat /proc/self/oom_score_adj"
    assert any_pyrun("exec", "l", "sh", "-c", script).stdout == "64\n500\n"


def test_the_hostname_is_in_the_environment(any_pyrun: Pyrun) -> None:
    options = ("--hostname", "box")
    assert any_pyrun.out("sh", "-c", "echo $HOSTNAME", options=options) == "box\n"


@pytest.mark.parametrize("word", ["ro", "ro=True", "readonly=1", "ro=yes"])
def test_a_mount_that_is_asked_to_be_read_only_is(
    any_pyrun: Pyrun, tmp_path: Path, word: str
) -> None:
    tmp_path.chmod(0o777)
    mount = f"type=bind,src={tmp_path},dst=/m,{word}"
    told = any_pyrun.out(
        "sh", "-c", "touch /m/x 2>/dev/null || echo ro", options=("--mount", mount)
    )
    assert told == "ro\n" and not (tmp_path / "x").exists()
    bad = mount.replace(word, "ro=perhaps")
    assert "true or false" in any_pyrun.run("true", options=("--mount", bad), code=125).stderr


def test_with_a_limit_of_processors_the_daemon_does_not_poll(any_pyrun: Pyrun) -> None:
    """Its time is the container's: waiting would use up the quota."""
    given = ("--dry-run", "--json", "--limits", "best-effort")
    for options, wanted in (((), 0), (("--cpus", "0.5"), 1), (("--cpu-shares", "100"), 1)):
        told = any_pyrun.run("true", options=(*given, *options)).stdout
        assert told.count('"busy_poll=0"') == wanted
