"""Capabilities by name, and the sets that a container gets (capabilities(7))."""

from __future__ import annotations

from runtime.errors import RunError

NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE"
    " NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO"
    " SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME"
    " SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG"
    " WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
).split()

#: What container engines give by default.
DEFAULT = (
    "CHOWN DAC_OVERRIDE FOWNER FSETID KILL NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID"
    " SYS_CHROOT"
).split()


def number(name: str) -> int:
    """The capability's number from ``CAP_CHOWN`` or ``chown``.

    Raises:
        RunError: no such capability.
    """
    try:
        return NAMES.index(name.upper().removeprefix("CAP_"))
    except ValueError:
        raise RunError(f"capability {name}: no such capability", "man 7 capabilities") from None


def choose(add: tuple[str, ...], drop: tuple[str, ...], privileged: bool) -> tuple[str, ...]:
    """The set for ``--cap-add`` and ``--cap-drop``, as ``CAP_...``, in the kernel's order.

    Raises:
        RunError: an unknown name.
    """
    added = {word.strip() for text in add for word in text.split(",") if word.strip()}
    dropped = {word.strip() for text in drop for word in text.split(",") if word.strip()}
    everything = privileged or any(word.upper() == "ALL" for word in added)
    nothing = any(word.upper() == "ALL" for word in dropped)
    chosen = set(NAMES) if everything else set() if nothing else set(DEFAULT)
    chosen |= {NAMES[number(word)] for word in added if word.upper() != "ALL"}
    chosen -= {NAMES[number(word)] for word in dropped if word.upper() != "ALL"}
    return tuple(f"CAP_{name}" for name in NAMES if name in chosen)


def mask(names: tuple[str, ...] | list[str]) -> int:
    """A bit mask of names.

    Raises:
        RunError: an unknown name.
    """
    bits = 0
    for name in names:
        bits |= 1 << number(name)
    return bits
