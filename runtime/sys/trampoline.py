"""A tiny program in sealed memory that executes another one in our place.

What a container executes may be ``#!/proc/self/exe``: the kernel then runs the
file that the executing process itself came from, and that would be the
interpreter on the host, which the container could later open and overwrite
(CVE-2019-5736). Executed through this trampoline, /proc/self/exe is a sealed
memfd(2) of 300 bytes. It marks descriptor 1000 close-on-exec, executes argv[0]
with the rest as its arguments, and on failure writes the negative error number
(8 bytes) there and exits with 127.
"""

from __future__ import annotations

import os
import struct

from runtime.errors import RunError

#: Where a failure is told.
REPORT_FD = 1000

_F_ADD_SEALS = 1033
_ALL_SEALS = 0x0F  # seal, shrink, grow, write
_MFD_EXEC = 0x10  # Linux 6.3

# if fcntl(1000, F_SETFD, FD_CLOEXEC) >= 0:  (it is not there when the trampoline runs itself)
#     execve(argv[0], argv + 1, envp); write(1000, &result, 8)
# exit_group(127)
_CODE = {
    "x86_64": bytes.fromhex(
        "b848000000bfe8030000be02000000ba010000000f0585c0782f488b0424488b7c2408488d742410488d"
        "54c410b83b0000000f0550b801000000bfe80300004889e6ba080000000f05b8e7000000bf7f0000000f"
        "05"
    ),
    "aarch64": bytes.fromhex(
        "280380d2007d80d2410080d2220080d2010000d4c001f8b7e30340f9e00740f9e1430091220c038ba81b"
        "80d2010000d4ff4300d1e00300f9080880d2007d80d2e1030091020180d2010000d4c80b80d2e00f80d2"
        "010000d4"
    ),
}
_ELF_MACHINE = {"x86_64": 62, "aarch64": 183}
_BASE = 0x400000
_HEADERS = 64 + 56


def image(machine: str) -> bytes:
    """The program as an ELF file (elf(5)); empty for a machine that has none."""
    code = _CODE.get(machine)
    if code is None:
        return b""
    size = _HEADERS + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    entry = _BASE + _HEADERS
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", 2, _ELF_MACHINE[machine], 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + load + code


def create(machine: str) -> int:
    """A descriptor of the sealed program; -1 where it cannot be had and is not needed.

    It is not needed where the caller, whom the container's root is on the host, could not write to
    the interpreter.

    Raises:
        RunError: it cannot be had, and a container could overwrite the interpreter.
    """
    program = image(machine)
    for flags in (_MFD_EXEC, 0) if program else ():
        fd = -1
        try:
            fd = os.memfd_create("pyrun", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
            os.fchmod(fd, 0o555)  # EPERM: vm.memfd_noexec has sealed it
        except OSError:
            if fd >= 0:
                os.close(fd)
            continue
        import fcntl

        os.write(fd, program)
        fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
        return fd
    if _is_ours("/proc/self/exe"):
        why = "vm.memfd_noexec forbids it" if program else f"there is none for {machine}"
        raise RunError(
            f"the interpreter cannot be kept from the container: {why}",
            "sysctl vm.memfd_noexec=1; or use an interpreter that another user owns",
        )
    return -1


def _is_ours(path: str) -> bool:
    return os.stat(path).st_uid == os.geteuid() or os.access(path, os.W_OK, effective_ids=True)
