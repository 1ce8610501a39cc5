"""Rows of work that people do: unpacking, version control, compiling, importing, databases."""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path

from bench.projects import LIBRARY, PACKAGES, git
from bench.stage import Stage
from bench.workload import Row, Skipped, Workload, register


def _beside(stage: Stage, name: str) -> Path:
    """What the tree's maker put beside the stack."""
    return Path(stage.lowers[0]).parent / name


def _all_ids_mapped() -> bool:
    """Whether files of any owner can be made (user_namespaces(7), uid_map)."""
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _untar(stage: Stage) -> None:
    place = Path(stage.mnt) / "root"
    place.mkdir()
    archive = _beside(stage, "root.tar")
    archive.read_bytes()
    owner = [] if _all_ids_mapped() else ["--no-same-owner"]
    with stage.measure("untar"):
        stage.run(["tar", "-xf", str(archive), "-C", str(place), "--exclude=./dev", *owner])
    with stage.measure("rm-rf"):
        stage.run(["rm", "-rf", str(place)])


def _lower_system(stage: Stage) -> None:
    top = Path(stage.mnt)
    with stage.measure("du-lower"):
        stage.run(["du", "-s", "."])
    with stage.measure("chmod-r-lower"):
        stage.run(["chmod", "-R", "u+r,g-w", "usr/share"])
    inside = sorted(place.name for place in top.iterdir())
    with stage.measure("rm-rf-lower"):
        stage.run(["rm", "-rf", *inside])


_MOUNTS = (("mount", "--bind", "/dev", "dev"), ("mount", "-t", "proc", "proc", "proc"))


def _apt(stage: Stage) -> None:
    if not _all_ids_mapped():
        raise Skipped("needs root in the initial user namespace")
    for command in _MOUNTS:
        stage.run(list(command))
    install = ["apt-get", "-q", "-y", "--no-install-recommends", "--no-download", "install"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        with stage.measure("apt-install"):
            stage.run(["chroot", stage.mnt, *install, *PACKAGES], env=environment)
    finally:
        stage.run(["umount", "-l", "dev", "proc"])


def _git_new(stage: Stage) -> None:
    origin = _beside(stage, "origin.git")
    place = Path(stage.mnt) / "clone"
    command = git(place)
    with stage.measure("git-clone"):
        stage.run(["git", "clone", "-q", "--no-hardlinks", str(origin), str(place)])
    with stage.measure("git-status"):
        stage.run([*command, "status", "--porcelain"])
    with stage.measure("git-checkout"):
        stage.run([*command, "checkout", "-q", "other"])


def _git_lower(stage: Stage) -> None:
    command = git(Path(stage.mnt))
    with stage.measure("git-status-lower"):
        stage.run([*command, "status", "--porcelain"])
    with stage.measure("git-checkout-lower"):
        stage.run([*command, "checkout", "-q", "other"])


def _make(stage: Stage) -> None:
    with stage.measure("make-j2"):
        stage.run(["make", "-s", "-j2"])


def _library(stage: Stage) -> None:
    # -B and -I: the interpreter itself reads and writes nothing of its own library's copy.
    python = [sys.executable, "-I", "-B"]
    with stage.measure("compileall"):
        stage.run([*python, "-m", "compileall", "-q", "lib"])
    modules = ", ".join(LIBRARY)
    code = (
        "import sys; sys.path.insert(0, 'lib2');"
        f" import {modules}, asyncio.base_events, email.message, http.client, unittest.mock,"
        " logging.handlers, xml.dom.minidom, urllib.request, argparse, decimal, difflib, doctest,"
        " pydoc, statistics, tarfile, zipfile, inspect, pickletools, turtle_demo"
    ).replace(", turtle_demo", "")
    command = [*python, "-S", "-c", code]
    with stage.measure("imports-first"):
        stage.run(command)
    with stage.measure("imports", 5):
        for _ in range(5):
            stage.run(command)


def _inserts(stage: Stage, row: str, journal: str) -> None:
    database = sqlite3.connect(os.path.join(stage.mnt, f"{row}.db"), isolation_level=None)
    database.execute(f"PRAGMA journal_mode={journal}")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE t (key INTEGER PRIMARY KEY, value TEXT)")
    with stage.measure(row, stage.sizes.inserts):
        for _ in range(stage.sizes.inserts):
            database.execute("INSERT INTO t (value) VALUES (?)", ("x" * 200,))
    database.close()


def _sqlite(stage: Stage) -> None:
    _inserts(stage, "sqlite", "DELETE")
    _inserts(stage, "sqlite-wal", "WAL")


register(
    Workload(
        "unpack",
        (
            Row("untar", "unpack an archive", "s", "first", 0.9, 2.5),
            Row("rm-rf", "rm -rf of it", "s", fuse_goal=0.9, kernel_goal=2.5),
        ),
        _untar,
        tree="archive",
        rounds=5,
        programs=("tar",),
    )
)
register(
    Workload(
        "system",
        (
            Row("du-lower", "du -s of a lower system", "s", "first", 1.0),
            Row("chmod-r-lower", "chmod -R of its usr/share", "s", "first"),
            Row("rm-rf-lower", "rm -rf of the rest of it", "s", fuse_goal=0.9, kernel_goal=2.5),
        ),
        _lower_system,
        tree="system",
        rounds=5,
        quick=False,
        copy_up=True,
    )
)
register(
    Workload(
        "apt",
        (Row("apt-install", f"apt install {' '.join(PACKAGES)} inside", "s", "first", 0.9, 2.5),),
        _apt,
        tree="apt",
        rounds=3,
        quick=False,
        copy_up=True,
    )
)
register(
    Workload(
        "git",
        (
            Row("git-clone", "git clone of a local repository", "s", "first"),
            Row("git-status", "git status after that", "s", "warm"),
            Row("git-checkout", "git checkout of a branch", "s", "warm", 0.9, 2.5),
        ),
        _git_new,
        tree="git",
        rounds=5,
        programs=("git",),
    )
)
register(
    Workload(
        "git-lower",
        (
            Row("git-status-lower", "git status of a lower work tree", "s", "first"),
            Row("git-checkout-lower", "git checkout of a branch in it", "s", "first", 0.9, 2.5),
        ),
        _git_lower,
        tree="git",
        rounds=5,
        quick=False,
        copy_up=True,
        programs=("git",),
    )
)
register(
    Workload(
        "compile",
        (Row("make-j2", "make -j2 of a C program", "s", "first", 0.9, 1.3),),
        _make,
        tree="program",
        rounds=5,
        programs=("make", "cc"),
    )
)
register(
    Workload(
        "python",
        (
            Row("compileall", "python -m compileall of a library", "s", "first", 0.9, 1.3),
            Row("imports-first", "import many modules, first time", "s", "first", 0.9, 1.3),
            Row("imports", "import many modules", "s", "warm", 0.9, 1.3),
        ),
        _library,
        tree="library",
        rounds=5,
        quick=False,
    )
)
register(
    Workload(
        "sqlite",
        (
            Row("sqlite", "SQLite insert, rollback journal, fsync", fuse_goal=1.0),
            Row("sqlite-wal", "SQLite insert, write-ahead log, fsync", fuse_goal=1.0),
        ),
        _sqlite,
    )
)
