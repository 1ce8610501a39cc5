"""Ways out of a container that others have had, each tried from inside.

The attacks run as shell and Python programs in containers; the ones on the union's daemon use
the host's interpreter, bound into the container.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.conftest import PATIENCE, Pyrun

_ATTACK = """
import ctypes, errno, os, signal
libc = ctypes.CDLL(None, use_errno=True)
def command(name):
    try:
        return open(f"/proc/{name}/comm").read().strip()
    except OSError:
        return ""  # gone meanwhile
def ended(name):
    # What nobody has waited for yet takes signals of its user; they do nothing.
    try:
        return open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
def parent(name):
    try:
        return open(f"/proc/{name}/stat").read().rpartition(")")[2].split()[1]
    except OSError:
        return ""
# Ours has the supervisor for a parent, as we have or our process 1; others may be just starting.
found = [int(name) for name in os.listdir("/proc") if name.isdigit()
         and command(name) == "pyrun-union" and not ended(name)
         and parent(name) in (str(os.getppid()), parent(os.getppid()))]
def some(path):
    # Of a process that is just ending both are empty, and open to all.
    if not open(path).read():
        raise OSError
def read_memory(pid):
    # Nothing is at the address: EFAULT says that we would have been let in.
    here = ctypes.create_string_buffer(8)
    local = (ctypes.c_ulong * 2)(ctypes.addressof(here), 8)
    remote = (ctypes.c_ulong * 2)(8, 8)
    zero = ctypes.c_ulong(0)
    ctypes.set_errno(0)
    result = libc.syscall(310, ctypes.c_ulong(pid), local, ctypes.c_ulong(1),
                          remote, ctypes.c_ulong(1), zero)
    return 0 if ctypes.get_errno() == errno.EFAULT else result
print("seen", len(found))
for pid in found:
    tries = {
        "signal": lambda: os.kill(pid, 0),
        "kill": lambda: os.kill(pid, signal.SIGUSR2),
        "root": lambda: os.listdir(f"/proc/{pid}/root/"),
        "cwd": lambda: os.listdir(f"/proc/{pid}/cwd/"),
        "descriptor": lambda: os.open(f"/proc/{pid}/fd/3", os.O_RDONLY),
        "memory": lambda: open(f"/proc/{pid}/mem", "r+b"),
        "maps": lambda: some(f"/proc/{pid}/maps"),
        "environment": lambda: some(f"/proc/{pid}/environ"),
        "program": lambda: os.readlink(f"/proc/{pid}/exe"),
        "namespace": lambda: os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY),
    }
    for name, attempt in tries.items():
        try:
            attempt()
            print("worked", name)
        except OSError:
            pass
    pidfd = libc.syscall(434, pid, 0)
    for name, result in {
        "ptrace attach": libc.ptrace(16, pid, 0, 0),
        "ptrace seize": libc.ptrace(0x4206, pid, 0, 0),
        "pidfd_getfd": libc.syscall(438, pidfd, 3, 0),
        "pidfd signal": libc.syscall(424, pidfd, 0, None, 0),
        "process_vm_readv": read_memory(pid),
    }.items():
        if result != -1:
            print("worked", name)
print("done")
"""


def _python_options() -> tuple[str, ...]:
    """Binds that bring the host's interpreter into a container."""
    prefix = os.path.realpath(sys.base_prefix)
    program = os.path.realpath(sys.executable)
    binds = [prefix] if prefix != "/usr" else ["/usr/lib", os.path.dirname(program)]
    binds += [
        path for path in ("/lib64", "/usr/lib", "/lib/x86_64-linux-gnu") if os.path.isdir(path)
    ]
    options: list[str] = []
    for path in dict.fromkeys(binds):
        if path not in ("/usr/bin",):
            options += ["-v", f"{path}:{path}:ro"]
    return (*options, "-v", f"{program}:/python:ro")


@pytest.mark.parametrize("privileged", [False, True])
def test_the_unions_daemon_cannot_be_touched_even_with_the_hosts_pids(
    pyrun: Pyrun, tmp_path: Path, privileged: bool
) -> None:
    script = tmp_path / "attack.py"
    script.write_text(_ATTACK)
    script.chmod(0o644)
    options = ["--pid", "host", "-v", f"{script}:/attack.py:ro", *_python_options()]
    if privileged:
        options.append("--privileged")
    done = pyrun.run("/python", "-IS", "/attack.py", options=tuple(options), code=None)
    if "Landlock" in done.stderr or "signal its own file server" in done.stderr:
        pytest.skip("one id and the host's pids need Landlock of Linux 6.12")
    told = done.stdout.splitlines()
    assert told and told[0] != "seen 0", done
    assert told[1:] == ["done"], done


def test_cve_2019_5736_the_program_that_executes_is_not_the_hosts(any_pyrun: Pyrun) -> None:
    """A container's command ``#!/proc/self/exe`` must not run, or open, the interpreter."""
    before = os.stat(sys.executable)
    any_pyrun.start(
        "v", "sh", "-c",
        "printf '#!/proc/self/exe\\n' >/bad; /bin/chmod 755 /bad; echo up; sleep 100",
    )  # fmt: skip
    done = any_pyrun("exec", "v", "/bad", code=None)
    # It runs the sealed trampoline once more, which gives up.
    assert done.returncode in (126, 127) and "Python" not in done.stdout + done.stderr
    told = any_pyrun("exec", "v", "readlink", "/proc/1/exe", code=None)
    assert told.stdout == ""
    told = any_pyrun("exec", "v", "sh", "-c", "cat /proc/1/exe; : >/proc/1/exe", code=None)
    assert told.returncode != 0 and told.stdout == ""
    after = os.stat(sys.executable)
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def test_cve_2024_21626_no_descriptor_or_directory_of_the_host_is_left(pyrun: Pyrun) -> None:
    for number in range(3, 12):
        # Of a directory outside the root, the way up ends at the host's.
        done = pyrun.run(
            "sh", "-c", f"pwd; [ .{'/..' * 40} -ef / ] && echo inside",
            options=("--workdir", f"/proc/self/fd/{number}"), code=None,
        )  # fmt: skip
        assert done.returncode in (0, 125), done
        assert done.stdout in ("", f"/proc/self/fd/{number}\ninside\n"), done
    script = "for f in /proc/self/fd/*; do readlink $f; done; true"
    for line in pyrun.out("sh", "-c", script).splitlines():
        assert line == "/dev/null" or line.startswith(("pipe:", "/proc/")), line


def _image(tmp_path: Path, tiny_root: Path) -> Path:
    copy = tmp_path / "image"
    shutil.copytree(tiny_root, copy, symlinks=True)
    return copy


def _at(pyrun: Pyrun, rootfs: Path) -> Pyrun:
    return Pyrun(pyrun.kind, pyrun.place, rootfs)


@pytest.mark.parametrize("name", ["proc", "sys", "dev", "etc/hosts", "etc/hostname", "mnt"])
def test_cve_2019_16884_2021_30465_2023_27561_symlinks_where_is_mounted(
    any_pyrun: Pyrun, tmp_path: Path, tiny_root: Path, name: str
) -> None:
    """An image with a symlink at a mount point: nothing outside of the root is mounted on."""
    victim = tmp_path / "victim"
    victim.mkdir()
    victim.chmod(0o777)
    (victim / "hosts").write_text("mine\n")
    image = _image(tmp_path, tiny_root)
    target = image / name
    if target.is_dir():
        shutil.rmtree(target)
    climb = "../" * 40
    target.symlink_to(f"{climb}{str(victim).lstrip('/')}")
    done = _at(any_pyrun, image).run(
        "sh", "-c", "echo in", options=("-v", f"{tmp_path}:/mnt/x"), code=None
    )
    assert done.returncode in (0, 125)
    assert sorted(os.listdir(victim)) == ["hosts"]
    assert (victim / "hosts").read_text() == "mine\n"


def test_cve_2025_31133_a_false_dev_null_hides_nothing_and_shows_nothing(
    any_pyrun: Pyrun, tmp_path: Path, tiny_root: Path
) -> None:
    """What masks a file must be the null device, not what an image put in its place."""
    image = _image(tmp_path, tiny_root)
    (image / "dev/null").symlink_to("/proc/sys/kernel/core_pattern")
    told = _at(any_pyrun, image).out("sh", "-c", "stat -c %t:%T /dev/null; wc -c </proc/keys")
    assert told.split() == ["1:3", "0"]


def test_cve_2025_52565_the_console_is_not_mounted_through_a_symlink(
    any_pyrun: Pyrun, tmp_path: Path, tiny_root: Path
) -> None:
    image = _image(tmp_path, tiny_root)
    (image / "dev/console").symlink_to("/proc/sysrq-trigger")
    (image / "dev/pts").symlink_to("/tmp")
    script = "stat -c %F /dev/console; cat /proc/sysrq-trigger 2>&1 | head -c 5"
    told = _at(any_pyrun, image).out("sh", "-c", script, options=("-t",))
    assert told.startswith("character special file")


def test_cve_2025_52881_writes_to_proc_go_to_a_real_proc(any_pyrun: Pyrun, tmp_path: Path) -> None:
    """With a volume over /proc, parameters are refused, not written into the volume."""
    fake = tmp_path / "fake"
    (fake / "sys/net/ipv4").mkdir(parents=True)
    (fake / "sys/net/ipv4/ip_forward").write_text("0")
    options = ("-v", f"{fake}:/proc", "--sysctl", "net.ipv4.ip_forward=1")
    done = any_pyrun.run("true", options=options, code=125)
    assert "not on a proc filesystem" in done.stderr
    assert (fake / "sys/net/ipv4/ip_forward").read_text() == "0"


def test_a_symlinked_dev_makes_no_device_outside(
    any_pyrun: Pyrun, tmp_path: Path, tiny_root: Path
) -> None:
    image = _image(tmp_path, tiny_root)
    victim = tmp_path / "victim"
    victim.mkdir()
    victim.chmod(0o777)
    shutil.rmtree(image / "dev")
    (image / "dev").symlink_to("/../../.." + str(victim))
    done = _at(any_pyrun, image).run("ls", "/dev/null", code=None)
    assert done.returncode in (0, 125)
    assert os.listdir(victim) == []


def test_hostile_user_files_are_harmless(any_pyrun: Pyrun, tmp_path: Path, tiny_root: Path) -> None:
    """/etc/passwd as a fifo, a device, a directory, garbage, or a symlink out."""
    for number, kind in enumerate(("fifo", "directory", "garbage", "symlink")):
        image = tmp_path / f"i{number}"
        shutil.copytree(tiny_root, image, symlinks=True)
        passwd = image / "etc/passwd"
        passwd.unlink()
        if kind == "fifo":
            os.mkfifo(passwd)
        elif kind == "directory":
            passwd.mkdir()
        elif kind == "garbage":
            passwd.write_bytes(b"\xff\0::::\nroot:x:-5:99999999999999:::\n" + b"x" * 5000)
        else:
            passwd.symlink_to("../../../../../../etc/shadow")
        caller = _at(any_pyrun, image)
        assert caller.run("id", "-u").stdout == "0\n", kind
        caller.run("true", options=("--user", "alice"), code=125)


def test_masked_and_read_only_paths(pyrun: Pyrun) -> None:
    told = pyrun.out(
        "sh", "-c",
        "for f in /proc/kcore /proc/keys /proc/timer_list; do test -e $f && head -c 10 $f; done;"
        "ls /sys/firmware /proc/acpi 2>/dev/null;"
        "echo x 2>/dev/null >/proc/sys/kernel/hostname"
        " || echo ro; echo x 2>/dev/null >/proc/sysrq-trigger || echo ro;"
        "touch /sys/x 2>/dev/null || echo ro",
    )  # fmt: skip
    assert [line for line in told.splitlines() if not line.endswith(":") and line] == ["ro"] * 3


def test_mounts_cannot_be_taken_away(pyrun: Pyrun) -> None:
    told = pyrun.out(
        "sh", "-c", "mount -o remount,rw /sys 2>/dev/null || echo no; mount -t tmpfs x /tmp"
        " 2>/dev/null || echo no",
    )  # fmt: skip
    assert told == "no\nno\n"


def test_the_commands_of_others_are_not_seen(pyrun: Pyrun) -> None:
    secret = "SECRET-IN-THE-COMMAND-LINE"
    told = pyrun.out("sh", "-c", "cat /proc/[0-9]*/cmdline", options=("-l", f"x={secret}"))
    assert secret not in told


def test_landlock_keeps_to_what_is_named(any_pyrun: Pyrun) -> None:
    from runtime.sys import calls

    if calls.landlock_abi() < 1:
        pytest.skip("this kernel has no Landlock")
    options = ["--landlock", "rw:/tmp", "--landlock", "rw:/dev"]
    for path in ("/usr", "/lib", "/lib64", "/bin"):
        if (any_pyrun.rootfs / path.lstrip("/")).exists():
            options += ["--landlock", f"ro:{path}"]
    told = any_pyrun.out(
        "sh", "-c", "echo x >/tmp/f && echo tmp; cat /etc/passwd 2>/dev/null || echo etc;"
        "touch /usr/x 2>/dev/null || echo usr", options=tuple(options),
    )  # fmt: skip
    assert told == "tmp\netc\nusr\n"


_LOOK = "for n in 0 1 2; do readlink /proc/self/fd/$n; done"


def _is_ours(line: str) -> bool:
    return line == "/dev/null" or line.startswith(("pipe:", "/dev/pts/"))


@pytest.mark.parametrize("options", [(), ("-i",)])
def test_exec_hands_no_terminal_of_the_host_in(any_pyrun: Pyrun, options: tuple[str, ...]) -> None:
    """A process in the background would read what is typed at the host's next prompt."""
    any_pyrun.start("x", "sleep", "100")
    master, slave = os.openpty()
    with subprocess.Popen(
        [*any_pyrun.command, "exec", *options, "x", "sh", "-c", f"{_LOOK}; test ! -t 0 -a ! -t 1"],
        env=any_pyrun.environment, stdin=slave, stdout=slave, stderr=slave,
    ) as process:  # fmt: skip
        os.close(slave)
        said = b""
        with contextlib.suppress(OSError):
            while data := os.read(master, 4096):
                said += data
        os.close(master)
    assert process.returncode == 0
    lines = said.decode().split()
    assert len(lines) == 3 and all(map(_is_ours, lines)), lines


def test_exec_hands_no_file_of_the_host_in(any_pyrun: Pyrun, tmp_path: Path) -> None:
    """Through /proc/self/fd a file could be opened anew, for writing."""
    any_pyrun.start("x", "sleep", "100")
    script, output = any_pyrun.place / "script", any_pyrun.place / "output"
    script.write_text(f"{_LOOK}\n: >/proc/self/fd/0\n")
    script.chmod(0o666)
    with script.open() as given, output.open("w") as told:
        subprocess.run(
            [*any_pyrun.command, "exec", "-i", "x", "sh"], env=any_pyrun.environment,
            stdin=given, stdout=told, stderr=told, check=False, timeout=PATIENCE,
        )  # fmt: skip
    lines = output.read_text().split()[:3]
    assert len(lines) == 3 and all(map(_is_ours, lines)), lines
    assert script.read_text().startswith("for n in")


@pytest.mark.parametrize("options", [(), ("--user", "alice"), ("--cap-add", "SYS_ADMIN")])
def test_without_no_new_privileges_the_filter_still_holds(
    any_pyrun: Pyrun, options: tuple[str, ...]
) -> None:
    if any_pyrun.kind == "single" and "--user" in options:
        pytest.skip("needs a user with subordinate ids")
    given = (*options, "--security-opt", "no-new-privileges=false")
    any_pyrun.start("n", "sleep", "100", options=given)
    for words in (("exec", "n"), ("exec", "--user", "0", "n")):
        told = any_pyrun(*words, "grep", "-E", "^(Seccomp|NoNewPrivs):", "/proc/self/status")
        assert told.stdout.split() == ["NoNewPrivs:", "0", "Seccomp:", "2"]
    said = any_pyrun.out("grep", "-E", "^(Seccomp|NoNewPrivs):", "/proc/self/status", options=given)
    assert said.split() == ["NoNewPrivs:", "0", "Seccomp:", "2"]


def test_the_command_ends_with_its_supervisor_whoever_it_is(any_pyrun: Pyrun) -> None:
    """Changing ids clears the signal that process 1 gets when its supervisor dies."""
    if any_pyrun.kind == "single":
        pytest.skip("needs a user with subordinate ids")
    any_pyrun.start("d", "sleep", "1000", options=("--init=false", "--user", "alice"))
    directory = json.loads(any_pyrun("inspect", "d").stdout)[0]["Directory"]
    told = json.loads(Path(directory, "state.json").read_text())
    first = os.pidfd_open(told["pid"])
    os.kill(told["supervisor"], signal.SIGKILL)
    assert select.select([first], [], [], PATIENCE)[0], "it lives on"
    os.close(first)
