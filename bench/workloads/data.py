"""Rows that move data in files that are large."""

from __future__ import annotations

import os

from bench.stage import Stage
from bench.workload import Row, Workload, register

_BLOCK = 1 << 20


def _sequential(stage: Stage) -> None:
    blocks = stage.sizes.data // _BLOCK
    buffer = bytearray(os.urandom(_BLOCK))
    path = f"{stage.mnt}/new"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
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
