"""Rows that only look: attributes, names, listings, opening and reading small files."""

from __future__ import annotations

import contextlib
import os

from bench.stage import Stage
from bench.workload import Row, Skipped, Workload, register


def _read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4096)
    os.close(fd)


def _open(path: str) -> None:
    os.close(os.open(path, os.O_RDONLY))


def _miss(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.stat(path)


def _lookups(stage: Stage) -> None:
    count = stage.sizes.files
    files = [f"{stage.mnt}/d/f{number}" for number in range(count)]
    links = [f"{stage.mnt}/s/l{number}" for number in range(count)]
    stage.each("stat-first", os.stat, files)
    stage.each("stat", os.stat, files)
    stage.each("open-close-first", _open, files)
    stage.each("open-close", _open, files)
    stage.each("read-small-first", _read, files)
    stage.each("read-small", _read, files)
    for link in links:
        os.readlink(link)
    stage.each("readlink", os.readlink, links)
    missing = [f"{stage.mnt}/d/none{number % 100}" for number in range(count)]
    stage.each("negative-first", _miss, missing[:100])
    stage.each("negative", _miss, missing)
    os.listdir(f"{stage.mnt}/d")
    stage.each("readdir", os.listdir, [f"{stage.mnt}/d"] * 20)


def _walk(top: str) -> int:
    """What find(1) does: names and types, no attributes."""
    return sum(len(names) + len(dirs) for _, dirs, names in os.walk(top))


def _list_all(top: str) -> None:
    """What ``ls -lR`` does: names in each directory, then attributes of each."""
    with os.scandir(top) as found:
        entries = list(found)
    for entry in entries:
        os.lstat(entry.path)
        for attribute in ("security.selinux", "system.posix_acl_access"):
            with contextlib.suppress(OSError):
                os.getxattr(entry.path, attribute, follow_symlinks=False)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _list_all(entry.path)


def _need_cold(stage: Stage) -> None:
    if not stage.drop_caches():
        raise Skipped("the kernel's caches cannot be dropped here, or are not to be")


def _cold(stage: Stage) -> None:
    files = [f"{stage.mnt}/d/f{number}" for number in range(stage.sizes.files)]
    _need_cold(stage)
    stage.each("read-small-cold", _read, files)


def _walks(stage: Stage) -> None:
    _need_cold(stage)
    with stage.measure("find-cold"):
        _walk(stage.mnt)
    with stage.measure("find"):
        _walk(stage.mnt)


def _first_walk(stage: Stage) -> None:
    with stage.measure("find-first"):
        _walk(stage.mnt)
    with stage.measure("ls-lR"):
        _list_all(stage.mnt)


register(
    Workload(
        "lookups",
        (
            Row("stat-first", "stat a name for the first time", cache="first", fuse_goal=1.5),
            Row("stat", "stat", fuse_goal=1.05, kernel_goal=1.3),
            Row("open-close-first", "open+close for the first time", cache="first"),
            Row("open-close", "open+close", fuse_goal=0.4, kernel_goal=1.3),
            Row("read-small-first", "open+read 500 B+close, first time", cache="first"),
            Row("read-small", "open+read 500 B+close", fuse_goal=0.4, kernel_goal=1.3),
            Row("readlink", "readlink", fuse_goal=1.05, kernel_goal=1.3),
            Row("negative-first", "stat of a missing name, first time", cache="first"),
            Row("negative", "stat of a missing name", fuse_goal=1.05, kernel_goal=1.3),
            Row("readdir", "list a directory of many", fuse_goal=1.05, kernel_goal=1.3),
        ),
        _lookups,
        tree="flat",
    )
)
register(
    Workload(
        "find",
        (
            Row("find-first", "find in a large tree, first time", "s", "first", fuse_goal=1.0),
            Row("ls-lR", "ls -lR of it after that", "s", "warm", fuse_goal=1.05),
        ),
        _first_walk,
        tree="forest",
    )
)
register(
    Workload(
        "find-dropped",
        (
            Row("find-cold", "find in a large tree, caches dropped", "s", "cold", fuse_goal=1.0),
            Row("find", "find once more", "s", "warm", fuse_goal=1.05, kernel_goal=1.3),
        ),
        _walks,
        tree="forest",
    )
)
register(
    Workload(
        "read-dropped",
        (
            Row(
                "read-small-cold",
                "open+read 500 B+close, caches dropped",
                cache="cold",
                fuse_goal=1.0,
            ),
        ),
        _cold,
        tree="flat",
        quick=False,
    )
)
