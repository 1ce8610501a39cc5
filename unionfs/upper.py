"""The upper layer's own abilities: its work directory, whiteouts, marks and records.

WORK/pyunion/ holds all that is ours::

    lock        flock'd while mounted
    stage/      things being made; swept at mount
    orphans/    unlinked but possibly open files; swept at mount
    index/      files with names that the upper does not hold yet (``index``)
    whiteout    the whiteout that all others are links of
    redirects   is there if the upper may hold redirects
    records/    identity of files that cannot carry an xattr: a symlink
                ``<st_ino> -> <btime>:<origin>`` per file

Which whiteout, xattr prefix and rename flags the filesystem takes is found out
by trying, once, in stage/.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from unionfs import formats, steps
from unionfs.errors import UserError, suppress
from unionfs.layer import Layer, LayerDir
from unionfs.sys import calls
from unionfs.trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

OURS: Final = b"pyunion"
_REDIRECTS: Final = b"redirects"
_WHITEOUT: Final = b"whiteout"
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.ENOSYS})
FOREIGN_OK: Final = frozenset({b"work", b"index", OURS, b"lost+found"})
_DIR_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _exists(dir_fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _only_whiteouts(path: bytes) -> bool:
    with os.scandir(path) as entries:
        for entry in entries:
            st = entry.stat(follow_symlinks=False)
            if not (stat.S_ISCHR(st.st_mode) and st.st_rdev == 0):
                return False
    return True


class _Trial:
    """A name in the stage to try something with; what is there is removed at the end."""

    def __init__(self, upper: Upper) -> None:
        self._stage = upper.stage_fd
        self._name = upper.temp_name()

    def __enter__(self) -> bytes:
        return self._name

    def __exit__(self, *exc: object) -> None:
        remove_tree(self._stage, self._name)


class Upper:
    """A writable layer and its work directory.

    Attributes:
        prefix: the xattr family we write (``trusted.overlay.`` or ``user.overlay.``), or
            None where the filesystem has no usable xattrs.
        index_dir: index/ as a directory of the layer.
        whiteout_style: ``chardev``, ``xattr`` or ``dotwh``.
    """

    def __init__(self, layer: Layer, work: bytes, *, allow_dirty_volatile: bool = False) -> None:
        self.layer = layer
        self.work_path = work
        self.after_step: Callable[[steps.Step], None] | None = None
        self.log: Callable[[str], None] | None = None
        self._counter = 0
        self.upper_fd = os.open(layer.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock(self.upper_fd, layer.path)
        try:
            self._open_work(work)
        except BaseException:
            os.close(self.upper_fd)
            raise
        self.prefix = self._probe_prefix()
        self.whiteout_style = self._probe_whiteout()
        self.tmpfile = self._probe_tmpfile()
        self.rename_whiteout = self.whiteout_style == "chardev" and self._probe_rename_whiteout()
        self._link_whiteouts = True
        with suppress(FileNotFoundError):
            os.unlink(_WHITEOUT, dir_fd=self.ours_fd)  # it may be of another style or family
        self.records: dict[int, tuple[int, bytes]] = {}
        self._load_records()

    # -- opening and closing -------------------------------------------------

    def _lock(self, fd: int, path: bytes) -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"{os.fsdecode(path)} is in use by another union",
                    "unmount it first (pyunion list shows it), or end what still uses it",
                ) from None
            raise

    def _open_work(self, work: bytes) -> None:
        self.work_fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._lock(self.work_fd, work)
        try:
            strangers = [name for name in os.listdir(work) if not self._may_be_in_work(work, name)]
            if strangers:
                raise UserError(
                    f"work directory {os.fsdecode(work)} holds something else: "
                    f"{os.fsdecode(min(strangers))}",
                    "give an empty directory on the filesystem of the upper with --work",
                )
            for name in os.listdir(work):
                if name.isdigit():  # fuse-overlayfs's temporaries
                    remove_tree(self.work_fd, name)
            foreign = not os.path.isdir(os.path.join(work, OURS)) and bool(
                os.listdir(self.upper_fd)
            )
            with suppress(FileExistsError):
                os.mkdir(OURS, 0o700, dir_fd=self.work_fd)
            self.ours_fd = os.open(OURS, _DIR_FLAGS, dir_fd=self.work_fd)
            self.may_have_redirects = _exists(self.ours_fd, _REDIRECTS)
            if foreign:
                self.expect_redirects()
            self._subs: list[int] = []
            self.stage_fd = self._sub(b"stage")
            self.orphan_fd = self._sub(b"orphans")
            self.index_fd = self._sub(b"index")
            self.index_dir = LayerDir(self.layer, None, b"")
            self.index_dir.fd = self.index_fd
            self.index_dir.impure = True
            self.index_dir.whs = frozenset()
            self.record_fd = self._sub(b"records")
        except BaseException:
            os.close(self.work_fd)
            raise

    @staticmethod
    def _may_be_in_work(work: bytes, name: bytes) -> bool:
        if name in FOREIGN_OK:
            return True
        # fuse-overlayfs's temporaries: files, and directories that hold at most whiteouts
        path = os.path.join(work, name)
        return name.isdigit() and (not os.path.isdir(path) or _only_whiteouts(path))

    def _sub(self, name: bytes) -> int:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.ours_fd)
        fd = os.open(name, _DIR_FLAGS, dir_fd=self.ours_fd)
        self._subs.append(fd)
        return fd

    def sweep(self) -> None:
        """Remove what a crash left in stage/ and orphans/."""
        for fd in (self.stage_fd, self.orphan_fd):
            for name in os.listdir(fd):
                remove_tree(fd, os.fsencode(name))

    def close(self) -> None:
        """Release locks and descriptors."""
        for fd in (*self._subs, self.ours_fd, self.work_fd, self.upper_fd):
            os.close(fd)

    # -- abilities of the filesystem -----------------------------------------

    def stage_path(self, name: bytes) -> bytes:
        """A path to a staged file, for the calls that need one."""
        return b"/proc/self/fd/%d/%s" % (self.stage_fd, name)

    def _probe_prefix(self) -> bytes | None:
        with _Trial(self) as name:
            os.mkdir(name, 0o700, dir_fd=self.stage_fd)
            for prefix in (formats.TRUSTED, formats.USER):
                try:
                    os.setxattr(self.stage_path(name), prefix + formats.OPAQUE, b"y")
                    return prefix
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EACCES):
                        raise
        return None

    def _probe_whiteout(self) -> str:
        if "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT" not in os.environ:
            with _Trial(self) as name:
                try:
                    os.mknod(name, stat.S_IFCHR, 0, dir_fd=self.stage_fd)
                    return "chardev"
                except OSError as error:
                    if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL):
                        raise
            if self.prefix is not None:
                return "xattr"
        return "dotwh"

    def _probe_tmpfile(self) -> bool:
        try:
            fd = os.open(b".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=self.stage_fd)
        except OSError:
            return False
        os.close(fd)
        return True

    def _probe_rename_whiteout(self) -> bool:
        with _Trial(self) as name, _Trial(self) as other:
            os.mknod(name, stat.S_IFREG | 0o600, dir_fd=self.stage_fd)
            try:
                calls.renameat2(self.stage_fd, name, self.stage_fd, other, calls.RENAME_WHITEOUT)
            except OSError:
                return False
        return True

    # -- doing ---------------------------------------------------------------

    def temp_name(self) -> bytes:
        """A fresh name for stage/ or orphans/."""
        self._counter += 1
        return b"%d-%d" % (os.getpid(), self._counter)

    def run(self, *plan: steps.Step) -> None:
        """Carry out steps in order; stops at the first that fails."""
        for step in plan:
            if self.log is not None:
                self.log(step.describe())
            step.execute()
            if self.after_step is not None:
                self.after_step(step)

    def create(self, dir_fd: int, name: bytes, mode: int) -> int:
        """A new regular file, open for reading and writing; the caller owns the descriptor."""
        if self.log is not None:
            self.log(f"create {os.fsdecode(name)!r} {mode:o}")
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, mode, dir_fd=dir_fd)
        if self.after_step is not None:
            try:
                self.after_step(steps.Mknod(dir_fd, name, stat.S_IFREG | mode, 0))
            except BaseException:
                os.close(fd)
                raise
        return fd

    def add_orphan(self, dir_fd: int, name: bytes) -> bytes:
        """Move the last name of a file out of sight, into orphans/; its name there."""
        orphan = self.temp_name()
        self.run(steps.Rename(dir_fd, name, self.orphan_fd, orphan))
        return orphan

    def drop_orphan(self, orphan: bytes) -> None:
        """Nobody can reach the orphan any more."""
        remove_tree(self.orphan_fd, orphan)

    def discard(self, name: bytes) -> None:
        """Remove something staged that was not used."""
        remove_tree(self.stage_fd, name)

    def enable_override(self) -> None:
        """Keep owners and modes in xattrs from now on (xattr_permissions)."""
        st = os.fstat(self.upper_fd)
        value = b"%d:%d:%04o" % (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode))
        try:
            os.setxattr(self.upper_fd, formats.OVERRIDE_STAT, value)
        except OSError as error:
            raise UserError(
                f"xattr_permissions: {os.fsdecode(self.layer.path)}: {error.strerror}",
                "the upper's filesystem must take user.* attributes",
            ) from None
        self.layer.override = formats.OVERRIDE_STAT

    # -- whiteouts -----------------------------------------------------------

    def whiteout(
        self, directory: LayerDir, name: bytes, *, replace: bool, orphan: bytes | None = None
    ) -> None:
        """Make ``name`` in ``directory`` a whiteout; ``replace``: something of ours is there.

        A directory that was there is kept in orphans/ under ``orphan``, if given.
        """
        fd = directory.dirfd()
        if self.whiteout_style == "chardev":
            if not replace:
                self._make_whiteout(fd, name)
                return
            self._swap_in(self.stage_whiteout(), fd, name, orphan)
        elif self.whiteout_style == "xattr":
            self.allow_xattr_whiteouts(directory)
            temp = self.stage_whiteout()
            self._swap_in(temp, fd, name, orphan)
            if not replace:
                self.discard(temp)  # rename(2) does nothing where another name of it lies
        else:
            # whiteout before unlink: a crash between shows the file, which is the old state,
            # because a name that is there wins over the .wh. file beside it.
            with suppress(FileExistsError):
                self.run(steps.Mknod(fd, formats.WH_PREFIX + name, stat.S_IFREG | 0o444, 0))
            if directory.whs is not None:
                directory.whs |= {name}
            if replace:
                self._remove(fd, name, orphan)

    def stage_whiteout(self) -> bytes:
        """A whiteout in stage/ (not for the dotwh style); its name there."""
        temp = self.temp_name()
        self._make_whiteout(self.stage_fd, temp)
        return temp

    def _make_whiteout(self, fd: int, name: bytes) -> None:
        """A further name of the one whiteout in the work directory: a link costs no inode."""
        if self._link_whiteouts:
            for _ in range(2):
                try:
                    self.run(steps.Link(self.ours_fd, _WHITEOUT, fd, name))
                    return
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.EMLINK):
                        self._link_whiteouts = error.errno not in _NO_LINKS
                        if self._link_whiteouts:
                            raise
                        break
                temp = self.temp_name()
                self._create_whiteout(self.stage_fd, temp)
                self.run(steps.Rename(self.stage_fd, temp, self.ours_fd, _WHITEOUT))
        self._create_whiteout(fd, name)

    def _create_whiteout(self, fd: int, name: bytes) -> None:
        if self.whiteout_style == "chardev":
            self.run(steps.Mknod(fd, name, stat.S_IFCHR, 0))
            return
        assert self.prefix is not None
        path = b"/proc/self/fd/%d/%s" % (fd, name)
        self.run(
            steps.Mknod(fd, name, stat.S_IFREG | 0o444, 0),
            steps.SetXattr(path, self.prefix + formats.WHITEOUT, b""),
        )

    def _swap_in(self, temp: bytes, fd: int, name: bytes, orphan: bytes | None) -> None:
        try:
            self.run(steps.Rename(self.stage_fd, temp, fd, name))
        except (IsADirectoryError, NotADirectoryError):
            # A directory lies there: exchange, then clear it away out of sight.
            try:
                self.run(steps.Rename(self.stage_fd, temp, fd, name, calls.RENAME_EXCHANGE))
            except OSError:
                self.discard(temp)
                raise
            self._dispose(temp, orphan)
        except OSError:
            self.discard(temp)
            raise

    def _remove(self, fd: int, name: bytes, orphan: bytes | None) -> None:
        try:
            self.run(steps.Unlink(fd, name))
        except IsADirectoryError:
            temp = self.temp_name()
            self.run(steps.Rename(fd, name, self.stage_fd, temp))
            self._dispose(temp, orphan)

    def _dispose(self, temp: bytes, orphan: bytes | None) -> None:
        # The name is gone already: nothing that fails here may say otherwise.
        with suppress(OSError):
            if orphan is not None:
                with suppress(OSError):
                    self.run(steps.Rename(self.stage_fd, temp, self.orphan_fd, orphan))
                    return
            self.discard(temp)

    def allow_xattr_whiteouts(self, directory: LayerDir) -> None:
        """Mark a directory as one that may hold whiteouts in xattr form (opaque=x)."""
        if not directory.xwhiteouts:
            assert self.prefix is not None
            self.run(steps.SetXattr(directory.proc_path(b""), self.prefix + formats.OPAQUE, b"x"))
            directory.xwhiteouts = True

    def remove_whiteout(self, directory: LayerDir, name: bytes) -> None:
        """Remove a whiteout. Only legal where nothing lies beneath, or in an opaque directory."""
        fd = directory.dirfd()
        if directory.whs and name in directory.whs:
            self.run(steps.Unlink(fd, formats.WH_PREFIX + name))
            directory.whs -= {name}
        with suppress(FileNotFoundError):
            self.run(steps.Unlink(fd, name))

    # -- marks ---------------------------------------------------------------

    def mark_opaque(self, path: bytes, dir_fd: int, name: bytes) -> None:
        """Mark the directory at ``path`` opaque; ``dir_fd``/``name`` say the same for dotwh."""
        if self.prefix is not None:
            self.run(steps.SetXattr(path, self.prefix + formats.OPAQUE, b"y"))
        else:
            with suppress(FileExistsError):
                self.run(
                    steps.Mknod(dir_fd, name + b"/" + formats.WH_OPAQUE, stat.S_IFREG | 0o444, 0)
                )

    def expect_redirects(self) -> None:
        """Remember in the work directory that the upper may hold redirects."""
        if not self.may_have_redirects:
            self.may_have_redirects = True
            with suppress(FileExistsError):
                os.mknod(_REDIRECTS, stat.S_IFREG | 0o600, dir_fd=self.ours_fd)

    def mark_impure(self, directory: LayerDir) -> None:
        """Say that ``directory`` may hold files with an origin record (overlayfs: impure)."""
        if not directory.impure and self.prefix is not None:
            self.run(steps.SetXattr(directory.proc_path(b""), self.prefix + formats.IMPURE, b"y"))
        directory.impure = True

    # -- origins: where a copied-up file's inode number comes from ------------

    def set_origin(self, path: bytes, origin: bytes, dir_fd: int, name: bytes) -> None:
        """Record the identity of a staged copy, in an xattr or, failing that, in records/."""
        if self.prefix is not None:
            try:
                self.run(steps.SetXattr(path, self.prefix + formats.ORIGIN, origin))
                return
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EACCES):
                    raise
        self._record(calls.statx(dir_fd, name), origin)

    def set_origin_fd(self, fd: int, origin: bytes) -> None:
        """As ``set_origin``, for an open file that may have no name yet."""
        if self.prefix is not None:
            os.setxattr(fd, self.prefix + formats.ORIGIN, origin)
            return
        self._record(calls.statx(fd, b""), origin)

    def _record(self, what: calls.Statx, origin: bytes) -> None:
        key = b"%d" % what.ino
        with suppress(FileNotFoundError):
            os.unlink(key, dir_fd=self.record_fd)
        self.run(steps.Symlink(b"%d:%s" % (what.btime_ns, origin), self.record_fd, key))
        self.records[what.ino] = (what.btime_ns, origin)

    def origin_of(self, directory: LayerDir, name: bytes, st: os.stat_result) -> bytes | None:
        """The origin recorded for a file of the upper."""
        if self.records:
            record = self.records.get(st.st_ino)
            if record is not None:
                if calls.statx(directory.dirfd(), name).btime_ns == record[0]:
                    return record[1]
                self.forget_record(st.st_ino)
        if directory.impure and self.prefix is not None:
            return directory.first_xattr(name, formats.ORIGIN_NAMES)
        return None

    def forget_record(self, ino: int) -> None:
        """The file that a record spoke of is gone."""
        if self.records.pop(ino, None) is not None:
            with suppress(FileNotFoundError):
                os.unlink(b"%d" % ino, dir_fd=self.record_fd)

    def _load_records(self) -> None:
        for text in os.listdir(self.record_fd):
            name = os.fsencode(text)
            try:
                btime, _, origin = os.readlink(name, dir_fd=self.record_fd).partition(b":")
                self.records[int(name)] = (int(btime), origin)
            except (OSError, ValueError):
                remove_tree(self.record_fd, name)
