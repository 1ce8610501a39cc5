"""Fixtures: a store, images in it, and a check that every test leaves it in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cowstore import Image, Store
from cowstore.fsck import check
from tests.store.archives import oci_layout

AddImage = Callable[..., Image]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty store; after the test every byte of it is checked."""
    with Store(tmp_path / "store", durability="none").open() as made:
        yield made
        assert check(made, full=True) == []


@pytest.fixture
def add(store: Store, tmp_path: Path) -> AddImage:
    """Bring in an image of layers given as archives, from the lowest."""
    count = 0

    def add_image(*layers: bytes, name: str | None = None, compress: bool = True) -> Image:
        nonlocal count
        count += 1
        path = tmp_path / f"layout{count}"
        oci_layout(path, list(layers), compress=compress)
        return store.import_image(f"oci:{path}:t", name or f"image{count}")

    return add_image


@pytest.fixture
def broken_store(tmp_path: Path) -> Iterator[Store]:
    """A store that a test may damage."""
    with contextlib.closing(Store(tmp_path / "broken", durability="none").open()) as made:
        yield made
