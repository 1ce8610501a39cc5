"""New files: mknod, mkdir, symlink, link, O_TMPFILE.

Made in place by one system call where that gives the right owner at once;
else staged in work/ and renamed in, so that a crash never shows a file with
the wrong owner, mode, ACL, or with old content beneath it.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from unionfs import formats, steps
from unionfs.copyup import copy_up, ensure_dir, override_value
from unionfs.inode import Inode
from unionfs.layer import LayerDir, edit_stat
from unionfs.listing import Listing
from unionfs.resolve import Says
from unionfs.sys import calls
from unionfs.types import Caller, decode_rdev
from unionfs.union import Union
from unionfs.upper import Upper


def check_name(name: bytes) -> None:
    """Names that layers use as whiteouts cannot be made."""
    if name.startswith(formats.WH_PREFIX):
        raise OSError(errno.EPERM, "names beginning with .wh. are reserved", os.fsdecode(name))


def _place(union: Union, parent: Inode, name: bytes) -> tuple[LayerDir, bool]:
    """The upper directory to create ``name`` in, and whether a whiteout lies there."""
    check_name(name)
    if union.find(parent, name):
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
    directory = ensure_dir(union, parent)
    return directory, has_whiteout(union, parent, directory, name)


def has_whiteout(union: Union, parent: Inode, directory: LayerDir, name: bytes) -> bool:
    """Whether the upper holds a whiteout under a name that is not visible (not as .wh. file)."""
    if parent.listing is not None:
        if name not in parent.listing.whiteouts:
            return False
        if not directory.whs or name not in directory.whs:
            return True
    entry = directory.probe(name)
    return entry is not None and entry.says == Says.WHITEOUT and entry.st.st_mode != 0


class _Birth:
    """Owner and mode of a file about to be made in a directory (open(2), mkdir(2), acl(5))."""

    def __init__(self, union: Union, directory: LayerDir, mode: int, caller: Caller) -> None:
        upper = union.need_upper()
        st = directory.stat_self()
        self.uid = union.options.uid_map.to_disk(caller.uid)
        self.gid = union.options.gid_map.to_disk(caller.gid)
        if self.uid < 0 or self.gid < 0:
            raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
        setgid = bool(st.st_mode & stat.S_ISGID)
        if setgid:
            self.gid = st.st_gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        self.default_acl = _default_acl(union, directory)
        self.mode = mode if self.default_acl is not None else mode & ~caller.umask
        self.override = upper.layer.override is not None
        # On disk such a file is the daemon's own: no suid, and nobody else's business.
        self.bits = stat.S_IMODE(self.mode)
        if self.override and self.default_acl is None:
            self.bits = 0o700 if stat.S_ISDIR(mode) else 0o600
        elif self.override:
            self.bits = self.mode & 0o777
        self.in_place = (
            not self.override and self.uid == os.geteuid() and (setgid or self.gid == os.getegid())
        )

    def owned(self, st: os.stat_result) -> os.stat_result:
        """The new file's ``st`` with the owner and mode it is to have."""
        mode = self.mode
        if self.default_acl is not None:
            # The kernel has worked the default ACL into the permissions (acl(5)).
            mode = mode & ~0o777 | st.st_mode & 0o777
        return edit_stat(st, st_uid=self.uid, st_gid=self.gid, st_mode=mode)


def _default_acl(union: Union, directory: LayerDir) -> bytes | None:
    if directory.default_acl is None:
        value = b"" if union.options.noacl else directory.get_xattr(b"", formats.ACL_DEFAULT)
        directory.default_acl = value or b""
    return directory.default_acl or None


def new_inode(
    union: Union, parent: Inode, directory: LayerDir, name: bytes, st: os.stat_result
) -> Inode:
    """The inode of a file just made in the upper."""
    upper = union.need_upper()
    if upper.records:
        upper.forget_record(st.st_ino)
    inode = union.fresh_inode(st)
    inode.upper = inode.incapable = True
    if inode.is_dir:
        made = LayerDir(directory.layer, directory, name)
        made.whs = frozenset()
        inode.dirs = [made]
        union.listings.keep(inode, Listing({}, time.monotonic()))
    inode.add_link(parent, name)
    union.listings.note_name(parent, name, inode.kind)
    return inode


def mknod(
    union: Union, parent: Inode, name: bytes, mode: int, rdev: int, caller: Caller
) -> tuple[Inode, os.stat_result]:
    """mknod(2) and open(2) with O_CREAT; ``rdev`` in the kernel's 32-bit encoding.

    Raises:
        OSError: EPERM for a 0:0 character device, which would be a whiteout.
    """
    kind = stat.S_IFMT(mode) or stat.S_IFREG
    mode = kind | stat.S_IMODE(mode)
    if kind == stat.S_IFCHR and rdev == 0:
        raise OSError(errno.EPERM, "a character device 0:0 is a whiteout", os.fsdecode(name))
    upper = union.need_upper()
    directory, whiteout = _place(union, parent, name)
    birth = _Birth(union, directory, mode, caller)
    device = decode_rdev(rdev)
    fd = -1
    if birth.in_place and not whiteout:
        if kind == stat.S_IFREG:
            fd = upper.create(directory.dirfd(), name, stat.S_IMODE(birth.mode))
            st = os.fstat(fd)
        else:
            upper.run(steps.Mknod(directory.dirfd(), name, birth.mode, device))
            st = directory.stat(name)
    else:
        staged = _Staged(upper, birth)
        try:
            if kind == stat.S_IFREG:
                fd = upper.create(staged.dir_fd, staged.name, birth.bits)
            else:
                upper.run(steps.Mknod(staged.dir_fd, staged.name, birth.mode, device))
            staged.own(birth)
            staged.publish(directory, name, whiteout)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        finally:
            staged.close()
        st = directory.stat(name)
    inode = new_inode(union, parent, directory, name, st)
    if fd >= 0:
        union.fds.keep_data(inode, fd, writable=True)
        if not union.can_override and st.st_mode & 0o600 != 0o600:
            union.fds.pin(inode)
    return inode, st


def mkdir(
    union: Union, parent: Inode, name: bytes, mode: int, caller: Caller
) -> tuple[Inode, os.stat_result]:
    """mkdir(2)."""
    upper = union.need_upper()
    directory, whiteout = _place(union, parent, name)
    birth = _Birth(union, directory, stat.S_IFDIR | (mode & 0o1777), caller)
    hidden = bool(directory.whs) and directory.whs is not None and name in directory.whs
    if birth.in_place and not whiteout and not hidden:
        upper.run(steps.Mkdir(directory.dirfd(), name, stat.S_IMODE(birth.mode)))
    else:
        staged = _Staged(upper, birth)
        try:
            upper.run(steps.Mkdir(staged.dir_fd, staged.name, birth.bits))
            staged.own(birth)
            if whiteout or hidden:
                upper.mark_opaque(staged.path(), staged.dir_fd, staged.name)
            staged.publish(directory, name, whiteout, is_dir=True)
        finally:
            staged.close()
    st = directory.stat(name)
    inode = new_inode(union, parent, directory, name, st)
    if whiteout or hidden:
        assert inode.dirs is not None
        inode.dirs[0].opaque = True
    return inode, st


def symlink(
    union: Union, parent: Inode, name: bytes, target: bytes, caller: Caller
) -> tuple[Inode, os.stat_result]:
    """symlink(2)."""
    upper = union.need_upper()
    directory, whiteout = _place(union, parent, name)
    birth = _Birth(union, directory, stat.S_IFLNK | 0o777, caller)
    if birth.in_place and not whiteout:
        upper.run(steps.Symlink(target, directory.dirfd(), name))
    else:
        staged = _Staged(upper, birth)
        try:
            upper.run(steps.Symlink(target, staged.dir_fd, staged.name))
            staged.own(birth)
            staged.publish(directory, name, whiteout)
        finally:
            staged.close()
    st = directory.stat(name)
    return new_inode(union, parent, directory, name, st), st


class _Staged:
    """A place in stage/ for one new file; with a default ACL, a directory that carries it.

    The kernel then works out the new file's ACL and mode as it would in place.
    """

    def __init__(self, upper: Upper, birth: _Birth) -> None:
        self.upper = upper
        self.name = upper.temp_name()
        self.dir_fd = upper.stage_fd
        self._holder: bytes | None = None
        if birth.default_acl is not None:
            self._holder = self.name
            os.mkdir(self.name, 0o700, dir_fd=upper.stage_fd)
            os.setxattr(upper.stage_path(self.name), formats.ACL_DEFAULT, birth.default_acl)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self.dir_fd = os.open(self.name, flags, dir_fd=upper.stage_fd)

    def path(self) -> bytes:
        """A path to the staged file."""
        return b"/proc/self/fd/%d/%s" % (self.dir_fd, self.name)

    def own(self, birth: _Birth) -> None:
        """Give the staged file its owner, and the bits that chown(2) clears."""
        if birth.override:
            self._own_by_xattr(birth)
            return
        if (birth.uid, birth.gid) != (os.geteuid(), os.getegid()):
            self.upper.run(steps.Chown(self.dir_fd, self.name, birth.uid, birth.gid))
        if birth.mode & 0o6000 and not stat.S_ISLNK(birth.mode):
            now = os.stat(self.name, dir_fd=self.dir_fd, follow_symlinks=False)
            mode = stat.S_IMODE(now.st_mode) | (birth.mode & 0o6000)
            self.upper.run(steps.Chmod(self.dir_fd, self.name, mode))

    def _own_by_xattr(self, birth: _Birth) -> None:
        if stat.S_IFMT(birth.mode) not in (stat.S_IFREG, stat.S_IFDIR):
            if (birth.uid, birth.gid) != (os.geteuid(), os.getegid()):
                raise OSError(errno.EPERM, "this owner cannot be kept on such a file")
            return
        st = os.stat(self.name, dir_fd=self.dir_fd, follow_symlinks=False)
        wanted = birth.owned(st)
        name = self.upper.layer.override
        assert name is not None
        self.upper.run(steps.SetXattr(self.path(), name, override_value(wanted)))

    def publish(
        self, directory: LayerDir, name: bytes, whiteout: bool, *, is_dir: bool = False
    ) -> None:
        """Move it to its place, over the whiteout if there is one."""
        fd = directory.dirfd()
        if whiteout and is_dir:
            self.upper.run(steps.Rename(self.dir_fd, self.name, fd, name, calls.RENAME_EXCHANGE))
            # What is staged now is the whiteout; close() removes it.
        elif whiteout:
            self.upper.run(steps.Rename(self.dir_fd, self.name, fd, name))
        else:
            self.upper.run(steps.Rename(self.dir_fd, self.name, fd, name, calls.RENAME_NOREPLACE))

    def close(self) -> None:
        """Remove what was not published."""
        if self._holder is not None:
            os.close(self.dir_fd)
        self.upper.discard(self.name)


def link(union: Union, inode: Inode, parent: Inode, name: bytes) -> os.stat_result:
    """link(2), and linkat(2) of an O_TMPFILE."""
    upper = union.need_upper()
    check_name(name)
    copy_up(union, inode)
    directory, whiteout = _place(union, parent, name)
    if inode.parent is not None or inode.indexed is not None:
        source, old = union.place(inode)
        if source.impure and not directory.impure and upper.prefix is not None:
            if source.first_xattr(old, formats.ORIGIN_NAMES) is not None:
                upper.mark_impure(directory)

        def plan(dir_fd: int, target: bytes) -> steps.Step:
            return steps.Link(source.dirfd(), old, dir_fd, target)

    elif inode.orphan is not None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    else:

        def plan(dir_fd: int, target: bytes) -> steps.Step:
            return steps.LinkFd(inode.fd, dir_fd, target)

    if whiteout:
        temp = upper.temp_name()
        upper.run(plan(upper.stage_fd, temp))
        try:
            upper.run(steps.Rename(upper.stage_fd, temp, directory.dirfd(), name))
        except OSError:
            upper.discard(temp)
            raise
    else:
        upper.run(plan(directory.dirfd(), name))
    inode.add_link(parent, name)
    union.listings.note_name(parent, name, inode.kind)
    return union.stat(inode)


def tmpfile(union: Union, parent: Inode, mode: int, caller: Caller) -> tuple[Inode, os.stat_result]:
    """open(2) with O_TMPFILE. The file lives by its descriptor until the kernel forgets it."""
    upper = union.need_upper()
    if not upper.tmpfile:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    directory = ensure_dir(union, parent)
    birth = _Birth(union, directory, stat.S_IFREG | stat.S_IMODE(mode), caller)
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    fd = os.open(b".", flags, birth.bits, dir_fd=directory.dirfd())
    try:
        if birth.override:
            assert upper.layer.override is not None
            os.setxattr(fd, upper.layer.override, override_value(birth.owned(os.fstat(fd))))
        elif not birth.in_place:
            now = stat.S_IMODE(os.fstat(fd).st_mode)
            os.fchown(fd, birth.uid, birth.gid)
            if birth.mode & 0o6000:
                os.fchmod(fd, now | (birth.mode & 0o6000))
        st = os.fstat(fd)
    except OSError:
        os.close(fd)
        raise
    inode = union.fresh_inode(st)
    inode.upper = inode.incapable = True
    union.fds.keep_data(inode, fd, writable=True)
    union.fds.pin(inode)
    return inode, union.stat(inode)
