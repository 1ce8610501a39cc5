"""What a container's root is made with: the union, the kernel's overlayfs, or a copy of everything.

``auto`` takes the first of them that works here, by trying.
"""

from __future__ import annotations

import os

from runtime.errors import RunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.facts import HostFacts

KINDS = ("auto", "union", "kernel", "copy")


def choose(wanted: str, host: HostFacts, root: str) -> str:
    """``union``, ``kernel`` or ``copy``; ``root`` is where containers are kept.

    ``auto`` is what PYRUN_STORAGE says, if that is set.

    Raises:
        RunError: an unknown word, or the union is wanted and cannot be mounted.
    """
    if wanted == "auto":
        wanted = os.environ.get("PYRUN_STORAGE") or wanted
        if wanted not in KINDS:
            raise RunError(f"PYRUN_STORAGE={wanted}: expected auto, union, kernel or copy")
    if wanted == "union" and host.fuse:
        raise RunError(
            f"/dev/fuse {host.fuse}",
            "modprobe fuse; the device must be readable and writable for you; or --storage kernel",
        )
    if wanted != "auto":
        return wanted
    if not host.fuse:
        return "union"
    return "copy" if try_kernel(root) else "kernel"


def is_union_likely(words: Sequence[str]) -> bool:
    """A guess from a command line that nobody has read yet: who is wrong loses time only."""
    told = (*words, os.environ.get("PYRUN_STORAGE", ""))
    return not any(word.removeprefix("--storage=") in ("kernel", "copy") for word in told)


def describe(host: HostFacts, overlay: str) -> str:
    """What ``auto`` takes and why; ``overlay`` is what ``try_kernel`` said."""
    told = os.environ.get("PYRUN_STORAGE") or "auto"
    if told != "auto":
        return f"{told} (PYRUN_STORAGE)"
    if not host.fuse:
        faster = "" if overlay else "; PYRUN_STORAGE=kernel is faster here"
        return f"union (/dev/fuse can be used{faster})"
    if not overlay:
        return f"kernel (/dev/fuse {host.fuse})"
    return f"copy (/dev/fuse {host.fuse}; overlayfs: {overlay})"


def try_kernel(root: str) -> str:
    """Why overlayfs of the kernel cannot be mounted as a container would; empty if it can."""
    from runtime import drafts, overlay
    from runtime.removal import remove_directory
    from runtime.sys import calls
    from runtime.userns import run_mapped

    place = drafts.name(f"{root}/overlay")
    names = ("lower", "upper", "work")
    try:
        os.makedirs(place, 0o700)
        for name in names:
            os.mkdir(f"{place}/{name}")
    except OSError as error:
        return str(error.strerror)

    def attempt() -> None:
        calls.unshare(calls.CLONE_NEWNS)
        lower, upper, work = (f"{place}/{name}" for name in names)
        os.close(overlay.mount([lower], upper, work, volatile=False))

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run_mapped(attempt)
            code = 0
        except (RunError, OSError):
            pass
        finally:
            os._exit(code)
    failed = os.waitpid(pid, 0)[1]
    try:
        remove_directory(place)
    except (RunError, OSError):
        pass
    return "the kernel refuses it in a user namespace" if failed else ""
