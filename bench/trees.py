"""The lower trees: made once a run, the same for every peer and round.

A maker fills an empty directory and returns the directories of a stack, topmost
first; what a workload needs outside of the mount (an archive, a repository) lies
beside them. Content is made from the sizes alone, so two runs of one profile see the
same trees, but for those that come from the host, which are noted.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.workload import Sizes

_TEXT: Final = b"hello" * 100


@dataclass(frozen=True, slots=True)
class Site:
    """Where and how large a tree is to be made.

    Attributes:
        top: an empty directory.
        archive: a root filesystem's tar that was named by the user.
        root: made by root in the initial user namespace.
        note: to be told where content comes from: (tree, text).
        get: another tree's stack, as ``Trees.get``.
    """

    top: Path
    sizes: Sizes
    archive: Path | None
    root: bool
    note: Callable[[str, str], None]
    get: Callable[[str], list[Path]]


def _empty(site: Site) -> list[Path]:
    (site.top / "l").mkdir()
    return [site.top / "l"]


def _flat(site: Site) -> list[Path]:
    """``d/f0...`` with 500 bytes each, and ``s/l0...``, symbolic links to them."""
    lower = site.top / "l"
    (lower / "d").mkdir(parents=True)
    (lower / "s").mkdir()
    for number in range(site.sizes.files):
        (lower / "d" / f"f{number}").write_bytes(_TEXT)
        os.symlink(f"../d/f{number}", lower / "s" / f"l{number}")
    return [lower]


def _wide(site: Site) -> list[Path]:
    """``d/f0...``, as many as the large directory has, all empty."""
    lower = site.top / "l"
    (lower / "d").mkdir(parents=True)
    for number in range(site.sizes.wide):
        os.close(os.open(lower / "d" / f"f{number}", os.O_CREAT | os.O_WRONLY, 0o644))
    return [lower]


def _forest(site: Site) -> list[Path]:
    """Directories three deep with 20 files each, in two layers that overlap."""
    lowers = [site.top / "above", site.top / "base"]
    for lower, share in zip(lowers, (4, 1), strict=True):
        for number in range(0, site.sizes.tree, share):
            place = lower / f"a{number % 10}" / f"b{number % 50}" / f"c{number}"
            place.mkdir(parents=True)
            for name in range(20):
                (place / f"f{name}").write_bytes(b"x")
    return lowers


def _layers(count: int) -> Callable[[Site], list[Path]]:
    """``d`` in each of ``count`` layers, one file of its own in each, the rest at the bottom."""

    def make(site: Site) -> list[Path]:
        lowers = [site.top / str(number) for number in range(count)]
        for number, lower in enumerate(lowers):
            (lower / "d").mkdir(parents=True)
            (lower / "d" / f"own{number}").write_bytes(b"x")
        for number in range(site.sizes.files):
            (lowers[-1] / "d" / f"f{number}").write_bytes(b"x")
        return lowers

    return make


def _dense(path: Path, size: int) -> None:
    block = random.Random(1).randbytes(1 << 20)
    with open(path, "wb") as file:
        for _ in range(size >> 20):
            file.write(block)
        os.fsync(file.fileno())


def _data(site: Site) -> list[Path]:
    """``big``, one file to be read in order."""
    lower = site.top / "l"
    lower.mkdir()
    _dense(lower / "big", site.sizes.data)
    return [lower]


def _large(site: Site) -> list[Path]:
    """``dense``, and ``sparse`` with one block of data at its end."""
    lower = site.top / "l"
    lower.mkdir()
    _dense(lower / "dense", site.sizes.large)
    with open(lower / "sparse", "wb") as sparse:
        sparse.truncate(site.sizes.huge - 4096)
        sparse.seek(0, os.SEEK_END)
        sparse.write(b"x" * 4096)
    return [lower]


def _huge(site: Site) -> list[Path]:
    """``dense``, as long as the sparse file of the tree ``large``."""
    lower = site.top / "l"
    lower.mkdir()
    _dense(lower / "dense", site.sizes.huge)
    return [lower]


#: Makers by name of the tree; other modules add theirs.
MAKERS: Final[dict[str, Callable[[Site], list[Path]]]] = {
    "empty": _empty,
    "flat": _flat,
    "wide": _wide,
    "forest": _forest,
    "data": _data,
    "large": _large,
    "huge": _huge,
    "layers-2": _layers(2),
    "layers-32": _layers(32),
    "layers-128": _layers(128),
}


class Trees:
    """The trees of one run, made when first asked for below ``top``.

    Attributes:
        notes: where content comes from, by tree.
    """

    def __init__(self, top: Path, sizes: Sizes, archive: Path | None, *, root: bool) -> None:
        self._top = top
        self._sizes = sizes
        self._archive = archive
        self._root = root
        self._made: dict[str, list[Path]] = {}
        self.notes: dict[str, str] = {}

    def get(self, name: str) -> list[Path]:
        """The stack called ``name``, topmost first.

        Raises:
            Skipped: it cannot be made here.
        """
        if name not in self._made:
            place = self._top / name
            place.mkdir(parents=True)
            note = self.notes.__setitem__
            site = Site(place, self._sizes, self._archive, self._root, note, self.get)
            self._made[name] = MAKERS[name](site)
        return self._made[name]

    def warm(self, name: str) -> None:
        """Read all of the stack, so that every peer finds it in the caches below."""
        for lower in self.get(name):
            for place, _dirs, files in os.walk(lower):
                for file in files:
                    _read(os.path.join(place, file))


def _read(path: str) -> None:
    """Bring a file's attributes and, unless it is sparse, its data into the page cache."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_blocks * 512 < status.st_size // 2:
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        while os.read(fd, 1 << 20):
            pass
    finally:
        os.close(fd)
