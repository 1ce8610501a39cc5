"""Rows that change names and attributes, in small and in large directories."""

from __future__ import annotations

import os

from bench.stage import Stage
from bench.workload import Row, Workload, register


def _create(path: str) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.write(fd, b"x" * 1000)
    os.close(fd)


def _changes(stage: Stage, top: str, count: int, suffix: str) -> None:
    """Every change of names in ``top``; leaves it as it was but for links."""
    names = range(count)
    created = [f"{top}/c{number}" for number in names]
    renamed = [f"{top}/r{number}" for number in names]
    linked = [f"{top}/h{number}" for number in names]
    places = [f"{top}/p{number}" for number in names]
    stage.each(f"create{suffix}", _create, created)
    stage.each(f"chmod{suffix}", lambda path: os.chmod(path, 0o600), created)
    uid, gid = os.geteuid(), os.getegid()
    stage.each(f"chown{suffix}", lambda path: os.chown(path, uid, gid), created)
    stage.each(f"utimes{suffix}", lambda path: os.utime(path, (1, 1)), created)
    pairs = list(zip(created, renamed, strict=True))
    stage.each(f"rename{suffix}", lambda pair: os.rename(*pair), pairs)
    pairs = list(zip(renamed, linked, strict=True))
    stage.each(f"link{suffix}", lambda pair: os.link(*pair), pairs)
    stage.each(f"symlink{suffix}", lambda number: os.symlink("x", f"{top}/y{number}"), names)
    stage.each(f"mkdir{suffix}", os.mkdir, places)
    stage.each(f"rmdir{suffix}", os.rmdir, places)
    stage.each(f"unlink{suffix}", os.unlink, renamed)


def _rows(suffix: str, where: str) -> tuple[Row, ...]:
    """The rows of ``_changes``; in large directories the goals are stricter."""
    large = bool(suffix)
    goals = {
        "create": (1.0, "create+write 1000 B+close"),
        "chmod": (1.5, "chmod"),
        "chown": (1.5, "chown"),
        "utimes": (1.5, "utimes"),
        "rename": (0.4, "rename"),
        "link": (1.0, "link"),
        "symlink": (1.0, "symlink"),
        "mkdir": (0.6, "mkdir"),
        "rmdir": (1.0, "rmdir"),
        "unlink": (0.4, "unlink"),
    }
    attributes = ("chmod", "chown", "utimes")
    return tuple(
        Row(
            f"{name}{suffix}",
            f"{text} {where}",
            fuse_goal=0.3 if large and name not in attributes else goal,
        )
        for name, (goal, text) in goals.items()
    )


def _small(stage: Stage) -> None:
    top = f"{stage.mnt}/new"
    os.mkdir(top)
    _changes(stage, top, stage.sizes.files, "")


def _fill(stage: Stage) -> None:
    """An upper directory that is large already."""
    top = os.path.join(stage.upper, "wide")
    os.mkdir(top)
    for number in range(stage.sizes.wide):
        os.close(os.open(f"{top}/w{number}", os.O_CREAT | os.O_WRONLY, 0o644))


def _wide(stage: Stage) -> None:
    top = f"{stage.mnt}/wide"
    os.listdir(top)
    _changes(stage, top, stage.sizes.wide_files, "-wide")


def _grown(stage: Stage) -> None:
    top = f"{stage.mnt}/grown"
    os.mkdir(top)
    count = stage.sizes.grown
    with stage.measure("fill", count):
        for number in range(count):
            os.close(os.open(f"{top}/w{number}", os.O_CREAT | os.O_WRONLY, 0o644))
    _changes(stage, top, stage.sizes.wide_files, "-grown")


def _lower(stage: Stage) -> None:
    files = [f"{stage.mnt}/d/f{number}" for number in range(stage.sizes.files)]
    for path in files:
        os.stat(path)
    half = len(files) // 2
    stage.each("copyup-chmod", lambda path: os.chmod(path, 0o600), files[:half])
    stage.each("copyup-append", _append, files[half:])
    stage.each("whiteout-upper", os.unlink, files[:half])


def _append(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"more")
    os.close(fd)


def _whiteouts(stage: Stage) -> None:
    files = [f"{stage.mnt}/d/f{number}" for number in range(stage.sizes.files)]
    os.listdir(f"{stage.mnt}/d")
    stage.each("whiteout", os.unlink, files)


def _wide_whiteouts(stage: Stage) -> None:
    files = [f"{stage.mnt}/d/f{number}" for number in range(stage.sizes.wide_files)]
    os.listdir(f"{stage.mnt}/d")
    stage.each("whiteout-wide", os.unlink, files)


register(Workload("changes", _rows("", "in a new directory"), _small))
register(
    Workload(
        "changes-wide",
        _rows("-wide", "in a directory that was large below"),
        _wide,
        prepare=_fill,
        quick=False,
    )
)
register(
    Workload(
        "changes-grown",
        (
            Row("fill", "create empty files until the directory is large", fuse_goal=0.3),
            *_rows("-grown", "in a directory that became large through the mount"),
        ),
        _grown,
        rounds=2,
    )
)
register(
    Workload(
        "copyup",
        (
            Row("copyup-chmod", "chmod of a lower file of 500 B", fuse_goal=1.0),
            Row("copyup-append", "append to a lower file of 500 B", fuse_goal=1.0),
            Row("whiteout-upper", "unlink a file that was copied up", fuse_goal=0.6),
        ),
        _lower,
        tree="flat",
        copy_up=True,
    )
)
register(
    Workload(
        "whiteouts",
        (Row("whiteout", "unlink a lower file", fuse_goal=0.6),),
        _whiteouts,
        tree="flat",
        copy_up=True,
    )
)
register(
    Workload(
        "whiteouts-wide",
        (Row("whiteout-wide", "unlink a lower file in a large directory", fuse_goal=0.3),),
        _wide_whiteouts,
        tree="wide",
        copy_up=True,
        quick=False,
    )
)
