"""What a figure depends on: the machine, its kernel, and the versions of what is measured."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from unionfs import __version__
from unionfs.sys.mountinfo import read_mounts


def _first(path: str, key: str) -> str:
    """The value of the first line that begins with ``key``; empty if there is none."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""


def _filesystem(place: str) -> str:
    """Type and options of the filesystem that holds ``place``."""
    device = os.stat(place).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    for mount in read_mounts():
        if mount.device == wanted:
            return f"{os.fsdecode(mount.fstype)} ({os.fsdecode(mount.super_options)})"
    return "unknown"


def collect(place: str) -> dict[str, Any]:
    """Facts for a run whose files are in ``place``."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": _first("/proc/meminfo", "MemTotal"),
        "python": platform.python_version(),
        "pyunion": __version__,
        "filesystem": _filesystem(place),
        "load": list(os.getloadavg()),
    }


def cache_drops() -> int:
    """How often somebody wrote to drop_caches since boot (drop_slab and drop_pagecache)."""
    total = 0
    for line in Path("/proc/vmstat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("drop_slab", "drop_pagecache"):
            total += int(value)
    return total


def busy_seconds() -> float:
    """CPU time that all processes of the machine have used (proc_stat(5): not idle, not iowait)."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """CPU time of this process and of all its descendants that were waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
