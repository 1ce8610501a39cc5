"""Rows that move data: files in order and at random, and copies made by a first change."""

from __future__ import annotations

import json
import os
import subprocess

from bench.stage import Stage
from bench.workload import Row, Workload, register

_BLOCK = 1 << 20


def _sequential(stage: Stage) -> None:
    blocks = stage.sizes.data // _BLOCK
    buffer = bytearray(os.urandom(_BLOCK))
    fd = os.open(f"{stage.mnt}/new", os.O_CREAT | os.O_WRONLY, 0o644)
    with stage.measure("write-seq", blocks):
        for _ in range(blocks):
            os.write(fd, buffer)
    with stage.measure("fsync-large", blocks):
        os.fsync(fd)
    os.close(fd)
    fd = os.open(f"{stage.mnt}/big", os.O_RDONLY)
    for row in ("read-seq-first", "read-seq"):
        os.lseek(fd, 0, os.SEEK_SET)
        with stage.measure(row, blocks):
            while os.readv(fd, [buffer]):
                pass
    os.close(fd)


def _append(stage: Stage, row: str, name: str) -> None:
    path = f"{stage.mnt}/{name}"
    os.stat(path)
    with stage.measure(row):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"more")
        os.close(fd)


def _large(stage: Stage) -> None:
    _append(stage, "copyup-dense", "dense")
    _append(stage, "copyup-sparse", "sparse")


def _huge(stage: Stage) -> None:
    _append(stage, "copyup-1g", "dense")


#: Row of fio -> its arguments, beside those that all have.
_JOBS = {
    "fio-read-4k": ["--rw=read", "--bs=4k"],
    "fio-read-1m": ["--rw=read", "--bs=1m"],
    "fio-randread-4k": ["--rw=randread", "--bs=4k"],
    "fio-randread-4k-mmap": ["--rw=randread", "--bs=4k", "--ioengine=mmap"],
    "fio-write-4k": ["--rw=write", "--bs=4k"],
    "fio-write-1m": ["--rw=write", "--bs=1m"],
    "fio-randwrite-4k": ["--rw=randwrite", "--bs=4k"],
    "fio-randwrite-4k-mmap": ["--rw=randwrite", "--bs=4k", "--ioengine=mmap"],
    "fio-randwrite-4k-fsync": ["--rw=randwrite", "--bs=4k", "--fsync=32"],
}
_IN_QUICK = ("fio-randread-4k", "fio-randwrite-4k", "fio-randwrite-4k-fsync")


def _fio(stage: Stage, rows: tuple[str, ...]) -> None:
    path = f"{stage.mnt}/disk"
    block = os.urandom(_BLOCK)
    with open(path, "wb") as disk:
        for _ in range(stage.sizes.disk // _BLOCK):
            disk.write(block)
        os.fsync(disk.fileno())
    for row in rows:
        size = stage.sizes.disk // 16 if "fsync" in row else stage.sizes.disk
        command = ["fio", f"--name={row}", f"--filename={path}", f"--size={size}"]
        command += ["--ioengine=psync", "--invalidate=0", "--randseed=7", "--output-format=json"]
        with stage.measure(row) as timing:
            done = subprocess.run(
                [*command, *_JOBS[row]], cwd=stage.scratch, capture_output=True, check=False
            )
            # fio's own clock leaves its start out.
            if done.returncode:
                raise OSError(0, f"fio: exit code {done.returncode}")
            job = json.loads(done.stdout)["jobs"][0]
            side = job["read" if "read" in row else "write"]
            timing.seconds, timing.count = side["runtime"] / 1000, side["total_ios"]


register(
    Workload(
        "sequential",
        (
            Row("write-seq", "write a new file, 1 MiB a call", fuse_goal=1.0, kernel_goal=1.5),
            Row("fsync-large", "then fsync it, per MiB"),
            Row(
                "read-seq-first",
                "read a lower file, 1 MiB a call, first time",
                cache="first",
                fuse_goal=1.0,
                kernel_goal=1.5,
            ),
            Row("read-seq", "read it again", fuse_goal=1.0, kernel_goal=1.5),
        ),
        _sequential,
        tree="data",
    )
)
register(
    Workload(
        "copyup-large",
        (
            Row("copyup-dense", "append to a lower file of 64 MiB", "s"),
            Row("copyup-sparse", "append to a sparse lower file (1 GiB, quick: 256 MiB)", "s"),
        ),
        _large,
        tree="large",
        rounds=5,
        plain=False,
        copy_up=True,
    )
)
register(
    Workload(
        "copyup-huge",
        (Row("copyup-1g", "append to a lower file of 1 GiB", "s"),),
        _huge,
        tree="huge",
        rounds=3,
        quick=False,
        plain=False,
        copy_up=True,
    )
)


def _register_fio(name: str, rows: tuple[str, ...], *, quick: bool) -> None:
    register(
        Workload(
            name,
            tuple(Row(row, f"fio {' '.join(_JOBS[row])}, buffered", fuse_goal=1.0) for row in rows),
            lambda stage: _fio(stage, rows),
            programs=("fio",),
            quick=quick,
            rounds=5,
        )
    )


_register_fio("fio", _IN_QUICK, quick=True)
_register_fio("fio-more", tuple(row for row in _JOBS if row not in _IN_QUICK), quick=False)
