"""Which user namespace this process is in (user_namespaces(7)); loads nothing, for short starts."""

from __future__ import annotations


def in_initial_user_namespace() -> bool:
    """Whether /proc/self/uid_map is the identity over all ids."""
    try:
        with open("/proc/self/uid_map", "rb") as uid_map:
            return uid_map.read().split() == [b"0", b"0", b"4294967295"]
    except OSError:
        return True
