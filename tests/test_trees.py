"""unionfs.trees: removing what there is, whatever it is, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unionfs.trees import remove_tree


def _remove(place: Path, name: str, **options: bool) -> None:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    before = len(os.listdir("/proc/self/fd"))
    try:
        remove_tree(fd, name, **options)
    finally:
        assert len(os.listdir("/proc/self/fd")) == before
        os.close(fd)


def test_what_is_not_there_and_what_is_no_directory(tmp_path: Path) -> None:
    _remove(tmp_path, "nothing")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "link").symlink_to("kept")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        _remove(tmp_path, name)
    assert os.listdir(tmp_path) == ["kept"] and (tmp_path / "kept/file").exists()


def test_a_tree_whose_directories_are_closed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/file").touch()
    (top / "a/out").symlink_to("/etc")
    (top / "c").mkdir()
    for place, mode in (("a/b", 0o000), ("a", 0o500), ("c", 0o000), ("", 0o400)):
        (top / place).chmod(mode)
    _remove(tmp_path, "top")
    assert os.listdir(tmp_path) == []


def test_a_tree_deeper_than_stacks_and_descriptors(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    _remove(tmp_path, "d")
    assert os.listdir(tmp_path) == ["f"]


def test_what_cannot_be_removed_stays_and_all_else_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/x", "b/stays", "c/y"):
        (tmp_path / "top" / name).mkdir(parents=True)
        (tmp_path / "top" / name / "file").touch()
    real = os.unlink

    def unlink(path: str, *, dir_fd: int | None = None) -> None:
        place = os.readlink(f"/proc/self/fd/{dir_fd}")
        if path == "file" and place.endswith("stays"):
            raise PermissionError(13, "Permission denied")
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(PermissionError):
        _remove(tmp_path, "top")
    _remove(tmp_path, "top", leave=True)
    assert [*os.walk(tmp_path / "top")][-1] == (str(tmp_path / "top/b/stays"), [], ["file"])
    assert os.listdir(tmp_path / "top") == ["b"]


def test_a_way_back_that_leads_elsewhere_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "top/a/b/c").mkdir(parents=True)
    (tmp_path / "other/innocent").mkdir(parents=True)
    real = os.rmdir

    def rmdir(path: str, *, dir_fd: int | None = None) -> None:
        real(path, dir_fd=dir_fd)
        if path == "c":  # somebody moves what is being removed
            os.rename(tmp_path / "top/a/b", tmp_path / "other/b")

    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(OSError, match="Stale"):
        _remove(tmp_path, "top")
    assert (tmp_path / "other/innocent").is_dir()
