"""Fixtures: layers, unions with and without a mount, and a check that nothing leaks.

Run by root, the whole session lives in a mount namespace of its own, so that
no mount of a test is ever seen outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers import Mounted, Rig, mount_points, open_descriptors, processes_about
from tests.invariants import check_disk
from tests.layers import Layers, Tree

_CLONE_NEWNS = 0x20000
_MS_REC = 0x4000
_MS_SLAVE = 1 << 19

_QUIET = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    max_examples=200,
    report_multiple_bugs=False,
    suppress_health_check=_QUIET,
)
settings.register_profile(
    "full",
    deadline=None,
    max_examples=2000,
    stateful_step_count=100,
    report_multiple_bugs=False,
    suppress_health_check=_QUIET,
    print_blob=True,
)
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run the long tests too (marked full): minutes each"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: takes minutes; runs only with --full")
    if os.geteuid() == 0:
        _enter_private_mounts()


def _enter_private_mounts() -> None:
    """unshare(2) the mounts, and let none of ours reach the others (mount_namespaces(7))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
    if libc.unshare(_CLONE_NEWNS) == -1:
        return  # a sandbox that does not allow it; every mount is taken away again anyway
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "/")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="long; give --full to run it")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def nothing_leaks(tmp_path: Path) -> Iterator[None]:
    """Descriptors, threads, mounts and daemons are as they were before the test."""
    os.umask(0o022)
    before = open_descriptors()
    threads = set(threading.enumerate())
    yield
    after = open_descriptors()
    left = {number: what for number, what in after.items() if before.get(number) != what}
    assert not left, f"descriptors left open: {left}"
    more = set(threading.enumerate()) - threads
    assert not more, f"threads left running: {more}"
    prefix = os.fsencode(tmp_path) + b"/"
    mounts = [point for point in mount_points() if point.startswith(prefix)]
    for point in reversed(mounts):
        with contextlib.suppress(OSError):
            _libc_umount(point)
    assert not mounts, f"mounts left: {mounts}"
    daemons = list(processes_about(tmp_path))
    assert not daemons, f"processes left: {daemons}"
    shutil.rmtree(tmp_path, ignore_errors=True)


def _libc_umount(point: bytes) -> None:
    from unionfs.sys import calls

    calls.umount2(point, calls.MNT_DETACH)


MakeLayers = Callable[..., Layers]
OpenRig = Callable[..., Rig]
Mount = Callable[..., Mounted]


@pytest.fixture
def make_layers(tmp_path: Path) -> MakeLayers:
    """Make lower, upper and work directories from trees; the first lower is the topmost."""
    count = 0

    def make(*lowers: Tree, upper: Tree | None = None) -> Layers:
        nonlocal count
        count += 1
        return Layers.make(tmp_path / f"u{count}", *(lowers or ({},)), upper=upper)

    return make


@pytest.fixture
def rig(make_layers: MakeLayers) -> Iterator[OpenRig]:
    """Open a union without a mount over given lower trees; closed and checked at the end."""
    with contextlib.ExitStack() as stack:

        def open_rig(*lowers: Tree, upper: Tree | None = None, **options: Any) -> Rig:
            made = Rig(make_layers(*lowers, upper=upper), **options)
            if made.union.upper is not None:
                stack.callback(check_disk, made.layers)
            stack.enter_context(made)
            return made

        yield open_rig


@pytest.fixture
def mount(make_layers: MakeLayers) -> Iterator[Mount]:
    """Mount a union by the real command over given lower trees; unmounted at the end, always."""
    needs_fuse()
    with contextlib.ExitStack() as stack:

        def do_mount(
            *lowers: Tree, arguments: tuple[str, ...] = (), upper: Tree | None = None, **more: Any
        ) -> Mounted:
            made = Mounted(make_layers(*lowers, upper=upper), *arguments, **more)
            if not made.read_only:
                stack.callback(check_disk, made.layers)
            stack.callback(made.stop)
            return made

        yield do_mount


def needs_fuse() -> None:
    """Skip where no FUSE filesystem can be mounted at all."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing or not for us")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        pytest.skip("mounting without root needs fusermount3")


@pytest.fixture
def mounted(mount: Mount) -> Mounted:
    """A mounted union over an empty lower."""
    return mount({})
