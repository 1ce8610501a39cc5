"""Containers for tests: a tiny root made of the host's own programs, and callers of three kinds.

``root`` calls as root; ``user`` as somebody with subordinate ids; ``single`` as the same
without. The last two exist in this session's private mount namespace only, where /etc/passwd,
/etc/subuid and /etc/subgid are files of ours.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.sys import calls

ROOT = Path(__file__).resolve().parent.parent.parent
UID = 54321
#: Seconds after which something hangs. On a busy disk a single write may take minutes.
PATIENCE = 300
_PROGRAMS = [
    "sh",
    "cat",
    "ls",
    "id",
    "sleep",
    "true",
    "false",
    "mkdir",
    "touch",
    "ln",
    "stat",
    "readlink",
    "env",
    "grep",
    "chown",
    "chmod",
    "head",
    "wc",
    "mount",
    "rm",
    "cp",
    "hostname",
    "dd",
    "tail",
    "seq",
    "find",
    "sync",
    "nproc",
    "kill",
    "stty",
]
_MS_BIND = 0x1000


class Pyrun:
    """Runs pyrun as one kind of caller, with a place of its own for containers."""

    def __init__(self, kind: str, place: Path, rootfs: Path) -> None:
        self.kind = kind
        self.place = place
        self.rootfs = rootfs

    @property
    def command(self) -> list[str]:
        words = []
        if self.kind != "root" and os.geteuid() == 0:
            words = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "--"]
        return [*words, sys.executable, "-m", "runtime"]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYRUN_ROOT": str(self.place / "pyrun"),
            "PYUNION_STORE": str(self.place / "store"),
            "HOME": str(self.place),
        }

    def __call__(
        self, *words: str, code: int | None = 0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.command, *words],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=PATIENCE,
            check=False,
            cwd=self.place,
        )
        assert code is None or done.returncode == code, (words, done)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def run(
        self, *words: str, options: tuple[str, ...] = (), code: int | None = 0, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """``run --rm`` without network on the tiny root."""
        single = ("--userns", "single") if self.kind == "single" else ()
        base = ("run", "--rm", "--network", "none", *single, "--rootfs", str(self.rootfs))
        return self(*base, *options, *words, code=code, stdin=stdin)

    def out(self, *words: str, options: tuple[str, ...] = ()) -> str:
        """What a command in a new container prints."""
        return self.run(*words, options=options).stdout

    def start(self, name: str, *words: str, options: tuple[str, ...] = ()) -> str:
        """``run -d``; the id."""
        single = ("--userns", "single") if self.kind == "single" else ()
        base = ("run", "-d", "--name", name, "--network", "none", *single)
        return self(*base, "--rootfs", str(self.rootfs), *options, *words).stdout.strip()

    def clean(self) -> None:
        """Remove every container."""
        self("rm", "--force", "--all")


def _libraries(program: str) -> list[str]:
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return [word for word in said.split() if word.startswith("/")]


@contextlib.contextmanager
def _open_directory() -> Iterator[Path]:
    """A directory that other users reach; pytest's own are closed to them, at any time anew."""
    place = Path(tempfile.mkdtemp(prefix="pyrun-test-"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In place of pytest's."""
    with _open_directory() as place:
        yield place


@pytest.fixture(scope="session")
def tiny_root() -> Iterator[Path]:
    """A directory tree with a shell and a few programs of the host."""
    with _open_directory() as place:
        yield _fill(place)


def _fill(place: Path) -> Path:
    for name in ("usr/bin", "etc", "tmp", "proc", "sys", "dev", "root", "home"):
        (place / name).mkdir(parents=True)
    (place / "tmp").chmod(0o1777)
    (place / "bin").symlink_to("usr/bin")
    for name in _PROGRAMS:
        found = shutil.which(name)
        if found is None:
            continue
        shutil.copy(found, place / "usr/bin" / name)
        for library in _libraries(found):
            target = place / library.lstrip("/")
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(library, target)
    (place / "etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home:/bin/sh\n"
    )
    (place / "etc/group").write_text("root:x:0:\nalice:x:1000:\nstaff:x:50:alice\n")
    return place


@pytest.fixture(scope="session")
def accounts() -> Iterator[None]:
    """An account with subordinate ids, for this mount namespace only; open devices."""
    if os.geteuid() != 0:
        yield
        return
    with _open_directory() as place:
        yield from _with_accounts(place)


def _with_accounts(place: Path) -> Iterator[None]:
    contents = {
        "/etc/passwd": Path("/etc/passwd").read_text() + f"pyruntest:x:{UID}:{UID}::/tmp:/bin/sh\n",
        "/etc/subuid": "pyruntest:200000:65536\n",
        "/etc/subgid": "pyruntest:200000:65536\n",
    }
    bound = []
    try:
        for target, text in contents.items():
            if not os.path.exists(target):
                continue
            source = place / os.path.basename(target)
            source.write_text(text)
            source.chmod(0o644)
            _bind(source, target)
            bound.append(target)
        for name, number in (("fuse", (10, 229)), ("net/tun", (10, 200))):
            target = f"/dev/{name}"
            if os.path.exists(target) and not os.stat(target).st_mode & 0o002:
                node = place / name.replace("/", "-")
                os.mknod(node, 0o020666, os.makedev(*number))
                node.chmod(0o666)
                _bind(node, target)
                bound.append(target)
        yield
    finally:
        for target in bound:
            calls.umount2(os.fsencode(target), calls.MNT_DETACH)


def _bind(source: Path, target: str) -> None:
    calls.mount(os.fsencode(source), os.fsencode(target), b"", _MS_BIND, b"")


def make_pyrun(kind: str, place: Path, rootfs: Path) -> Pyrun:
    """A caller of a kind, or a skip that says why there is none."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing or not for us")
    if kind == "root" and os.geteuid() != 0:
        pytest.skip("needs root")
    if kind == "user" and shutil.which("newuidmap") is None:
        pytest.skip("subordinate ids need newuidmap (uidmap)")
    pyrun = Pyrun(kind, place, rootfs)
    if kind != "root" and os.geteuid() == 0:
        os.chown(place, UID, UID)
        seen = subprocess.run(
            [*pyrun.command[:-2], "-c", "import runtime.cli.main"],
            env=pyrun.environment,
            capture_output=True,
            check=False,
        )
        if seen.returncode:
            pytest.skip("the interpreter or the sources cannot be read by another user")
        tried = subprocess.run(
            [*pyrun.command[:-3], "unshare", "--user", "true"], capture_output=True, check=False
        )
        if tried.returncode:
            pytest.skip("no user namespaces for ordinary users here")
    elif kind == "user" and not _has_subordinate_ids():
        pytest.skip("this user has no subordinate ids")
    return pyrun


def _has_subordinate_ids() -> bool:
    from runtime import ids

    return bool(ids.caller(False).sub_uids and ids.caller(False).sub_gids)


@pytest.fixture(params=["root", "user", "single"])
def pyrun(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_root: Path, accounts: None
) -> Iterator[Pyrun]:
    """pyrun as each kind of caller; every container is removed at the end."""
    made = make_pyrun(request.param, tmp_path, tiny_root)
    yield made
    _end(made)


@pytest.fixture
def any_pyrun(tmp_path: Path, tiny_root: Path, accounts: None) -> Iterator[Pyrun]:
    """pyrun as one caller, the least privileged that works here."""
    made = None
    for kind in ("user", "single", "root"):
        with contextlib.suppress(pytest.skip.Exception):
            made = make_pyrun(kind, tmp_path, tiny_root)
            break
    if made is None:
        pytest.skip("no container can be run here")
    yield made
    _end(made)


@pytest.fixture
def root_pyrun(tmp_path: Path, tiny_root: Path, accounts: None) -> Iterator[Pyrun]:
    """pyrun as root."""
    made = make_pyrun("root", tmp_path, tiny_root)
    yield made
    _end(made)


def _end(pyrun: Pyrun) -> None:
    pyrun.clean()
    left = list((pyrun.place / "pyrun").glob("containers/*"))
    assert not left, f"containers left: {left}"
    if pyrun.kind != "root" and os.geteuid() == 0:
        os.chown(pyrun.place, 0, 0)
