"""Copy-up: a lower file or directory gets its equal in the upper, before its first change.

Staged out of sight (data, owner, mode, xattrs, times, origin), then published
by one link or rename; a crash leaves it wholly done or not begun. Copying data
gives up the monitor; the inode is ``busy`` meanwhile.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from unionfs import formats, hardlinks, index, steps
from unionfs.errors import suppress
from unionfs.inode import Inode
from unionfs.layer import LayerDir
from unionfs.numbers import identity_of
from unionfs.sys import calls
from unionfs.union import Union
from unionfs.upper import Upper

TYPE_CHECKING = False
if TYPE_CHECKING:
    pass

#: Up to this size data is copied without letting others run: a switch of threads costs more.
_INLINE_BYTES = 256 << 10
_CHUNK = 16 << 20
#: Without holes, this much is copied by one read and one write.
_SMALL = 64 << 10
_CANNOT_COPY = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
)


class kept_times:
    """Copying up a child is no change of its directory: put the directory's times back."""

    def __init__(self, directory: LayerDir) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        self._times = steps.times_of(self._directory.stat_self())

    def __exit__(self, *exc: object) -> None:
        calls.utimensat(self._directory.dirfd(), b".", *self._times)


def ensure_dir(union: Union, inode: Inode) -> LayerDir:
    """The upper directory of ``inode``, made (with its parents) if it is not there yet.

    Raises:
        OSError: EROFS; ENOENT if the directory was removed; whatever the upper says.
    """
    upper = union.need_upper()
    if inode.upper:
        if inode.parent is None and inode is not union.root:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return union.updir(inode)
    chain = []
    current = inode
    while not current.upper:
        chain.append(current)
        if current.parent is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        current = current.parent
    for current in reversed(chain):
        _copy_up_dir(union, upper, current)
    return union.updir(inode)


def _copy_up_dir(union: Union, upper: Upper, inode: Inode) -> None:
    parent = inode.parent
    assert parent is not None and inode.dirs is not None
    above = union.updir(parent)
    source = inode.dirs[0]
    st = source.stat_self()
    temp = upper.temp_name()
    path = upper.stage_path(temp)
    upper.run(steps.Mkdir(upper.stage_fd, temp, 0o700))
    try:
        if not source.masked:
            copy_xattrs(source, b"", path)
        set_owner(union, upper.stage_fd, temp, st)
        upper.set_origin(path, origin_for(union, inode, st), upper.stage_fd, temp)
        upper.run(steps.Utimens(upper.stage_fd, temp, *steps.times_of(st)))
        with kept_times(above):
            # impure before rename: a flag too much costs a look, one too few an inode number.
            upper.mark_impure(above)
            upper.run(
                steps.Rename(
                    upper.stage_fd, temp, above.dirfd(), inode.name, calls.RENAME_NOREPLACE
                )
            )
    except OSError:
        upper.discard(temp)
        raise
    made = LayerDir(above.layer, above, inode.name)
    made.whs = frozenset()
    inode.dirs = [made, *inode.dirs]
    inode.upper = True
    inode.real = made.stat_self().st_ino
    union.listings.note_name(parent, inode.name, stat.S_IFDIR)


def origin_for(union: Union, inode: Inode, st: os.stat_result) -> bytes:
    """The identity of a lower inode, as ``Upper.set_origin`` keeps it."""
    assert inode.dirs is not None or inode.low is not None
    holder = inode.dirs[0] if inode.dirs is not None else inode.low
    assert holder is not None
    return identity_of(holder.layer, st)


def copy_up(
    union: Union,
    inode: Inode,
    *,
    size: int | None = None,
    by: tuple[Inode, bytes] | None = None,
) -> None:
    """Make sure that ``inode`` is in the upper; ``size`` bytes of its data are enough.

    ``by`` is the name that will be changed, where that is known.

    Raises:
        OSError: EROFS, ENOSPC, EDQUOT, EIO … from below; the union is then as before.
    """
    if inode.is_dir:
        if not inode.upper:  # a removed directory of the upper keeps its attributes
            ensure_dir(union, inode)
        return
    while inode.busy:
        union.monitor.wait_idle()
    if inode.upper and inode.data is None:
        return
    upper = union.need_upper()
    inode.busy = True
    try:
        if inode.upper:
            _materialise(union, upper, inode)
        elif inode.kind == stat.S_IFREG:
            _copy_up_regular(union, upper, inode, size, by)
        else:
            _copy_up_special(union, upper, inode, by)
    finally:
        inode.busy = False
        union.monitor.notify_idle()
        union.forget(inode.ino, 0)


def _copy_up_regular(
    union: Union,
    upper: Upper,
    inode: Inode,
    size: int | None,
    by: tuple[Inode, bytes] | None,
) -> None:
    st = union.stat(inode)
    names = _names(union, inode, st, by)
    for parent, _ in names:
        ensure_dir(union, parent)
    temp, fd = _stage_regular(union, upper, inode, st, size)
    try:
        while inode.users:
            union.monitor.wait_idle()
        if names:
            _publish(union, upper, inode, names, temp, fd)
        elif temp is not None:
            upper.discard(temp)
        _settle(union, inode, fd, st)
    except BaseException:
        os.close(fd)
        if temp is not None:
            upper.discard(temp)
        raise
    if not names:
        union.fds.pin(inode)


def _names(
    union: Union, inode: Inode, st: os.stat_result, by: tuple[Inode, bytes] | None
) -> list[tuple[Inode, bytes]]:
    """Every visible name of a lower file, ``by`` first; none if it is unlinked and open."""
    if inode.parent is None:
        return []
    if st.st_nlink > 1:
        names = hardlinks.visible_names(union, inode, st)
        if by is not None and by in names:
            names.remove(by)
            names.insert(0, by)
        return names
    return inode.links()


def _settle(union: Union, inode: Inode, fd: int, st: os.stat_result) -> None:
    """The inode lives in the upper now, with ``fd`` as its data."""
    union.fds.keep_data(inode, fd, writable=True)
    inode.upper = True
    inode.low = None
    inode.data = None
    inode.real = os.fstat(fd).st_ino
    if not union.can_override and st.st_mode & 0o600 != 0o600:
        union.fds.pin(inode)


def _stage_regular(
    union: Union, upper: Upper, inode: Inode, st: os.stat_result, size: int | None
) -> tuple[bytes | None, int]:
    """A complete copy, out of sight: (name in stage/ or None for an O_TMPFILE, descriptor)."""
    source = union.open_lower_data(inode)
    temp: bytes | None = None
    try:
        # A metacopy file has times of its own: its data must only stay as it is now. What an
        # index names never changes, but its time may: it says who has used it.
        indexed = inode.low is not None and inode.low.layer.indexed
        seen = st if inode.data is None and not indexed else os.fstat(source)
        if upper.tmpfile:
            fd = os.open(
                b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=upper.stage_fd
            )
        else:
            temp = upper.temp_name()
            fd = os.open(
                temp,
                os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
                dir_fd=upper.stage_fd,
            )
        try:
            length = st.st_size if size is None else min(size, st.st_size)
            if length > _INLINE_BYTES:
                with union.monitor.released():
                    copy_data(source, fd, length)
            else:
                copy_data(source, fd, length)
            after = os.fstat(source)
            changed = after.st_size != seen.st_size or (
                after.st_mtime_ns != seen.st_mtime_ns and not indexed
            )
            if changed and length:
                raise OSError(errno.EIO, "the lower file changed while it was copied")
            low = inode.low
            path = b"/proc/self/fd/%d" % fd
            if low is not None:
                set_owner_fd(union, fd, st)  # first: chown(2) takes a capability away
                copy_xattrs(low, inode.name, path, follow=True)
                set_mode_fd(union, fd, st)
                upper.set_origin_fd(fd, origin_for(union, inode, st))
            # A copy cut short is a change already: a crash must not show it with the old time.
            modified = st.st_mtime_ns if length == st.st_size else time.time_ns()
            os.utime(fd, ns=(st.st_atime_ns, modified))
            if length and not union.options.volatile:
                calls.start_writeback(fd)
        except BaseException:
            os.close(fd)
            if temp is not None:
                upper.discard(temp)
            raise
    finally:
        os.close(source)
    return temp, fd


def copy_data(source: int, target: int, length: int) -> None:
    """Copy ``length`` bytes from the start: shared blocks where possible, holes kept."""
    if length == 0:
        return
    st = os.fstat(source)
    if length >= st.st_size and calls.ficlone(target, source, (st.st_dev, os.fstat(target).st_dev)):
        return
    if length <= _SMALL and st.st_blocks * 512 >= st.st_size:
        data = os.pread(source, length, 0)
        if len(data) == length and os.pwrite(target, data, 0) == length:
            return
    os.ftruncate(target, length)
    offset = 0
    while offset < length:
        try:
            offset = os.lseek(source, offset, os.SEEK_DATA)
            end = min(length, os.lseek(source, offset, os.SEEK_HOLE))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            if error.errno != errno.EINVAL:
                raise
            end = length
        if offset >= length:
            return
        while offset < end:
            offset += _copy_some(source, target, offset, min(end - offset, _CHUNK))


def _copy_some(source: int, target: int, offset: int, count: int) -> int:
    try:
        done = os.copy_file_range(source, target, count, offset, offset)
        if done:
            return done
    except OSError as error:
        if error.errno not in _CANNOT_COPY:
            raise
    data = os.pread(source, min(count, 1 << 20), offset)
    if not data:
        raise OSError(errno.EIO, "the lower file became shorter while it was copied")
    return os.pwrite(target, data, offset)


def _copy_up_special(
    union: Union, upper: Upper, inode: Inode, by: tuple[Inode, bytes] | None
) -> None:
    """Symlinks, fifos, sockets, devices."""
    low = inode.low
    assert low is not None
    st = union.stat(inode)
    names = _names(union, inode, st, by)
    for parent, _ in names:
        ensure_dir(union, parent)
    temp = upper.temp_name()
    if inode.kind == stat.S_IFLNK:
        target = low.readlink(inode.name)
        upper.run(steps.Symlink(target, upper.stage_fd, temp))
    else:
        upper.run(steps.Mknod(upper.stage_fd, temp, inode.kind | 0o600, st.st_rdev))
    try:
        path = upper.stage_path(temp)
        copy_xattrs(low, inode.name, path)
        set_owner(union, upper.stage_fd, temp, st)
        upper.set_origin(path, origin_for(union, inode, st), upper.stage_fd, temp)
        upper.run(steps.Utimens(upper.stage_fd, temp, *steps.times_of(st)))
        real = os.stat(temp, dir_fd=upper.stage_fd, follow_symlinks=False).st_ino
        if names:
            _publish(union, upper, inode, names, temp, -1)
        else:
            upper.run(steps.Rename(upper.stage_fd, temp, upper.orphan_fd, temp))
            inode.orphan = temp
    except BaseException:
        upper.discard(temp)
        raise
    inode.upper = True
    inode.low = None
    inode.real = real


def _publish(
    union: Union,
    upper: Upper,
    inode: Inode,
    names: list[tuple[Inode, bytes]],
    temp: bytes | None,
    fd: int,
) -> None:
    """Give the staged file its names."""
    if len(names) == 1:
        parent, name = names[0]
        directory = union.updir(parent)
        with kept_times(directory):
            upper.mark_impure(directory)
            to = directory.dirfd()
            if temp is None:
                upper.run(steps.LinkFd(fd, to, name))
            else:
                flags = calls.RENAME_NOREPLACE
                upper.run(steps.Rename(upper.stage_fd, temp, to, name, flags))
        union.listings.note_name(parent, name, inode.kind)
        return
    folder = index.new_folder(upper)
    place = folder + b"/" + index.FILE
    staged: steps.Step
    if temp is None:
        staged = steps.LinkFd(fd, upper.stage_fd, place)
    else:
        staged = steps.Rename(upper.stage_fd, temp, upper.stage_fd, place)
    index.publish(union, inode, staged, folder, names)
    hardlinks.release_names(union, names)


def _materialise(union: Union, upper: Upper, inode: Inode) -> None:
    """Give a metacopy file of the upper its own data."""
    st = union.stat(inode)
    parent = inode.parent
    if parent is None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    directory = union.updir(parent)
    # Only in an impure directory is a file that has blocks still asked whether it is metacopy.
    upper.mark_impure(directory)
    source = union.open_lower_data(inode)
    try:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(inode.name, flags, dir_fd=directory.dirfd())
    except BaseException:
        os.close(source)
        raise
    try:
        # Until the xattr goes, readers use the lower data: a crash repeats the copy.
        with union.monitor.released():
            copy_data(source, fd, st.st_size)
            os.fdatasync(fd)
        path = b"/proc/self/fd/%d" % fd
        os.utime(fd, ns=(st.st_atime_ns, st.st_mtime_ns))
        for name in (*formats.METACOPY_NAMES, *formats.REDIRECT_NAMES):
            with suppress(OSError):
                upper.run(steps.RemoveXattr(path, name))
        while inode.users:
            union.monitor.wait_idle()
        union.fds.keep_data(inode, fd, writable=True)
        inode.data = None
    except BaseException:
        os.close(fd)
        raise
    finally:
        os.close(source)


def set_owner(union: Union, dir_fd: int, name: bytes, st: os.stat_result) -> None:
    """Owner and mode of a staged file; chown first, because it clears suid and sgid."""
    upper = union.need_upper()
    if upper.layer.override is not None and stat.S_IFMT(st.st_mode) in (stat.S_IFREG, stat.S_IFDIR):
        path = upper.stage_path(name)
        upper.run(steps.SetXattr(path, upper.layer.override, override_value(st)))
        return
    uid, gid = _owner_on_disk(union, st)
    if (uid, gid) != (os.geteuid(), os.getegid()):
        with _kept_owner():
            upper.run(steps.Chown(dir_fd, name, uid, gid))
    if not stat.S_ISLNK(st.st_mode):
        upper.run(steps.Chmod(dir_fd, name, st.st_mode))


def _owner_on_disk(union: Union, st: os.stat_result) -> tuple[int, int]:
    """Who is to own a copy: as below, or the daemon where all owners are shown as one anyway."""
    options = union.options
    return (
        st.st_uid if options.squash_uid is None else os.geteuid(),
        st.st_gid if options.squash_gid is None else os.getegid(),
    )


class _kept_owner:
    """An owner that has no name in our user namespace (chown(2): EINVAL) cannot be kept: EPERM."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno == errno.EINVAL:
            raise OSError(errno.EPERM, "this owner cannot be kept here") from None


def set_owner_fd(union: Union, fd: int, st: os.stat_result) -> None:
    """The owner of an open staged file; ``set_mode_fd`` must follow."""
    if union.need_upper().layer.override is None:
        uid, gid = _owner_on_disk(union, st)
        if (uid, gid) != (os.geteuid(), os.getegid()):
            with _kept_owner():
                os.fchown(fd, uid, gid)


def set_mode_fd(union: Union, fd: int, st: os.stat_result) -> None:
    """The mode of an open staged file; its owner too where both are kept in an xattr."""
    override = union.need_upper().layer.override
    if override is not None:
        os.setxattr(fd, override, override_value(st))
    else:
        os.fchmod(fd, stat.S_IMODE(st.st_mode))


def override_value(st: os.stat_result) -> bytes:
    """``uid:gid:mode`` for ``user.containers.override_stat``."""
    return b"%d:%d:%04o" % (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode))


def copy_xattrs(source: LayerDir, name: bytes, target: bytes, *, follow: bool = False) -> None:
    """Copy the attributes that belong to the user (ACLs and escaped ones included).

    Labels of a security module are left to the module; a capability or an ACL
    that cannot be kept is an error, never a silent change.
    """
    try:
        names = source.list_xattrs(name)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
            return
        raise
    for attribute in names:
        if formats.unescape(attribute) is None or attribute == source.layer.override:
            continue
        try:
            value = source.read_xattr(name, attribute)
            os.setxattr(target, attribute, value, follow_symlinks=follow)
        except OSError as error:
            lenient = attribute.startswith(b"security.") and attribute != formats.CAPABILITY
            if error.errno == errno.ENODATA or (
                lenient and error.errno in (errno.EPERM, errno.ENOTSUP, errno.EACCES)
            ):
                continue
            raise
