"""Random histories of a union, held against a dictionary."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.conftest import needs_fuse
from tests.helpers import Mounted, Rig, Target
from tests.layers import Layers, Tree
from tests.machine import UnionMachine


class _Places:
    """Fresh directories for every example."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.numbers = itertools.count()

    def __call__(self, *lowers: Tree) -> Layers:
        return Layers.make(self.base / str(next(self.numbers)), *lowers)


def run_machine(make: Callable[[], UnionMachine], how: settings) -> None:
    """Hypothesis asks for a class, but calls it only."""
    run_state_machine_as_test(cast("type[UnionMachine]", make), settings=how)


def test_random_histories_equal_the_oracle(tmp_path: Path) -> None:
    """Without a mount: thousands of steps."""
    places = _Places(tmp_path)

    def make(layers: Layers, options: dict[str, Any]) -> Target:
        return Rig(layers, **options)

    run_machine(lambda: UnionMachine(places, make), settings())


@pytest.mark.parametrize("redirect_dir", ["copy", "on"])
def test_random_histories_of_a_mount_equal_the_oracle(tmp_path: Path, redirect_dir: str) -> None:
    """Through the kernel and the direct engine: a few hundred steps."""
    needs_fuse()
    places = _Places(tmp_path)
    mounts: list[Mounted] = []

    def make(layers: Layers, options: dict[str, Any]) -> Target:
        for mounted in mounts:
            mounted.stop()
        words = f"redirect_dir={redirect_dir},index={'on' if options['index'] else 'off'}"
        words += ",xattr_permissions=2" * bool(options["xattr_permissions"])
        mounts[:] = [Mounted(layers, "-o", words, "--engine", "direct")]
        return mounts[0]

    few = settings(max_examples=max(3, settings().max_examples // 40), stateful_step_count=40)
    try:
        run_machine(lambda: UnionMachine(places, make, remounts=1), few)
    finally:
        for mounted in mounts:
            mounted.stop()
