"""Getting a /dev/fuse descriptor that is mounted: by mount(2), or through fusermount3."""

from __future__ import annotations

import errno
import os

from unionfs import formats
from unionfs.errors import UserError, suppress
from unionfs.record import Record
from unionfs.sys import calls, mounts
from unionfs.sys.mountinfo import read_mounts


class MountRequest(Record):
    """A mount as the kernel or fusermount3 is to make it.

    ``send_umask`` leaves the umask to the filesystem without FUSE_DONT_MASK; only mount(2) can.
    ``detached``: the caller attaches the mount, as ``Mounted.tree``.
    """

    mountpoint: str
    source: str
    fstype: str
    read_only: bool
    suid: bool
    dev: bool
    noexec: bool
    atime: bool
    allow_other: bool
    default_permissions: bool = True
    send_umask: bool = False
    detached: bool = False


#: What fsconfig(2) takes as a string, in bytes; mount(2) takes a page.
_LONGEST_OPTION = 255
#: Documentation/admin-guide/devices.txt.
_FUSE_DEVICE = os.makedev(10, 229)


class Mounted:
    """An open /dev/fuse and the mount that it serves.

    ``tree``: the mount while it is still detached, so that nobody is there before it is served;
    -1: it is in its place, or somebody else's. ``second_root``: it may be attached by that.
    """

    def __init__(self, fd: int, tree: int = -1, below: int = -1) -> None:
        self.fd = fd
        self.tree = tree
        self.second_root = tree >= 0
        self._below = below
        self._device = ""
        self._taken = False
        if tree >= 0:
            device = calls.statx(tree, b"").device
            self._device = f"{os.major(device)}:{os.minor(device)}"

    def take(self) -> int:
        """The detached mount, for a caller who attaches it."""
        tree, self.tree = self.tree, -1
        self._taken = True
        return tree

    def attach(self, mountpoint: str) -> bool | None:
        """Put the mount into its place, by its second root if the engine offers one.

        See docs/concurrency.md; Linux 6.15 and later copy a detached mount. Whether it is the
        second root; None: it is not for us to attach.

        Raises:
            UserError: there is no such place any more.
        """
        if self._below < 0:
            return None
        second = -1
        with suppress(OSError):
            second = mounts.open_tree(self.tree, formats.SECOND_ROOT)
        try:
            mounts.move_mount(self.tree if second < 0 else second, self._below)
        except OSError as error:
            raise _refused(mountpoint, error) from None
        finally:
            if second >= 0:
                os.close(second)
            self.detach()
        return second >= 0

    def detach(self) -> None:
        """Let go of a mount that has no place yet, for good."""
        for fd in (self.tree, self._below):
            if fd >= 0:
                os.close(fd)
        self.tree = self._below = -1

    def read_ahead(self, mountpoint: str, kilobytes: int) -> bool:
        """Let the kernel read ahead by more than INIT may ask for (128 KiB); root only.

        Sets ``read_ahead_kb`` of the mount's own backing device
        (Documentation/ABI/testing/sysfs-class-bdi), once it is served. Whether it could be. Not
        of a mount that was taken, as a container's root is: a start maps libraries here and there,
        and read them whole, which made `true` take 11 ms instead of 7.
        """
        if self._taken:
            return False
        try:
            device = self._device
            if not device:
                path = os.fsencode(mountpoint)
                here = [mount for mount in read_mounts() if mount.mount_point == path]
                device = os.fsdecode(here[-1].device) if here else "none"
            with open(f"/sys/class/bdi/{device}/read_ahead_kb", "w") as limit:
                limit.write(str(kilobytes))
        except OSError:
            return False
        return True


def open_mounted(request: MountRequest) -> Mounted:
    """A descriptor of /dev/fuse that serves ``request.mountpoint``, once attached.

    Raises:
        UserError: /dev/fuse missing or forbidden, mount refused.
    """
    if request.mountpoint.startswith("/dev/fd/"):
        try:
            return Mounted(int(request.mountpoint.removeprefix("/dev/fd/")))
        except ValueError:
            raise UserError(f"{request.mountpoint}: not a descriptor number") from None
    if calls.has_sys_admin():
        fd = _open_device()
        try:
            return _mounted(fd, request)
        except OSError as error:
            os.close(fd)
            if error.errno != errno.EPERM or _helper() is None:
                raise _refused(request.mountpoint, error) from None
        except BaseException:
            os.close(fd)
            raise
    return Mounted(_fusermount(request))


def _refused(mountpoint: str, error: OSError) -> UserError:
    hint = "in a user namespace, unshare the mount namespace too"
    return UserError(
        f"mount on {mountpoint}: {error.strerror}", hint if error.errno == errno.EPERM else ""
    )


def _mounted(fd: int, request: MountRequest) -> Mounted:
    below = -1
    source, subtype = os.fsencode(request.source), os.fsencode(request.fstype)
    if not request.detached:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        below = os.open(request.mountpoint, flags)
    try:
        if not request.send_umask and max(map(len, (source, subtype))) <= _LONGEST_OPTION:
            return Mounted(fd, _new_mount(fd, request), below)
    except OSError as error:
        # Older than Linux 5.2, or a sandbox that knows no newer calls.
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EACCES) or request.detached:
            if below >= 0:
                os.close(below)
            raise
    os.close(below)
    _mount(fd, request)
    return Mounted(fd)


def _open_device() -> int:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        if os.fstat(fd).st_rdev == _FUSE_DEVICE:
            return fd
        os.close(fd)
        raise UserError("/dev/fuse is another device", "somebody has hidden it: see findmnt -T")
    except FileNotFoundError:
        raise UserError("/dev/fuse does not exist", "load the fuse module: modprobe fuse") from None
    except OSError as error:
        raise UserError(
            f"/dev/fuse: {error.strerror}", "the device must be readable and writable for you"
        ) from None


def _new_mount(fd: int, request: MountRequest) -> int:
    options: list[tuple[bytes, bytes | None]] = [
        (b"source", os.fsencode(request.source)),
        (b"subtype", os.fsencode(request.fstype.removeprefix("fuse."))),
        (b"fd", b"%d" % fd),
        (b"rootmode", b"40000"),
        (b"user_id", b"%d" % os.geteuid()),
        (b"group_id", b"%d" % os.getegid()),
    ]
    for wanted, name in (
        (request.default_permissions, b"default_permissions"),
        (request.allow_other, b"allow_other"),
        (request.read_only, b"ro"),
    ):
        if wanted:
            options.append((name, None))
    attrs = 0
    for wanted, bit in (
        (request.read_only, calls.MOUNT_ATTR_RDONLY),
        (not request.suid, calls.MOUNT_ATTR_NOSUID),
        (not request.dev, calls.MOUNT_ATTR_NODEV),
        (request.noexec, calls.MOUNT_ATTR_NOEXEC),
        (not request.atime, calls.MOUNT_ATTR_NOATIME),
    ):
        attrs |= bit if wanted else 0
    return mounts.new_mount(b"fuse", options, attrs)


def _mount(fd: int, request: MountRequest) -> None:
    flags = 0
    if request.read_only:
        flags |= calls.MS_RDONLY
    if not request.suid:
        flags |= calls.MS_NOSUID
    if not request.dev:
        flags |= calls.MS_NODEV
    if request.noexec:
        flags |= calls.MS_NOEXEC
    if not request.atime:
        flags |= calls.MS_NOATIME
    if request.send_umask:
        # fuse_fill_super_common (fs/fuse/inode.c) takes the flag for FUSE_DONT_MASK.
        flags |= calls.MS_POSIXACL
    data = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
    if request.default_permissions:
        data += ",default_permissions"
    if request.allow_other:
        data += ",allow_other"
    calls.mount(
        os.fsencode(request.source),
        os.fsencode(request.mountpoint),
        os.fsencode(request.fstype),
        flags,
        os.fsencode(data),
    )


def _helper() -> str | None:
    """The path of fusermount3(1), or of its elder."""
    import shutil  # as socket and subprocess: only for those who may not call mount(2)

    return shutil.which("fusermount3") or shutil.which("fusermount")


def _fusermount(request: MountRequest) -> int:
    import socket
    import subprocess

    program = _helper()
    if program is None:
        raise UserError(
            "mounting needs fusermount3 or a user namespace",
            "install fuse3, or run: unshare --user --map-root-user --mount pyunion mount ...",
        )
    words = [f"fsname={request.source}", f"subtype={request.fstype.removeprefix('fuse.')}"]
    words = [word.replace("\\", "\\\\").replace(",", "\\,") for word in words]
    if request.read_only:
        words.append("ro")
    if request.default_permissions:
        words.append("default_permissions")
    if request.allow_other:
        words.append("allow_other")
    if request.noexec:
        words.append("noexec")
    if not request.atime:
        words.append("noatime")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        environment = dict(os.environ, _FUSE_COMMFD=str(theirs.fileno()))
        done = subprocess.run(
            [program, "-o", ",".join(words), "--", request.mountpoint],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        theirs.close()
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            hint = ""
            if any("allow_other" in line for line in said):
                hint = "add user_allow_other to /etc/fuse.conf"
            raise UserError(said[-1] if said else f"{program} failed with {done.returncode}", hint)
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        if not fds:
            raise UserError(f"{program} gave no descriptor")
        os.set_inheritable(fds[0], False)
        return fds[0]


def unmount(mountpoint: str, *, lazy: bool) -> None:
    """umount2(2), or fusermount3 where that is not allowed.

    Raises:
        UserError: busy, not mounted, not ours.
    """
    try:
        calls.umount2(os.fsencode(mountpoint), calls.MNT_DETACH if lazy else 0)
        return
    except OSError as error:
        if error.errno != errno.EPERM:
            hint = "close what uses it, or add --lazy" if error.errno == errno.EBUSY else ""
            raise UserError(f"{mountpoint}: {error.strerror}", hint) from None
    import subprocess

    program = _helper()
    if program is None:
        raise UserError(f"{mountpoint}: not permitted", "install fuse3 for fusermount3")
    arguments = [program, "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(arguments, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise UserError(said[-1] if said else f"{program} failed")
