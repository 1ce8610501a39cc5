"""Rows of images: bringing them in, writable copies, changes made into an image, and out again.

Each row is there twice: as root, and as an ordinary user (``-rootless``).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from bench.stage import Stage
from bench.stores import Store, store
from bench.workload import IMAGE, Row, Workload, register

_CHANGED: Final = 1000


def _prepare(stage: Stage) -> None:
    """One import that does not count: compiles Python, and what fails here fails everywhere."""
    driver = store(stage)
    driver.bring(driver.one, "one")


def _images(stage: Stage) -> None:
    driver = store(stage)
    suffix = "-rootless" if stage.order.workload.endswith("-rootless") else ""
    # What others left to be written is not ours to wait for.
    os.sync()
    with stage.watch() as bringing:
        _bring(stage, driver, suffix)
    if driver.snapshots:
        _snapshots(stage, driver, suffix)
    if driver.commits:
        driver.change("s0", min(_CHANGED, stage.sizes.files // 2))
    with stage.watch() as giving:
        if driver.commits:
            with stage.measure(f"image-commit{suffix}"):
                stage.call(driver.commit("s0"), env=driver.environment)
        with stage.measure(f"image-export{suffix}"):
            target = Path(stage.scratch) / "out.tar"
            stage.call(driver.export(target), env=driver.environment)
    stage.amount(f"image-memory{suffix}", max(bringing.peak, giving.peak))


def _bring(stage: Stage, driver: Store, suffix: str) -> None:
    with stage.measure(f"image-import{suffix}"):
        driver.bring(driver.one, "one")
    first = driver.disk()
    stage.amount(f"image-disk{suffix}", first)
    with stage.measure(f"image-import-second{suffix}"):
        driver.bring(driver.two, "two")
    stage.amount(f"image-disk-second{suffix}", driver.disk() - first)


def _snapshots(stage: Stage, driver: Store, suffix: str) -> None:
    names = [f"s{number}" for number in range(stage.sizes.starts)]
    with stage.measure(f"snapshot-create{suffix}", len(names)):
        for name in names:
            stage.call(driver.create(name), env=driver.environment)
    if not driver.mounts:
        return
    places = {name: os.path.join(stage.scratch, f"m-{name}") for name in names}
    for place in places.values():
        os.mkdir(place)
    with stage.measure(f"snapshot-mount{suffix}", len(names)):
        for name, place in places.items():
            stage.call(driver.mount(name, place), env=driver.environment)
    for name, place in places.items():
        driver.unmount(name, place)


def _rows(suffix: str, who: str) -> tuple[Row, ...]:
    return (
        Row(
            f"image-import{suffix}", f"import an OCI archive, {who}", "s", "first", podman_goal=0.5
        ),
        Row(
            f"image-import-second{suffix}",
            f"import another, 95 % of whose files are equal, {who}",
            "s",
            "first",
            podman_goal=0.5,
        ),
        Row(f"snapshot-create{suffix}", f"make a writable copy, {who}", "ms", most=45),
        Row(f"snapshot-mount{suffix}", f"mount it, {who}", "ms", most=60),
        Row(
            f"image-commit{suffix}",
            f"make an image of {_CHANGED} changed files (fewer in small runs), {who}",
            "s",
            podman_goal=1.0,
        ),
        Row(f"image-export{suffix}", f"write it as a docker-archive (tar: a tar), {who}", "s"),
        Row(f"image-disk{suffix}", f"disk that the first image takes, {who}", "MiB"),
        Row(f"image-disk-second{suffix}", f"disk that the second adds, {who}", "MiB", most=19),
        Row(
            f"image-memory{suffix}",
            f"largest memory of importing, committing and exporting, {who}",
            "MiB",
            most=190,
        ),
    )


for _suffix, _who in (("", "as root"), ("-rootless", "as an ordinary user")):
    _ready = f"store{_suffix}"
    register(Workload(_ready, (), _prepare, "images", kind=IMAGE, user=bool(_suffix)))
    register(
        Workload(
            f"images{_suffix}",
            _rows(_suffix, _who),
            _images,
            "images",
            rounds=5,
            kind=IMAGE,
            user=bool(_suffix),
            needs=_ready,
        )
    )
