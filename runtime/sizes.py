"""Changes of a container in memory, with a most that they may take.

The union has no quota of its own. A tmpfs has: mounted over the directory of the upper, in the
mount namespace of the union's daemon alone, it goes with the container.
"""

from __future__ import annotations

import os

from runtime.errors import RunError
from runtime.sys import calls
from unionfs import formats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.plan import Plan


def in_memory(plan: Plan) -> Plan:
    """Mount the tmpfs; the plan with upper and work directory in it.

    Raises:
        RunError: it cannot be mounted, or keeps no attributes that the upper needs.
    """
    place = plan.root.upper
    like = os.stat(place)
    try:
        override = os.getxattr(place, formats.OVERRIDE_STAT)
    except OSError:
        override = b""
    size = b"%d" % plan.root.memory
    try:
        tree = calls.new_mount(b"tmpfs", ((b"size", size), (b"mode", b"755")), 0)
        target = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        calls.move_mount(tree, target)
        os.close(target)
        for name in ("upper", "work"):
            os.mkdir(f"{place}/{name}", 0o755)
        os.chmod(f"{place}/upper", like.st_mode & 0o7777)
        if override:
            os.setxattr(f"{place}/upper", formats.OVERRIDE_STAT, override)
        os.close(tree)
    except OSError as error:
        raise RunError(
            f"--storage-opt backend=tmpfs: {error.strerror}",
            "user.* attributes on tmpfs need Linux 6.6" if override else "",
        ) from None
    root = plan.root.replace(upper=f"{place}/upper", work=f"{place}/work", transient=False)
    return plan.replace(root=root)


class Wanted:
    """``memory``: bytes of a tmpfs for the changes; ``disk``: of a quota. 0: no limit."""

    def __init__(self, memory: int = 0, disk: int = 0) -> None:
        self.memory = memory
        self.disk = disk


def wanted(words: tuple[str, ...], *, fleeting: bool, image: bool) -> Wanted:
    """What ``--storage-opt`` words ask for.

    ``fleeting``: the container is not kept; ``image``: it is made of one.

    Raises:
        RunError: not understood, or what cannot be enforced.
    """
    from runtime.values import size

    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("size", "backend") or not equals:
            raise RunError(f"--storage-opt {word}: unknown", "size=SIZE, backend=tmpfs")
        values[name] = value
    if not values:
        return Wanted()
    if values.get("backend", "tmpfs") != "tmpfs":
        raise RunError(f"--storage-opt backend={values['backend']}: unknown", "only tmpfs")
    if "size" not in values:
        raise RunError("--storage-opt backend=tmpfs: no size", "--storage-opt size=1g")
    most = size(values["size"], "--storage-opt size")
    if most < 1 << 16:
        raise RunError(f"--storage-opt size={values['size']}: less than 64k")
    if "backend" not in values:
        if not image:
            raise refused(values["size"], "a container of a directory has no quota")
        return Wanted(disk=most)
    if not fleeting:
        raise RunError(
            "--storage-opt backend=tmpfs keeps changes in memory: they end with the container",
            "add --rm, and leave --storage as it is",
        )
    return Wanted(memory=most)


def refused(size: str, why: str) -> RunError:
    """A size that cannot be enforced on disk."""
    return RunError(
        f"--storage-opt size={size} cannot be enforced on disk: {why}",
        "in memory, for a container that is not kept: --rm --storage-opt backend=tmpfs;"
        " or as root, an image and the store on a filesystem with project quotas;"
        " or --limits best-effort",
    )
