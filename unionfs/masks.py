"""Which paths of the layers must show as empty: mount points, and the union's own directories."""

from __future__ import annotations

from unionfs.errors import suppress
from unionfs.live import Watcher
from unionfs.sys.mountinfo import parse, read_table
from unionfs.union import Union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def _beneath(path: bytes, root: bytes) -> bytes | None:
    """``path`` relative to ``root``; None if it is not strictly beneath."""
    prefix = root.rstrip(b"/") + b"/"
    return path[len(prefix) :] if path.startswith(prefix) and len(path) > len(prefix) else None


def masks_for(
    root: bytes, hidden: Iterable[bytes], mount_points: Iterable[bytes]
) -> frozenset[bytes]:
    """Relative paths to mask in the layer at ``root``."""
    found = set()
    for path in (*hidden, *mount_points):
        relative = _beneath(path, root)
        if relative is not None:
            found.add(relative)
    return frozenset(found)


def update(union: Union) -> None:
    """Set every layer's masks from the mounts of this moment, if these have changed."""
    try:
        table = read_table()
    except OSError:
        table = b""
    if table == union.mount_table:
        return
    options = union.options
    hidden = [path for path in (options.upper, options.work) if path is not None]
    points = [mount.mount_point for mount in parse(table)]
    if options.mountpoint is not None:
        hidden.append(options.mountpoint)
    with union.monitor:
        union.mount_table = table
        for layer in union.layers:
            if layer is not None:
                ours = [path for path in hidden if not (layer.is_upper and path == options.upper)]
                layer.masks = masks_for(layer.path, ours, points)
                # What holds mount points or our own directories is in use, like a host's root.
                layer.live = not layer.is_upper and bool(layer.masks)
        if union.watcher is None and any(layer and layer.live for layer in union.layers):
            with suppress(OSError):
                union.watcher = Watcher(union)
