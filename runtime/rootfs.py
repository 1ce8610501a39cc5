"""Mounts inside a container's root, in the child, by descriptors only.

A name in the image is resolved with openat2(2) RESOLVE_IN_ROOT, and what is
mounted on is the descriptor that was looked at, not the name again: no symlink
and no exchange of a directory in between leads out (CVE-2019-16884, 2021-30465,
2023-27561, 2025-31133, 2025-52565, 2025-52881).
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.errors import RunError
from runtime.sys import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.plan import MountPlan, Plan

_IN_ROOT = calls.RESOLVE_IN_ROOT | calls.RESOLVE_NO_MAGICLINKS
STRICT = _IN_ROOT | calls.RESOLVE_NO_SYMLINKS
_MAX_LINKS = 16

_ATTRIBUTES = {
    "ro": (calls.MOUNT_ATTR_RDONLY, 0),
    "nosuid": (calls.MOUNT_ATTR_NOSUID, 0),
    "nodev": (calls.MOUNT_ATTR_NODEV, 0),
    "noexec": (calls.MOUNT_ATTR_NOEXEC, 0),
    "nodiratime": (calls.MOUNT_ATTR_NODIRATIME, 0),
    "nosymfollow": (calls.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "noatime": (calls.MOUNT_ATTR_NOATIME, calls.MOUNT_ATTR_ATIME),
    "strictatime": (calls.MOUNT_ATTR_STRICTATIME, calls.MOUNT_ATTR_ATIME),
    "relatime": (0, calls.MOUNT_ATTR_ATIME),
}
_PROPAGATIONS = {
    "private": calls.MS_PRIVATE,
    "slave": calls.MS_SLAVE,
    "shared": calls.MS_SHARED,
    "unbindable": calls.MS_UNBINDABLE,
}
_CANNOT_MAKE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EOVERFLOW})
_DEV_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
_DEVICE_NUMBERS = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
}


def attributes(words: tuple[str, ...]) -> tuple[int, int]:
    """Bits to set and to clear for option words."""
    add = clear = 0
    for word in words:
        more, less = _ATTRIBUTES.get(word, (0, 0))
        add |= more
        clear |= less
    return add, clear


def open_sources(plan: Plan) -> dict[str, int]:
    """Detached copies of everything that will be bound, opened with the caller's rights.

    Keys are the targets. Runs in the outer user namespace.

    Raises:
        RunError: a source that is not there or not permitted.
    """
    trees: dict[str, int] = {}
    for mount in plan.mounts:
        if mount.kind == "bind":
            trees[mount.target] = _open_source(mount)
    for target, source in plan.devices:
        try:
            trees[target] = _open_device(source)
        except OSError as error:
            if source in _DEVICE_NUMBERS:
                continue  # a host without it; the container goes without
            raise RunError(f"device {source}: {error.strerror}") from None
    return trees


def _open_device(path: str) -> int:
    fd = calls.open_tree(calls.AT_FDCWD, os.fsencode(path))
    found = os.fstat(fd)
    wanted = _DEVICE_NUMBERS.get(path)
    number = (os.major(found.st_rdev), os.minor(found.st_rdev))
    if wanted is not None and (not stat.S_ISCHR(found.st_mode) or number != wanted):
        os.close(fd)
        raise RunError(f"{path} is not the device of that name")
    calls.mount_setattr(fd, b"", add=calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NOEXEC)
    return fd


def _open_source(mount: MountPlan) -> int:
    try:
        fd = calls.open_tree(calls.AT_FDCWD, os.fsencode(mount.source), recursive=mount.recursive)
    except OSError as error:
        hint = "bind it with its mounts: rbind" if error.errno == errno.EINVAL else ""
        raise RunError(f"volume {mount.source}: {error.strerror}", hint) from None
    words = mount.attributes
    if mount.fill:
        words = tuple(word for word in words if word != "ro")  # once it has been filled
    add, clear = attributes(words)
    word = mount.propagation or "rprivate"
    calls.mount_setattr(
        fd, b"", propagation=_PROPAGATIONS[word.removeprefix("r")], recursive=word.startswith("r")
    )
    if add or clear:
        try:
            calls.mount_setattr(fd, b"", add=add, clear=clear, recursive=mount.recursive)
        except OSError as error:
            raise RunError(
                f"volume {mount.source}: {','.join(mount.attributes)}: {error.strerror}"
            ) from None
    return fd


class Root:
    """The tree that becomes the container's root, while it is put together.

    ``fd`` is its top directory.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def open(self, path: str, flags: int = os.O_PATH, resolve: int = _IN_ROOT) -> int:
        """A name inside; absolute symlinks lead to inside."""
        return calls.openat2(self.fd, os.fsencode(path), flags, resolve)

    def ensure(self, path: str, directory: bool, links: int = 0) -> int:
        """An O_PATH descriptor of ``path``, made (with its parents) if it is missing.

        Raises:
            OSError: what lies in the way; ELOOP for too many symlinks.
        """
        try:
            return self.open(path)
        except FileNotFoundError:
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from None
        head, _, tail = path.rstrip("/").rpartition("/")
        parent = self.ensure(head, True, links + 1) if head else os.dup(self.fd)
        try:
            try:
                link = os.readlink(tail, dir_fd=parent)
            except OSError:
                link = ""
            if link:
                target = link if link.startswith("/") else f"{head}/{link}"
                return self.ensure(target, directory, links + 1)
            try:
                if directory:
                    os.mkdir(tail, 0o755, dir_fd=parent)
                else:
                    flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                    os.close(os.open(tail, flags, 0o644, dir_fd=parent))
            except FileExistsError:
                pass
            return calls.openat2(parent, os.fsencode(tail), os.O_PATH, calls.RESOLVE_NO_SYMLINKS)
        finally:
            os.close(parent)

    def attach(self, tree: int, path: str, *, optional: bool = False) -> None:
        """Mount a detached tree on ``path``; the tree's descriptor is closed.

        ``optional``: where the place cannot be made, nothing is mounted.

        Raises:
            RunError: the place cannot be made or mounted on.
        """
        try:
            target = self.ensure(path, stat.S_ISDIR(os.fstat(tree).st_mode))
            try:
                calls.move_mount(tree, target)
            finally:
                os.close(target)
        except OSError as error:
            if optional and error.errno in _CANNOT_MAKE:
                return
            raise RunError(f"mount on {path}: {error.strerror}") from None
        finally:
            os.close(tree)


def make_mounts(plan: Plan, trees: dict[str, int]) -> None:
    """Detached mounts of the container's own filesystems, added to ``trees``.

    Raises:
        RunError: with the one that failed.
    """
    for mount in plan.mounts:
        if mount.kind == "bind":
            continue
        tree = _new(mount)
        if tree < 0:
            continue
        if mount.target == "/dev" and mount.kind == "tmpfs":
            _fill_dev(tree, plan, trees)
        trees[mount.target] = tree


def mount_all(root: Root, plan: Plan, trees: dict[str, int]) -> None:
    """Every mount of the plan, devices, masked and read-only paths.

    Raises:
        RunError: with the step that failed.
    """
    for mount in plan.mounts:
        tree = trees.pop(mount.target, -1)
        if tree < 0:
            continue  # a kernel without it
        if mount.fill:
            _fill_volume(root, tree, mount)
        root.attach(tree, mount.target, optional=mount.optional)
    for target, _ in plan.devices:
        if target in trees:
            root.attach(trees.pop(target), target)
    for name, value in plan.sysctls:
        _sysctl(root, name, value)
    null = _null_device(root)
    for path in plan.masked:
        _mask(root, path, null)
    for path in plan.read_only_paths:
        _make_read_only(root, path)
    os.close(null)


def _fill_volume(root: Root, tree: int, mount: MountPlan) -> None:
    source = -1
    if mount.fill == "copy":
        try:
            source = root.open(mount.target, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            pass  # the image has nothing there
    try:
        from runtime import fill  # imported before the root changed, see child.enter

        fill.fill(tree, source)
    except OSError as error:
        text = f"the volume on {mount.target} cannot be filled: {error.strerror}"
        raise RunError(text) from None
    finally:
        if source >= 0:
            os.close(source)
    if "ro" in mount.attributes:
        calls.mount_setattr(tree, b"", add=calls.MOUNT_ATTR_RDONLY, recursive=mount.recursive)


def _new(mount: MountPlan) -> int:
    add, _ = attributes(mount.attributes)
    data = [(key.encode(), None if value is None else value.encode()) for key, value in mount.data]
    try:
        return calls.new_mount(mount.kind.encode(), data, add)
    except OSError as error:
        if mount.kind in ("mqueue", "cgroup2") and error.errno in (errno.ENODEV, errno.EPERM):
            return -1  # a kernel or namespace without it; the container goes without
        hint = ""
        if mount.kind in ("proc", "sysfs") and error.errno == errno.EPERM:
            hint = f"parts of {mount.target} are hidden here: this is itself a container"
        raise RunError(f"mount {mount.kind} on {mount.target}: {error.strerror}", hint) from None


def _fill_dev(tree: int, plan: Plan, trees: dict[str, int]) -> None:
    """The usual symlinks, and empty files for devices to be bound on."""
    for name, target in _DEV_LINKS:
        os.symlink(target, name, dir_fd=tree)
    for target, _ in plan.devices:
        name = target.removeprefix("/dev/")
        if target in trees and "/" not in name and target.startswith("/dev/"):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=tree))


def _proc_path(root: Root, path: str) -> int:
    """A name on a real procfs or sysfs, without symlinks; FileNotFoundError where there is none."""
    fd = root.open(path, resolve=STRICT)
    if path.startswith("/proc/") and calls.filesystem_type(fd) != calls.PROC_SUPER_MAGIC:
        os.close(fd)
        raise RunError(f"{path} is not on a proc filesystem")
    return fd


def _sysctl(root: Root, name: str, value: str) -> None:
    path = "/proc/sys/" + name.replace(".", "/")
    try:
        checked = _proc_path(root, path)
        os.close(checked)
        fd = root.open(path, os.O_WRONLY, STRICT)
        try:
            if calls.filesystem_type(fd) != calls.PROC_SUPER_MAGIC:
                raise RunError(f"{path} is not on a proc filesystem")
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise RunError(
            f"--sysctl {name}: {error.strerror}", "only those of the container's own namespaces"
        ) from None


def _null_device(root: Root) -> int:
    """Our own /dev/null; what hides files must be no other thing (CVE-2025-31133)."""
    try:
        fd = root.open("/dev/null", resolve=STRICT)
    except OSError as error:
        raise RunError(f"/dev/null in the container: {error.strerror}") from None
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(1, 3):
        os.close(fd)
        raise RunError("/dev/null in the container is not the null device")
    return fd


def _mask(root: Root, path: str, null: int) -> None:
    try:
        target = _proc_path(root, path) if path.startswith("/proc/") else root.open(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    try:
        if stat.S_ISDIR(os.fstat(target).st_mode):
            tree = calls.new_mount(
                b"tmpfs",
                ((b"size", b"4k"), (b"mode", b"0")),
                calls.MOUNT_ATTR_RDONLY | calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NODEV,
            )
        else:
            tree = calls.open_tree(null, b"")
        calls.move_mount(tree, target)
        os.close(tree)
    except OSError as error:
        raise RunError(f"masking {path}: {error.strerror}") from None
    finally:
        os.close(target)


def _make_read_only(root: Root, path: str) -> None:
    try:
        target = _proc_path(root, path) if path.startswith("/proc/") else root.open(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        tree = calls.open_tree(target, b"", recursive=True)
        calls.mount_setattr(tree, b"", add=calls.MOUNT_ATTR_RDONLY, recursive=True)
        calls.move_mount(tree, target)
        os.close(tree)
    except OSError as error:
        raise RunError(f"making {path} read-only: {error.strerror}") from None
    finally:
        os.close(target)


def become_root(root: Root) -> None:
    """pivot_root(2) into the tree; what was there before is gone."""
    os.fchdir(root.fd)
    calls.pivot_root(b".", b".")
    calls.umount2(b".", calls.MNT_DETACH)
    os.chdir("/")
