"""What a host lacks is told in one line, with status 125, and nothing is left."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runtime.conftest import PATIENCE, Pyrun, make_pyrun


def where(
    pyrun: Pyrun, before: str, *words: str, flags: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """``run`` in a mount namespace of its own, after a shell has changed it."""
    run = [*pyrun.command, "run", "--rm", "--network", "none", *words]
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", *flags,
         "sh", "-c", f'{before} && exec "$@"', "sh", *run],
        env=pyrun.environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def _one_line(pyrun: Pyrun, done: subprocess.CompletedProcess[str], wanted: str) -> None:
    assert done.returncode == 125, done
    lines = done.stderr.splitlines()
    assert lines and lines[0].startswith("error: ") and wanted in lines[0], done
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), done
    assert list((pyrun.place / "pyrun").glob("containers/*")) == []
    assert list((pyrun.place / "pyrun").glob("names/*")) == []


@pytest.fixture(params=["root", "user", "single"])
def lacking(
    request: pytest.FixtureRequest, tmp_path: Path, tiny_root: Path, accounts: None
) -> Pyrun:
    """Each kind of caller, on a host that can be changed for it alone."""
    if os.geteuid() != 0:
        pytest.skip("needs root to take something away")
    return make_pyrun(request.param, tmp_path, tiny_root)


def test_no_dev_fuse(lacking: Pyrun) -> None:
    words = ("--storage", "union", "--rootfs", str(lacking.rootfs), "true")
    before = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3"
    done = where(lacking, before, *words)
    _one_line(lacking, done, "/dev/fuse")


def test_no_user_namespaces(lacking: Pyrun) -> None:
    if lacking.kind != "root":
        pytest.skip("needs root in the namespace that forbids")
    before = "echo 0 >/proc/sys/user/max_user_namespaces"
    words = ("--rootfs", str(lacking.rootfs), "true")
    done = where(lacking, before, *words, flags=("--user", "--map-root-user"))
    _one_line(lacking, done, "user namespaces cannot be made here")


def test_no_helper_for_ids(lacking: Pyrun) -> None:
    helper = shutil.which("newuidmap")
    if lacking.kind != "user" or helper is None:
        pytest.skip("needs a user with subordinate ids")
    done = where(
        lacking, f"mount --bind /dev/null {helper}", "--rootfs", str(lacking.rootfs), "true"
    )
    _one_line(lacking, done, "newuidmap")


def test_no_space(lacking: Pyrun) -> None:
    place = lacking.place / "pyrun"
    place.mkdir()
    os.chown(place, os.stat(lacking.place).st_uid, -1)
    before = (
        f"mount -t tmpfs -o size=64k,mode=777 none {place}"
        f" && {{ dd if=/dev/zero of={place}/fill bs=1k count=80 2>/dev/null || :; }}"
    )
    single = ("--userns", "single") if lacking.kind == "single" else ()
    done = where(lacking, before, *single, "--rootfs", str(lacking.rootfs), "true")
    _one_line(lacking, done, "No space left on device")


def test_a_root_that_cannot_be_read(lacking: Pyrun, tmp_path: Path) -> None:
    if lacking.kind == "root":
        pytest.skip("needs a user with subordinate ids")  # root reads everything
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    os.chown(closed, 0, 0)
    done = where(lacking, "true", "--rootfs", str(closed), "true")
    _one_line(lacking, done, "Permission denied")
