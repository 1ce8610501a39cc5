"""What a union over the store's layers is told, and the process that serves it.

Importing this imports all that serves a union: see ``cowstore.early``.
"""

from __future__ import annotations

import os

import unionfs.engine.direct
import unionfs.engine.mounting  # noqa: F401
from cowstore.errors import StoreError
from cowstore.locks import Lock, take_lent
from cowstore.viewlayer import opener
from unionfs import daemon
from unionfs import options as mount_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

    from unionfs.options import MountOptions


def union_options(
    words: list[str], mountpoint: str, fsname: str, roots: Sequence[str], *, foreground: bool
) -> MountOptions:
    """What the union's daemon is told; ``roots`` of stores, if one of the lowers is a view."""
    options = mount_options.build(words, lowers=[], upper=None, work=None, mountpoint=mountpoint)
    if roots:
        options = options.replace(union=options.union.replace(open_layer=opener(roots)))
    if options.unknown:
        raise StoreError(f"unknown option: {', '.join(options.unknown)}", "man pyunion-mount")
    return mount_options.check(
        options.replace(foreground=foreground, fsname=options.fsname or fsname)
    )


def mount(task: dict[str, Any], ready: int) -> NoReturn:
    """Become the daemon of a mount; see ``cowstore.early.hand_over``.

    Raises:
        UserError: nothing is mounted then.
    """
    # Held until the process ends.
    lock = _lock(task)
    options = union_options(
        task["words"], task["mountpoint"], task["fsname"], task["roots"], foreground=False
    )
    if task["quota"]:
        from cowstore import quota

        quota.obey()
    code = daemon.mount(options, ready)
    del lock
    os._exit(code)


def _lock(task: dict[str, Any]) -> Lock | None:
    """The lock of the snapshot, or a part of that of the session that keeps an image."""
    if task["snapshot"]:
        return take_lent(task["lock"], task["inode"], task["snapshot"])
    return Lock.acquire(task["lock"], shared=True) if task["lock"] else None
