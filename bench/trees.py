"""The lower trees: made once a run, the same for every peer and round.

``make`` returns the directories of a stack, topmost first. All content is made
from the sizes alone, so two runs of one profile see the same trees.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.workload import Sizes

_TEXT: Final = b"hello" * 100


def _file(path: Path, data: bytes = _TEXT) -> None:
    path.write_bytes(data)


def _empty(top: Path, _sizes: Sizes) -> list[Path]:
    (top / "l").mkdir()
    return [top / "l"]


def _flat(top: Path, sizes: Sizes) -> list[Path]:
    """``d/f0...`` with 500 bytes each, and ``s/l0...``, symbolic links to them."""
    lower = top / "l"
    (lower / "d").mkdir(parents=True)
    (lower / "s").mkdir()
    for number in range(sizes.files):
        _file(lower / "d" / f"f{number}")
        os.symlink(f"../d/f{number}", lower / "s" / f"l{number}")
    return [lower]


def _wide(top: Path, sizes: Sizes) -> list[Path]:
    """``d/f0...``, as many as the large directory has, all empty."""
    lower = top / "l"
    (lower / "d").mkdir(parents=True)
    for number in range(sizes.wide):
        os.close(os.open(lower / "d" / f"f{number}", os.O_CREAT | os.O_WRONLY, 0o644))
    return [lower]


def _forest(top: Path, sizes: Sizes) -> list[Path]:
    """Directories three deep with 20 files each, in two layers that overlap."""
    lowers = [top / "upper", top / "base"]
    for lower, share in zip(lowers, (4, 1), strict=True):
        for number in range(0, sizes.tree, share):
            place = lower / f"a{number % 10}" / f"b{number % 50}" / f"c{number}"
            place.mkdir(parents=True)
            for name in range(20):
                _file(place / f"f{name}", b"x")
    return lowers


def _data(top: Path, sizes: Sizes) -> list[Path]:
    """``big``, one file to be read in order."""
    lower = top / "l"
    lower.mkdir()
    block = os.urandom(1 << 20)
    with open(lower / "big", "wb") as big:
        for _ in range(sizes.data >> 20):
            big.write(block)
    return [lower]


MAKERS: Final[dict[str, Callable[[Path, Sizes], list[Path]]]] = {
    "empty": _empty,
    "flat": _flat,
    "wide": _wide,
    "forest": _forest,
    "data": _data,
}


class Trees:
    """The trees of one run, made when first asked for below ``top``."""

    def __init__(self, top: Path, sizes: Sizes) -> None:
        self._top = top
        self._sizes = sizes
        self._made: dict[str, list[Path]] = {}

    def get(self, name: str) -> list[Path]:
        """The stack called ``name``, topmost first."""
        if name not in self._made:
            place = self._top / name
            place.mkdir(parents=True)
            self._made[name] = MAKERS[name](place, self._sizes)
        return self._made[name]

    def warm(self, name: str) -> None:
        """Read the stack's names and attributes, so that every peer finds them cached below."""
        for lower in self.get(name):
            for place, _dirs, files in os.walk(lower):
                for file in files:
                    os.lstat(os.path.join(place, file))
