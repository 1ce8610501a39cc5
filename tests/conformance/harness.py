"""Run a public filesystem suite on a union, or on a peer for comparison.

Job: what all ``run_*`` scripts beside this file share: the private namespaces,
the scratch folder, mounting the filesystem under test, dropping caches,
commands with a time limit, and the report.

Not for: knowing any suite.  The suites themselves are not part of this
project; each script takes the folder of a built one from the environment.

A script runs twice.  *Outside* it makes a scratch folder, starts itself again
inside new mount and pid namespaces (and, with ``--rootless USER``, inside a
user namespace of that user), waits, prints the report and removes the folder.
*Inside* it mounts, runs the suite and leaves ``result.json`` in the folder.

Invariants: no mount is visible outside; when the inside ends, the pid
namespace takes every process with it, daemons too; exit status 0 = nothing
failed, 1 = something failed, 2 = could not run.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

SCRATCH = "PYUNION_CONFORMANCE_SCRATCH"
FILESYSTEMS = ("plain", "overlayfs", "fuse-overlayfs", "pyunion")
Result = dict[str, Any]


def die(text: str, hint: str = "") -> NoReturn:
    """Say what is missing and exit 2."""
    print(f"error: {text}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(2)


def note(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


def suite(variable: str, needs: str, what: str) -> Path:
    """Return the file or folder NEEDS below the folder that VARIABLE names."""
    folder = os.environ.get(variable)
    if not folder:
        die(f"{variable} is not set", f"{variable}=FOLDER, the folder of {what}")
    path = Path(folder).resolve() / needs
    if not path.exists():
        die(f"{path} is missing", f"{variable} must name the folder of {what}")
    return path


def command(variable: str, default: str) -> list[str]:
    """Return the command words in VARIABLE (or DEFAULT), found on PATH."""
    words = shlex.split(os.environ.get(variable) or default)
    found = shutil.which(words[0])
    if not found:
        die(f"{words[0]}: no such command", f"put it on PATH or set {variable}")
    return [os.path.abspath(found), *words[1:]]


class Hang(Exception):
    """A command passed its time limit."""


@dataclass(slots=True)
class Union:
    """The filesystem under test: layers, a mount point, and how to mount it."""

    fs: str
    base: Path
    lowers: list[Path]
    extra: list[str] = field(default_factory=list)
    option_form: bool = False
    rootless: bool = False

    @classmethod
    def create(cls, args: argparse.Namespace, scratch: Path, name: str = "u") -> Union:
        """Make empty layers and a mount point below SCRATCH/NAME."""
        union = cls(
            args.fs,
            scratch / name,
            [scratch / name / "lower"],
            shlex.split(args.mount_args),
            args.option_form,
            bool(args.rootless),
        )
        for folder in (*union.lowers, union.upper, union.work, union.mnt):
            folder.mkdir(parents=True)
        return union

    @property
    def upper(self) -> Path:
        return self.base / "layers" / "upper"

    @property
    def work(self) -> Path:
        return self.base / "layers" / "work"

    @property
    def mnt(self) -> Path:
        return self.base / "mnt"

    def options(self) -> str:
        """``lowerdir=…,upperdir=…,workdir=…``."""
        lowers = ":".join(map(str, self.lowers))
        return f"lowerdir={lowers},upperdir={self.upper},workdir={self.work}"

    def mount_command(self) -> list[str]:
        """The command that mounts and returns when mounted."""
        mnt, options = str(self.mnt), self.options()
        if self.fs == "overlayfs":
            # In a user namespace overlayfs keeps its marks in user.overlay.*.
            more = ",userxattr" if self.rootless else ""
            return ["mount", "-t", "overlay", "overlay", "-o", options + more, *self.extra, mnt]
        if self.fs == "fuse-overlayfs":
            return [*command("FUSE_OVERLAYFS", "fuse-overlayfs"), *self.extra, "-o", options, mnt]
        program = [*command("PYUNION", "pyunion"), "mount", *self.extra]
        if self.option_form:
            return [*program, "-o", options, mnt]
        return [*program, ":".join(map(str, self.lowers)), str(self.upper), mnt]

    def mount(self) -> None:
        """Mount; on a plain folder, copy the lowers' content into place once."""
        if self.fs == "plain":
            if not any(self.mnt.iterdir()):
                for lower in self.lowers:
                    subprocess.run(["cp", "-a", f"{lower}/.", str(self.mnt)], check=True)
            return
        run_checked(self.mount_command(), 60)
        if not os.path.ismount(self.mnt):
            raise RuntimeError(f"not mounted when the mount command returned: {self.mnt}")

    def umount(self) -> None:
        """Unmount and wait until the daemon of a peer is gone."""
        if self.fs == "plain":
            return
        if self.fs == "pyunion":
            run_checked([*command("PYUNION", "pyunion"), "umount", str(self.mnt)], 60)
        else:
            run_checked(["umount", str(self.mnt)], 60)
        if self.fs == "fuse-overlayfs":
            # It still holds the layers open for a moment after umount returns.
            wait_until(lambda: not self.pids("fuse-overlayfs"), 30)

    def pids(self, word: str) -> list[int]:
        """Running processes of this pid namespace whose command begins with WORD."""
        return [pid for pid in processes() if process_name(pid).startswith(word)]

    def daemon(self) -> int:
        """Process id of the FUSE daemon that serves the mount point."""
        if self.fs == "pyunion":
            stats = [*command("PYUNION", "pyunion"), "stat", str(self.mnt), "--json"]
            return int(json.loads(run_checked(stats, 60))["pid"])
        pids = self.pids(self.fs)
        if len(pids) != 1:
            raise RuntimeError(f"no single daemon of {self.fs}: {pids}")
        return pids[0]

    def abort(self) -> None:
        """Make every waiting request fail, so that hung callers go on."""
        # MNT_FORCE aborts a FUSE connection; the daemon need not answer.
        subprocess.run(["umount", "-f", str(self.mnt)], stderr=subprocess.DEVNULL, check=False)

    def fsck(self) -> None:
        """``pyunion fsck`` on the unmounted layers must find nothing."""
        if self.fs != "pyunion":
            return
        lowers = ":".join(map(str, self.lowers))
        words = [*command("PYUNION", "pyunion"), "fsck", str(self.upper), "--lower", lowers]
        if self.option_form:
            words += ["--work", str(self.work)]
        run_checked(words, 600)


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def process_name(pid: int) -> str:
    """Name of the program, or nothing for one that is gone or a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        name = Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""
    return "" if state in "ZX" else name


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll; return whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def run_limited(
    words: Sequence[str],
    seconds: float,
    union: Union | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> tuple[int, str]:
    """Run a command; return its status and all it printed.

    Raises Hang when it passes the limit; its processes are killed then, with
    the mount's connection aborted where SIGKILL alone does not end them.
    """
    # A file, not a pipe: a daemon that keeps stdout must not keep us waiting.
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            process_group=0,
        )
        hung = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            hung = True
            os.killpg(process.pid, signal.SIGKILL)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                if union:
                    union.abort()
                process.wait(30)
        out.seek(0)
        text = out.read().decode(errors="replace")
    if hung:
        raise Hang(f"no end after {seconds:g} s: {shlex.join(words)}\n{text[-2000:]}")
    return process.returncode, text


def run_checked(words: Sequence[str], seconds: float, union: Union | None = None) -> str:
    """Run a command that must succeed; return what it printed."""
    status, text = run_limited(words, seconds, union)
    if status:
        raise RuntimeError(f"exit {status}: {shlex.join(words)}\n{text[-4000:]}")
    return text


def parser(script_doc: str) -> argparse.ArgumentParser:
    """An argument parser with the options all scripts share."""
    made = argparse.ArgumentParser(
        description=script_doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--fs", choices=FILESYSTEMS, default="pyunion", help="default: pyunion")
    made.add_argument("--rootless", metavar="USER", help="run as USER in a user namespace")
    made.add_argument(
        "--drop-caches",
        nargs="?",
        const="2",
        choices=("1", "2", "3"),
        help="write 2 (or the given number) to drop_caches twice a second; needs root",
    )
    made.add_argument(
        "--mount-args", default="", metavar="ARGS", help="more arguments for the mount command"
    )
    made.add_argument(
        "--option-form",
        action="store_true",
        help="mount with `-o lowerdir=…,upperdir=…,workdir=…` instead of positional arguments",
    )
    made.add_argument("--scratch", metavar="DIR", help="make the scratch folder in DIR")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result to FILE")
    made.add_argument(
        "--baseline", type=Path, metavar="FILE", help="a result of --json whose failures are known"
    )
    return made


def main(
    args: argparse.Namespace,
    inside: Callable[[argparse.Namespace, Path], Result],
    check: Callable[[argparse.Namespace], object],
) -> int:
    """Run CHECK, then INSIDE in private namespaces; report; return the status."""
    if SCRATCH in os.environ:
        scratch = Path(os.environ.pop(SCRATCH))
        os.environ["XDG_RUNTIME_DIR"] = str(scratch)
        os.umask(0o022)
        threading.Thread(target=_end_with_outside, daemon=True).start()
        result = inside(args, scratch)
        (scratch / "result.json").write_text(json.dumps(result, indent=1))
        return 0
    check(args)
    if args.fs in ("pyunion", "fuse-overlayfs"):
        command(args.fs.upper().replace("-", "_"), args.fs)
    try:
        return _outside(args)
    except KeyboardInterrupt:
        return 130


def _outside(args: argparse.Namespace) -> int:
    started = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="conformance-", dir=args.scratch))
    scratch.chmod(0o755)
    stop = threading.Event()
    process: subprocess.Popen[bytes] | None = None
    dropper: threading.Thread | None = None
    try:
        process = subprocess.Popen(
            _namespace_command(args, scratch),
            stdin=subprocess.PIPE,
            env={**os.environ, SCRATCH: str(scratch)},
        )
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: process.kill() if process else None)
        if args.drop_caches:
            dropper = threading.Thread(target=_drop_caches, args=(args.drop_caches, stop))
            dropper.start()
        status = process.wait()
        path = scratch / "result.json"
        if status or not path.exists():
            note(f"error: ended with status {status} before the result was known")
            return 2
        result: Result = json.loads(path.read_text())
    finally:
        if process and process.poll() is None:
            process.kill()
            process.wait()
        stop.set()
        if dropper:
            dropper.join()
        _remove(scratch, args)
    result["seconds"] = round(time.monotonic() - started, 1)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return _report(result, args.baseline)


def _end_with_outside() -> None:
    """End the inside when the outside is gone, even by SIGKILL."""
    # Its end of our stdin then closes.  Without us sh ends, and so the pid namespace.
    while os.read(0, 1):
        pass
    os._exit(2)


def _namespace_command(args: argparse.Namespace, scratch: Path) -> list[str]:
    """This script again, inside namespaces."""
    # sh, not Python, is process 1: it reaps the daemons that outlive their parent.
    script = [sys.executable, "-B", os.path.abspath(sys.argv[0]), *sys.argv[1:]]
    again = ["sh", "-c", '"$@"; exit $?', "sh", *script]
    private = ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    private.append("--mount-proc")
    if not args.rootless:
        if os.geteuid():
            die("root is needed", "or give --rootless with your own name")
        return ["unshare", *private, "--", *again]
    user = pwd.getpwnam(args.rootless)
    in_userns = ["unshare", "--user", "--map-root-user", "--map-auto", *private, "--", *again]
    if os.geteuid() == user.pw_uid:
        return in_userns
    if os.geteuid():
        die("root is needed to become another user")
    os.chown(scratch, user.pw_uid, user.pw_gid)
    become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups"]
    if subprocess.run([*become, "test", "-x", sys.executable], check=False).returncode:
        # An interpreter in root's home is out of the user's reach; the system's is not.
        in_userns[in_userns.index(sys.executable)] = "/usr/bin/python3"
    # Where /dev/fuse is for root only, show the user a node of its own instead.
    fuse = os.stat("/dev/fuse")
    node = scratch / "fuse"
    os.mknod(node, stat.S_IFCHR, fuse.st_rdev)
    node.chmod(0o666)
    bind = 'mount --bind "$1" /dev/fuse && shift && exec "$@"'
    outer = ["unshare", "--mount", "--propagation", "private", "--"]
    return [*outer, "sh", "-c", bind, "sh", str(node), *become, *in_userns]


def _drop_caches(what: str, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        Path("/proc/sys/vm/drop_caches").write_text(what)


def _remove(folder: Path, args: argparse.Namespace) -> None:
    """Remove the scratch folder, also what subordinate ids or chattr protect."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        enter = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--map-auto"]
        quiet = subprocess.DEVNULL
        subprocess.run(["chattr", "-R", "-f", "-ai", str(folder)], stderr=quiet, check=False)
        subprocess.run([*enter, "rm", "-rf", str(folder)], check=False)


def _report(result: Result, baseline: Path | None) -> int:
    """Print ``failed/run`` and what failed; return the exit status."""
    failures: dict[str, list[Any]] = result["failures"]
    known: dict[str, list[Any]] = json.loads(baseline.read_text())["failures"] if baseline else {}
    beyond = 0
    for name, items in failures.items():
        new = [item for item in items if item not in known.get(name, [])]
        beyond += len(new)
        if new:
            print(f"{name}: {_ranges(new)}")
    text = f"{result['failed']}/{result['run']} failed"
    if baseline:
        text += f", {beyond} beyond the baseline"
    print(f"{result['suite']} on {result['fs']}: {text} ({result['seconds']:g} s)")
    return int((beyond if baseline else result["failed"]) > 0)


def _ranges(items: list[Any]) -> str:
    """``1-3, 7`` for test numbers; one indented block each for texts."""
    if not all(isinstance(item, int) for item in items):
        return "".join("\n    " + str(item).strip().replace("\n", "\n    ") for item in items)
    runs: list[list[int]] = []
    for number in sorted(items):
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def result(name: str, args: argparse.Namespace, run: int, failures: dict[str, list[Any]]) -> Result:
    """The record that INSIDE returns; each item of a failure list counts once."""
    failures = {key: items for key, items in failures.items() if items}
    return {
        "suite": name,
        "fs": args.fs,
        "run": run,
        "failed": sum(map(len, failures.values())),
        "failures": failures,
    }
