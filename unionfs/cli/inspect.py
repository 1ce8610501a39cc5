"""``pyunion umount``, ``list`` and ``stat``: what is mounted, and how it fares."""

from __future__ import annotations

import json
import os
import select
import sys
from typing import Any

from unionfs.cli.text import quote
from unionfs.errors import UserError
from unionfs.ops import STATS_XATTR
from unionfs.sys.mountinfo import Mount, read_mounts


def mounted_unions() -> list[Mount]:
    """FUSE mounts of this namespace that may be unions."""
    return [mount for mount in read_mounts() if mount.fstype.startswith(b"fuse")]


def read_stats(mountpoint: bytes) -> dict[str, Any] | None:
    """The state of the union mounted there; None if it is not one of ours or does not answer."""
    try:
        return dict(json.loads(os.getxattr(mountpoint, STATS_XATTR)))
    except (OSError, ValueError):
        return None


def _stats_of(mountpoint: str) -> dict[str, Any]:
    path = os.fsencode(os.path.realpath(mountpoint))
    if not os.path.lexists(path):
        raise UserError(f"{mountpoint}: no such file or directory")
    here = [mount for mount in read_mounts() if mount.mount_point == path]
    if not here:
        raise UserError(f"{mountpoint} is not a mount point", "pyunion list shows the unions")
    stats = read_stats(path)
    if stats is None:
        raise UserError(f"{mountpoint} is not a union of ours", "pyunion list shows the unions")
    return stats


def show_stat(mountpoint: str, *, as_json: bool) -> int:
    """Print the state of one union."""
    stats = _stats_of(mountpoint)
    if as_json:
        print(json.dumps(stats, indent=2))
        return 0
    requests = stats.pop("requests")
    for name, value in stats.items():
        if name == "resident_bytes":
            value = f"{value / 1048576:.1f} MiB"
            name = "resident memory"
        elif isinstance(value, list):
            value = " ".join(value)
        if value not in ("", None):
            print(f"{name.replace('_', ' '):<18} {value}")
    total = sum(requests.values())
    print(f"{'requests':<18} {total}")
    for name, count in sorted(requests.items(), key=lambda item: -item[1]):
        print(f"  {name:<16} {count}")
    return 0


def list_unions(*, as_json: bool) -> int:
    """Print every union mounted in this namespace."""
    rows = []
    for mount in mounted_unions():
        stats = read_stats(mount.mount_point)
        if stats is not None:
            stats["mountpoint"] = os.fsdecode(mount.mount_point)
            rows.append(stats)
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        upper = quote(row["upper"] or "")
        if row["read_only"]:
            upper = f"{upper} (read-only)".lstrip()
        print(
            f"{quote(row['mountpoint'])}\t{row['engine']}\tpid {row['pid']}\t"
            f"{quote(':'.join(row['lower']))}\t{upper}"
        )
    return 0


def umount(mountpoint: str, *, lazy: bool) -> int:
    """Unmount, and wait for the daemon to end, so that the upper may be used at once."""
    from unionfs.engine.mounting import unmount

    path = os.path.realpath(mountpoint)
    here = [mount for mount in read_mounts() if mount.mount_point == os.fsencode(path)]
    if not mountpoint or not here:
        raise UserError(f"{mountpoint} is not a mount point", "pyunion list shows the unions")
    if not here[-1].fstype.startswith(b"fuse"):
        raise UserError(f"{mountpoint} is not a union of ours", "pyunion list shows the unions")
    stats = read_stats(os.fsencode(path))
    pidfd = -1
    if stats is not None:
        try:
            pidfd = os.pidfd_open(int(stats["pid"]))
        except OSError:
            pidfd = -1
    try:
        unmount(path, lazy=lazy)
        if pidfd >= 0 and not lazy:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(30_000):
                sys.stderr.write("pyunion: the daemon is still writing\n")
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    return 0
