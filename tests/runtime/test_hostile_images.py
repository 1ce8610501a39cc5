"""Images whose configuration, not whose files, is made to do harm or to break what reads it."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from runtime.health import checking
from runtime.plan import ProcessPlan
from tests.runtime.conftest import Pyrun
from tests.runtime.test_lifecycle import _until


def make_image(pyrun: Pyrun, name: str, config: Any, **more: bytes) -> str:
    """The tiny root with a ``config`` of one's own, as an image; ``more`` are files of /etc."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(pyrun.rootfs, ".", filter=_as_root)
        for file, text in more.items():
            member = tarfile.TarInfo(f"./etc/{file}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    import hashlib

    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [f"{name}:latest"], "Layers": ["layer.tar"]}]
    archive = pyrun.place / f"{name}.tar"
    with tarfile.open(archive, "w") as tar:
        for file, data in (
            ("layer.tar", layer.getvalue()),
            ("config.json", json.dumps(document).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            member = tarfile.TarInfo(file)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    archive.chmod(0o644)
    pyrun("load", "--input", str(archive))
    archive.unlink()
    return name


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    return member


def run(pyrun: Pyrun, image: str, *words: str, code: int | None = 0, options: Any = ()) -> str:
    """``run --rm`` of an image; both streams."""
    single = ("--userns", "single") if pyrun.kind == "single" else ()
    base = ("run", "--rm", "--network", "none", *single, *options, image)
    done = pyrun(*base, *words, code=code)
    return done.stdout + done.stderr


def test_a_volume_of_an_image_is_a_place_and_never_a_directory_of_the_host(
    any_pyrun: Pyrun, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    victim.chmod(0o777)
    (victim / "secret").write_text("of the host\n")
    image = make_image(any_pyrun, "binds", {"Volumes": {f"{victim}:/host": {}, "/ok": {}}})
    told = run(any_pyrun, image, "sh", "-c", f"ls -A /host /ok {victim}:; ls -d {victim}:/host")
    assert "secret" not in told and f"{victim}:/host" in told.splitlines()
    assert sorted(os.listdir(victim)) == ["secret"]


@pytest.mark.parametrize("place", ["/proc", "/proc/self/attr", "/sys/kernel", "/dev", "etc", "/"])
def test_a_volume_of_an_image_does_not_lie_on_the_kernels_filesystems(
    any_pyrun: Pyrun, place: str
) -> None:
    image = make_image(any_pyrun, "places", {"Volumes": {place: {}}})
    assert run(any_pyrun, image, "true", code=125).startswith("error: the image's volume")
    assert any_pyrun("volume", "ls", "--format", "{{.Name}}").stdout == ""


def test_a_number_is_no_name(any_pyrun: Pyrun) -> None:
    """CVE-2016-3697: a user of the image whose name is the number asked for."""
    if any_pyrun.kind == "single":
        pytest.skip("needs a user with subordinate ids")
    files = {
        "passwd": b"1000:x:0:0::/:/bin/sh\nroot:x:0:0::/:/bin/sh\nbob:x:1001:7::/:/bin/sh\n",
        "group": b"1000:x:0:\nroot:x:0:\nstaff:x:50:bob\n",
    }
    image = make_image(any_pyrun, "numbers", {"User": "1000:1000"}, **files)
    look = ("sh", "-c", "id -u; id -g; id -G")
    assert run(any_pyrun, image, *look).split() == ["1000", "1000", "1000"]
    told = run(any_pyrun, image, *look, options=("--user", "1000"))
    assert told.split() == ["1000", "0", "0"]
    told = run(any_pyrun, image, *look, options=("--user", "1001"))
    assert told.split() == ["1001", "7", "7", "50"]
    done = run(any_pyrun, image, "true", options=("--user", "4294967295"), code=125)
    assert "not a user id" in done


@pytest.mark.parametrize(
    "config",
    [
        [],
        {"Labels": ["x"]},
        {"Env": 5},
        {"Env": [5]},
        {"Cmd": "true"},
        {"Healthcheck": "true"},
        {"Healthcheck": {"Test": "true"}},
        {"Healthcheck": {"Test": ["NONE"], "Interval": "1s"}},
        {"Volumes": ["/x"]},
        {"ExposedPorts": 80},
        {"User": 0},
        {"WorkingDir": "/a\0b"},
        {"Cmd": ["tr\0ue"]},
        {"Entrypoint": ["\ud800"]},
    ],
)
def test_a_configuration_of_other_types_is_told_in_one_line(any_pyrun: Pyrun, config: Any) -> None:
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    try:
        image = make_image(any_pyrun, "types", config)
    except AssertionError:
        return  # the store does not let it in
    done = any_pyrun("run", "--rm", "--network", "none", *single, image, "true", code=125)
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) <= 2
    assert any_pyrun("ps", "-aq").stdout == ""


def test_an_image_does_not_have_its_health_looked_at_all_the_time(any_pyrun: Pyrun) -> None:
    """Checks begin outside of the container's limits; the image says how many may fail."""
    check = {"Test": ["CMD", "false"], "Interval": 1, "Retries": 1}
    image = make_image(any_pyrun, "ill", {"Healthcheck": check})
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    base = ("run", "-d", "--name", "h", "--network", "none", *single)
    any_pyrun(*base, image, "sleep", "100")
    _until(any_pyrun, "health_status=unhealthy")
    shown = json.loads(any_pyrun("inspect", "h").stdout)[0]["State"]["Health"]
    assert len(shown["Log"]) == 1


def test_what_an_image_checks_its_health_with_is_bound_as_its_command_is() -> None:
    """With one id and the host's pids only Landlock keeps signals from the union's daemon."""
    command = ProcessPlan(
        args=("x",), env=(), cwd="/", scope_signals=True, rlimits=((7, 64, 64),), terminal=True
    )
    check = checking(command, ["kill"])
    assert check == command.replace(args=("kill",), terminal=False)
