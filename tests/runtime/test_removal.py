"""Removals that were cut off, and what dead processes have left half made."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cowstore.spread import TOP, flags_of, spread
from runtime import state
from tests.runtime.conftest import Pyrun
from tests.runtime.test_images import image

__all__ = ["image"]


def _snapshots(caller: Pyrun) -> list[str]:
    return os.listdir(caller.place / "store/snapshots")


@pytest.mark.parametrize("step", ["renamed", "emptied"])
def test_a_removal_that_was_cut_off_is_brought_to_its_end(
    any_pyrun: Pyrun, image: str, step: str
) -> None:
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    words = ("create", "--name", "c", "--network", "none", *single, image, "true")
    container = any_pyrun(*words).stdout.strip()
    assert len(_snapshots(any_pyrun)) == 1
    root = any_pyrun.place / "pyrun"
    directory = root / "containers" / container
    directory.rename(f"{directory}.gone")
    if step == "emptied":
        shutil.rmtree(f"{directory}.gone/root")
    any_pyrun("inspect", "c", code=1)
    assert any_pyrun("ps", "-aq").stdout == ""
    assert _snapshots(any_pyrun) == []
    assert os.listdir(root / "containers") == os.listdir(root / "names") == []


def test_a_store_that_refuses_does_not_keep_a_container(any_pyrun: Pyrun, image: str) -> None:
    single = ("--userns", "single") if any_pyrun.kind == "single" else ()
    words = ("create", "--name", "c", "--network", "none", *single, image, "true")
    any_pyrun(*words)
    database = any_pyrun.place / "store/store.db"
    database.rename(f"{database}.away")
    database.mkdir()
    any_pyrun("rm", "c", code=1)
    assert any_pyrun("ps", "-aq").stdout == ""
    assert len(_snapshots(any_pyrun)) == 1
    database.rmdir()
    Path(f"{database}.away").rename(database)
    assert any_pyrun("ps", "-aq").stdout == ""
    assert _snapshots(any_pyrun) == []


def test_what_a_dead_process_was_making_is_removed(any_pyrun: Pyrun) -> None:
    any_pyrun.start("c", "sleep", "100")
    root = any_pyrun.place / "pyrun"
    container = root / "containers" / os.readlink(root / "names/c")
    with subprocess.Popen(["true"]) as process:
        pass
    dead, living = process.pid, os.getpid()
    drafts = [container / "config.json", root / "places", root / "overlay", root / "seccomp/key"]
    made = []
    for path in drafts:
        for number, old in ((dead, True), (dead, False), (living, True)):
            draft = Path(f"{path}.{number}.new" if old else f"{path}.{number}.fresh.{dead}.new")
            if path.name == "places":
                draft.mkdir()
                (draft / "dev").mkdir()
            else:
                draft.write_text("{")
            os.chown(draft, root.stat().st_uid, -1)
            if draft.is_dir():
                os.chown(draft / "dev", root.stat().st_uid, -1)
            if old:
                os.utime(draft, (1, 1))
            made.append((draft, number == living or not old))
    any_pyrun("ps")
    assert [path for path, kept in made if path.exists() != kept] == []
    assert any_pyrun("ps", "--format", "{{.Status}}").stdout == "running\n"


def test_nothing_is_left_when_run_returns(pyrun: Pyrun, tmp_path: Path) -> None:
    """Not even for a moment, whoever's files there are."""
    owner = "0" if pyrun.kind == "single" else "1000"
    script = f"mkdir -p /made/deep && echo x >/made/deep/f && chown -R {owner} /made; echo done"
    root = pyrun.place / "pyrun"
    for _ in range(5):
        assert pyrun.out("sh", "-c", script) == "done\n"
        assert os.listdir(root / "containers") == os.listdir(root / "names") == []


def test_containers_are_spread_over_the_disk(tmp_path: Path) -> None:
    """As far as the filesystem knows that: on ext4."""
    (tmp_path / "other").mkdir()
    can = spread(str(tmp_path / "other"))
    state.Containers(str(tmp_path / "root")).prepare()
    fd = os.open(tmp_path / "root/containers", os.O_RDONLY)
    try:
        assert not can or flags_of(fd) & TOP
    finally:
        os.close(fd)
