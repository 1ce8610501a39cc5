"""What can be measured: rows, the workloads that yield them, and their sizes.

A *row* is one line of the report: seconds for a number of like operations. A
*workload* is what is done on one fresh mount; it yields one or more rows. The
registry is a plain dictionary: a package with rows of its own calls ``register``
in a module named in PROVIDERS.
"""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from unionfs.errors import UserError

if TYPE_CHECKING:
    from bench.stage import Stage

#: Modules that register workloads when they are imported.
PROVIDERS: Final = [
    "bench.workloads.names",
    "bench.workloads.changes",
    "bench.workloads.data",
    "bench.workloads.work",
    "bench.workloads.many",
    "bench.workloads.images",
    "bench.workloads.containers",
]


#: Kinds of peers, and of the workloads for them; only FILESYSTEM is mounted.
FILESYSTEM: Final = "filesystem"
IMAGE: Final = "image"
CONTAINER: Final = "container"
KINDS: Final = (FILESYSTEM, IMAGE, CONTAINER)

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work a profile does.

    Attributes:
        files: files and operations of a row of single operations.
        wide: entries of the large directory; ``wide_files`` operations are done in it.
        grown: entries that a directory gets through the mount.
        tree: directories of the tree that is walked, 20 entries each.
        data: bytes of the file that is read and written in order.
        large: bytes of the dense file that is copied up; ``huge``: of the sparse one.
        archive: files in the archive, where it is made from the host.
        system: make the archive with mmdebstrap, if that is there.
        repository: files of the repository.
        units: source files of the C program.
        inserts: transactions of the database.
        disk: bytes of the file that fio works on.
        starts: containers that are started one after the other for one figure.
    """

    rounds: int
    files: int
    wide: int
    wide_files: int
    grown: int
    tree: int
    data: int
    large: int
    huge: int
    archive: int
    system: bool
    repository: int
    units: int
    inserts: int
    disk: int
    starts: int = 1


PROFILES: Final = {
    "tiny": Sizes(
        rounds=1,
        files=20,
        wide=100,
        wide_files=10,
        grown=50,
        tree=4,
        data=MIB,
        large=MIB,
        huge=2 * MIB,
        archive=20,
        system=False,
        repository=20,
        units=3,
        inserts=5,
        disk=MIB,
    ),
    "quick": Sizes(
        rounds=3,
        files=1000,
        wide=10_000,
        wide_files=100,
        grown=3000,
        tree=100,
        data=64 * MIB,
        large=64 * MIB,
        huge=256 * MIB,
        archive=1000,
        system=False,
        repository=1000,
        units=10,
        inserts=50,
        disk=32 * MIB,
        starts=5,
    ),
    "full": Sizes(
        rounds=7,
        files=2000,
        wide=50_000,
        wide_files=500,
        grown=50_000,
        tree=1000,
        data=256 * MIB,
        large=64 * MIB,
        huge=1024 * MIB,
        archive=10_000,
        system=True,
        repository=10_000,
        units=100,
        inserts=500,
        disk=128 * MIB,
        starts=10,
    ),
}


class Skipped(Exception):
    """A tree or a workload cannot be had here; the text says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report: time, or in MiB memory or disk; less is better.

    Attributes:
        unit: "us" or "ms" for an operation, "s" for the whole, "MiB".
        cache: "warm", "first" (known below, not yet to the mount) or "cold" (caches dropped).
        fuse_goal: at most this ratio to the fastest fuse-overlayfs.
        kernel_goal: at most this ratio to the kernel's overlayfs.
        podman_goal: at most this ratio to podman.
        most: ours is at most this, in the row's unit.
    """

    name: str
    text: str
    unit: str = "us"
    cache: str = "warm"
    fuse_goal: float | None = None
    kernel_goal: float | None = None
    podman_goal: float | None = None
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """What is done on one fresh mount.

    Attributes:
        run: does it, in the stage's process; times its rows with ``Stage.measure``.
        tree: name of the lower tree (see ``trees``).
        rounds: at most this many rounds, for what takes long.
        quick: part of ``--quick``.
        plain: makes sense on a plain directory (a copy of the lower tree).
        copy_up: changes files of the lower, which not every union can.
        programs: must be on PATH.
        kind: which peers it is for; only FILESYSTEM gets a mount.
        prepare: fills ``Stage.upper`` before mounting.
        user: done by an ordinary user, also where root runs the bench.
        needs: name of a workload without rows that is done before, once per peer and run.
    """

    name: str
    rows: tuple[Row, ...]
    run: Callable[[Stage], None]
    tree: str = "empty"
    rounds: int = 1000
    quick: bool = True
    plain: bool = True
    copy_up: bool = False
    programs: tuple[str, ...] = ()
    kind: str = FILESYSTEM
    prepare: Callable[[Stage], None] | None = None
    user: bool = False
    needs: str = ""


REGISTRY: Final[dict[str, Workload]] = {}


def register(workload: Workload) -> None:
    """Make ``workload`` known. Raises ValueError if a row or workload of that name is."""
    rows = {row.name for known in REGISTRY.values() for row in known.rows}
    if workload.name in REGISTRY or rows & {row.name for row in workload.rows}:
        raise ValueError(f"{workload.name} is registered already")
    REGISTRY[workload.name] = workload


def load() -> dict[str, Workload]:
    """The registry, filled by PROVIDERS."""
    for module in PROVIDERS:
        importlib.import_module(module)
    return REGISTRY


def rows_of(workloads: Iterable[Workload]) -> dict[str, Row]:
    """Rows by name, in order."""
    return {row.name: row for workload in workloads for row in workload.rows}


def select(
    patterns: list[str], *, quick: bool, kinds: Container[str] = KINDS
) -> tuple[list[Workload], set[str]]:
    """The workloads and the rows that ``--only`` asks for; without patterns, the profile's.

    Raises:
        UserError: a pattern fits no row and no workload of these kinds.
    """
    known = [workload for workload in load().values() if workload.kind in kinds and workload.rows]
    if not patterns:
        chosen = [workload for workload in known if workload.quick or not quick]
        return chosen, set(rows_of(chosen))
    names: set[str] = set()
    for pattern in patterns:
        found = {
            row.name
            for workload in known
            for row in workload.rows
            if fnmatch.fnmatchcase(row.name, pattern) or fnmatch.fnmatchcase(workload.name, pattern)
        }
        if not found:
            raise UserError(f"no row {pattern}", "pyunion bench --list")
        names |= found
    return [work for work in known if names & {row.name for row in work.rows}], names
