"""Rows of many: client processes at once, and layers below each other."""

from __future__ import annotations

import os

from bench.stage import Stage
from bench.workload import Row, Workload, register

_CLIENTS = (1, 2, 4)
_LAYERS = (2, 32, 128)


def _client(top: str, files: range, lower: str) -> int:
    """Look, read, make, change and remove; the number of operations per file."""
    os.mkdir(top)
    for number in files:
        os.stat(f"{lower}/f{number}")
        fd = os.open(f"{lower}/f{number}", os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)
        path = f"{top}/c{number}"
        fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(fd, b"x" * 1000)
        os.close(fd)
        os.rename(path, f"{top}/r{number}")
        os.unlink(f"{top}/r{number}")
    return 5


def _parallel(stage: Stage) -> None:
    share = stage.sizes.files // sum(_CLIENTS)
    start = 0
    for clients in _CLIENTS:
        begin_read, begin_write = os.pipe()
        children = []
        for number in range(clients):
            files = range(start, start + share)
            start += share
            pid = os.fork()
            if not pid:
                os.close(begin_write)
                os.read(begin_read, 1)
                code = 1
                try:
                    _client(f"{stage.mnt}/p{clients}-{number}", files, f"{stage.mnt}/d")
                    code = 0
                finally:
                    os._exit(code)
            children.append(pid)
        os.close(begin_read)
        with stage.measure(f"parallel-{clients}", clients * share * 5):
            os.close(begin_write)
            codes = [os.waitpid(pid, 0)[1] for pid in children]
        if any(codes):
            raise OSError(0, "a client failed")


def _layers(count: int) -> None:
    def run(stage: Stage) -> None:
        files = [f"{stage.mnt}/d/f{number}" for number in range(stage.sizes.files)]
        with stage.measure(f"list-{count}-layers"):
            os.listdir(f"{stage.mnt}/d")
        stage.each(f"stat-{count}-layers", os.stat, files)

    def run_first(stage: Stage) -> None:
        files = [f"{stage.mnt}/d/f{number}" for number in range(stage.sizes.files)]
        stage.each(f"lookup-{count}-layers", os.stat, files)

    register(
        Workload(
            f"lookup-{count}",
            (Row(f"lookup-{count}-layers", f"stat a name below {count} layers", cache="first"),),
            run_first,
            tree=f"layers-{count}",
            quick=count == 128,
        )
    )
    register(
        Workload(
            f"list-{count}",
            (
                Row(f"list-{count}-layers", f"list a directory of {count} layers", cache="first"),
                Row(f"stat-{count}-layers", "then stat its names", cache="first"),
            ),
            run,
            tree=f"layers-{count}",
            quick=False,
        )
    )


register(
    Workload(
        "parallel",
        tuple(
            Row(f"parallel-{count}", f"mixed operations, {count} at once", fuse_goal=1.0)
            for count in _CLIENTS
        ),
        _parallel,
        tree="flat",
    )
)
for _count in _LAYERS:
    _layers(_count)
