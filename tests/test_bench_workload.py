"""bench.workload and bench.trees: the registry, what --only asks for, the lower trees."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bench import workload
from bench.trees import MAKERS, Trees
from bench.workload import PROFILES, REGISTRY, Row, Skipped, Workload
from unionfs.errors import UserError


def _nothing(_stage: object) -> None:
    pass


def test_every_workload_has_a_tree_and_rows_of_its_own() -> None:
    known = workload.load()
    names = [row.name for work in known.values() for row in work.rows]
    assert len(names) == len(set(names))
    needed = {work.needs for work in known.values()}
    for work in known.values():
        assert work.tree in MAKERS, work.name
        assert work.rows or work.name in needed, work.name
        assert not work.needs or not known[work.needs].rows


def test_a_row_cannot_be_registered_twice() -> None:
    taken = next(iter(workload.load().values())).rows[0]
    with pytest.raises(ValueError, match="registered already"):
        workload.register(Workload("another", (taken,), _nothing))
    assert "another" not in REGISTRY


def test_another_package_may_register_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    workload.load()
    monkeypatch.setattr(workload, "REGISTRY", dict(REGISTRY))
    workload.register(Workload("launch", (Row("start-up", "start"),), _nothing, kind="container"))
    works, rows = workload.select(["start-up"], quick=False)
    assert [work.name for work in works] == ["launch"]
    assert rows == {"start-up"}


def test_only_takes_rows_workloads_and_patterns() -> None:
    works, rows = workload.select(["stat", "rm-*"], quick=True)
    assert rows == {"stat", "rm-rf", "rm-rf-lower"}
    assert {work.name for work in works} == {"lookups", "unpack", "system"}
    _, rows = workload.select(["copyup"], quick=True)
    assert rows == {row.name for row in REGISTRY["copyup"].rows}


def test_a_kind_limits_what_is_chosen() -> None:
    works, rows = workload.select(["run*", "r*"], quick=False, kinds=("container",))
    assert {work.kind for work in works} == {"container"}
    assert {"run", "run-rootless"} <= rows and "rename" not in rows
    works, _ = workload.select([], quick=False, kinds=("image",))
    assert [work.name for work in works] == ["images", "images-rootless"]
    with pytest.raises(UserError, match="no row stat"):
        workload.select(["stat"], quick=False, kinds=("image",))


def test_only_names_what_it_does_not_know() -> None:
    with pytest.raises(UserError, match="no row nonsense"):
        workload.select(["stat", "nonsense"], quick=True)


def test_the_quick_profile_is_a_part_of_the_full_one() -> None:
    quick, full = (workload.select([], quick=quick)[1] for quick in (True, False))
    assert quick < full


@pytest.mark.parametrize("name", ["empty", "flat", "wide", "forest", "large", "layers-32"])
def test_trees_are_the_same_each_time(tmp_path: Path, name: str) -> None:
    found = []
    for place in ("a", "b"):
        trees = Trees(tmp_path / place, PROFILES["tiny"], None, root=False)
        stack = trees.get(name)
        assert trees.get(name) is stack
        trees.warm(name)
        found.append(
            [
                (path.relative_to(tmp_path / place), path.is_file() and path.read_bytes())
                for lower in stack
                for path in sorted(lower.rglob("*"))
                if not path.is_symlink()
            ]
        )
    assert found[0] == found[1]


def test_a_stack_has_as_many_layers_as_it_says(tmp_path: Path) -> None:
    workload.load()
    trees = Trees(tmp_path, PROFILES["tiny"], None, root=False)
    assert len(trees.get("layers-128")) == 128


def test_a_repository_has_two_branches_and_an_origin(tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    workload.load()
    lower = Trees(tmp_path, PROFILES["tiny"], None, root=False).get("git")[0]
    heads = (lower / ".git" / "HEAD", tmp_path / "git" / "origin.git" / "HEAD")
    assert [head.read_text() for head in heads] == ["ref: refs/heads/main\n"] * 2
    assert (lower / ".git" / "refs" / "heads" / "other").exists()


def test_an_archive_made_from_the_host_says_so(tmp_path: Path) -> None:
    workload.load()
    trees = Trees(tmp_path, PROFILES["tiny"], None, root=True)
    trees.get("archive")
    assert "of /usr/share of this machine" in trees.notes["archive"]
    assert (tmp_path / "archive" / "root.tar").stat().st_size > 0


def test_a_system_without_apt_is_left_out(tmp_path: Path) -> None:
    workload.load()
    with pytest.raises(Skipped, match="needs a Debian root"):
        Trees(tmp_path, PROFILES["tiny"], None, root=True).get("apt")
