"""Containers from images of the store: run, diff, commit, and a run of what was committed."""

from __future__ import annotations

import subprocess
import tarfile

import pytest

from tests.runtime.conftest import Pyrun


@pytest.fixture
def image(any_pyrun: Pyrun) -> str:
    """The tiny root as an image of a store that the caller owns."""
    archive = any_pyrun.place / "root.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(any_pyrun.rootfs, ".", filter=_as_root)
    archive.chmod(0o644)
    subprocess.run(
        [*any_pyrun.command[:-1], "cowstore", "--root", str(any_pyrun.place / "store"), "import",
         f"rootfs:{archive}", "tiny"],
        env=any_pyrun.environment, check=True, capture_output=True,
    )  # fmt: skip
    return "tiny"


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 42 if member.name == "./etc/passwd" else 0
    return member


def test_an_image_is_run_changed_committed_and_run(any_pyrun: Pyrun, image: str) -> None:
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    run = ("run", "--network", "none", *single)
    told = any_pyrun(*run, "--rm", image, "sh", "-c", "stat -c %u:%g /etc; echo x >/etc/passwd")
    assert told.stdout == "0:0\n"
    any_pyrun(*run, "--name", "c", image, "sh", "-c", "echo new >/etc/new; rm /etc/group")
    # With one id there is nobody else for the kernel, and not even root could get at it.
    owners = any_pyrun(
        *run, "--rm", "--userns", "single", image, "stat", "-c", "%u:%g", "/etc/passwd"
    )
    assert owners.stdout == "0:0\n"
    any_pyrun("run", "--network", "none", "--userns", "single", "--name", "s", image, "sh", "-c",
              "echo more >>/etc/passwd")  # fmt: skip
    any_pyrun("commit", "s", "touched:1")
    if not single:
        asked = any_pyrun(*run, "--rm", "touched:1", "stat", "-c", "%u:%g", "/etc/passwd")
        assert asked.stdout == "42:42\n", "whose it was"
    changes = any_pyrun("diff", "c").stdout.splitlines()
    assert "A /etc/new" in changes and "D /etc/group" in changes
    any_pyrun("commit", "c", "changed:1")
    script = "cat /etc/new; test -e /etc/group || echo gone"
    assert any_pyrun(*run, "--rm", "changed:1", "sh", "-c", script).stdout == "new\ngone\n"


def test_an_image_that_is_not_there(any_pyrun: Pyrun, image: str) -> None:
    done = any_pyrun("run", "--rm", "--pull", "never", "nosuch", "true", code=125)
    assert done.stderr.startswith("error: no image nosuch")
    assert any_pyrun("ps", "-aq").stdout == ""
    assert any_pyrun("inspect", "--format", "{{.Names}}", image).stdout.strip() == '["tiny:latest"]'
