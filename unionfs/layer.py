"""One layer: a directory tree, read name by name, and never left.

``LayerDir`` stands for a directory of a layer. ``probe`` asks it about one
name, ``scan`` for all; both speak in the words of ``resolve``. A layer is read
only; writing to the upper one is ``upper.Upper``'s.

Invariants: no symlink is followed, no mount point is crossed (a path that is
one shows as an empty directory), and the union's own upper and work
directories show as empty directories when they lie inside a layer.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import formats
from unionfs.fds import Descriptors
from unionfs.listing import cookie_of
from unionfs.prepared import PreparedDir, PreparedLayer
from unionfs.record import Row
from unionfs.resolve import Says
from unionfs.sys import calls, mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
_NO_XATTR = frozenset({errno.ENOTSUP, errno.ENODATA, errno.EPERM, errno.EACCES, errno.ENOENT})
_O_DIR = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


#: statfs(2)'s f_type of ext2 to ext4, xfs, btrfs, f2fs, bcachefs, zfs, tmpfs, ramfs, squashfs,
#: erofs. FUSE, overlayfs and network filesystems may list other numbers than they show.
_LIST_NUMBERS = frozenset(
    {
        *(0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0xCA451A4E, 0x2FC12FC1),
        *(0x01021994, 0x858458F6, 0x73717368, 0xE0F5E1E2),
    }
)


class Scanned(Row):
    """One name of a directory listing: its answer and its S_IFMT bits."""

    name: bytes
    says: int
    kind: int


class Layer:
    """A directory tree taking part in a union.

    Attributes:
        index: position in the union, 0 for the upper; lowers count from 1.
        space: number added to a file's st_ino to make it unique over filesystems.
        fs: names the filesystem across mounts.
        lists_numbers: what its filesystem's listings say of inode numbers is what stat(2) says.
        live: others may change it while it is mounted.
        shared_fs: a layer above is on the same filesystem.
        override: the xattr that holds owners and modes in this layer, if any.
        masks: paths (relative, raw bytes) shown as empty directories.
        indexed: it is no tree on disk but an index of one, see ``prepared``.
    """

    def __init__(self, path: bytes, index: int, fds: Descriptors) -> None:
        self.indexed = False
        self.prepared: PreparedLayer | None = None
        self.path = path
        self.index = index
        self.is_upper = index == 0
        self.fds = fds
        self.root = LayerDir(self, None, b"")
        self.root.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        st = os.fstat(self.root.fd)
        self.dev = st.st_dev
        self.root_ino = st.st_ino
        self.fs = calls.filesystem_id(self._readable_root())
        self.lists_numbers = mounts.filesystem_type(self.root.fd) in _LIST_NUMBERS
        self.space = 0
        self.override: bytes | None = None
        self.shared_fs = False
        self.live = False
        self.masks: frozenset[bytes] = frozenset()
        for name in formats.OVERRIDE_STAT_NAMES:
            if self.root.get_xattr(b"", name) is not None:
                self.override = name
                break

    def _readable_root(self) -> int:
        """A descriptor that ioctl(2) takes; falls back to the O_PATH one."""
        if not hasattr(self, "_root_rd"):
            try:
                self._root_rd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except PermissionError:
                self._root_rd = os.dup(self.root.fd)
        return self._root_rd

    def close(self) -> None:
        """Close the root descriptors."""
        os.close(self._root_rd)
        if self.root.fd >= 0:
            os.close(self.root.fd)
            self.root.fd = -1

    def statvfs(self) -> os.statvfs_result:
        """statvfs(3) of the filesystem that the layer is on."""
        return os.fstatvfs(self.root.fd)

    def cookie_of(self, name: bytes) -> int:
        """Where a name of a directory of this layer stands in a listing; see ``listing``."""
        return cookie_of(name)

    def link_paths(self) -> dict[int, list[bytes]]:
        """Of an indexed layer: paths of every file with several names, by number."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<Layer {self.index} {os.fsdecode(self.path)}>"


class LayerDir:
    """A directory of one layer, named by its parent; its descriptor opens on demand.

    Attributes:
        default_acl: its default ACL, empty if none; None until asked.
        opaque: the directory hides what lies beneath it.
        xwhiteouts: it may hold whiteouts in the form of empty files with an xattr.
        impure: it may hold files that carry an origin record.
        redirect: where the layers beneath hold this directory, if elsewhere.
        whs: names deleted by a ``.wh.`` file here; None until scanned.
        prepared: of an indexed layer, replies that need no look at a disk.
    """

    __slots__ = (
        "default_acl",
        "fd",
        "impure",
        "layer",
        "masked",
        "name",
        "opaque",
        "origin",
        "parent",
        "prepared",
        "redirect",
        "used",
        "whs",
        "xwhiteouts",
    )

    def __init__(self, layer: Layer, parent: LayerDir | None, name: bytes) -> None:
        self.layer = layer
        self.parent = parent
        self.name = name
        self.prepared: PreparedDir | None = None
        self.fd = -1
        self.used = False
        self.default_acl: bytes | None = None
        self.opaque = False
        self.xwhiteouts = False
        self.impure = False
        self.masked = False
        self.redirect: bytes | None = None
        self.origin: bytes | None = None
        self.whs: frozenset[bytes] | None = None

    def __repr__(self) -> str:
        return f"<LayerDir {self.layer.index}:{os.fsdecode(self.path())}>"

    def path(self) -> bytes:
        """The path from the layer's root, without a leading slash."""
        parts = []
        directory: LayerDir | None = self
        while directory is not None and directory.parent is not None:
            parts.append(directory.name)
            directory = directory.parent
        return b"/".join(reversed(parts))

    def dirfd(self) -> int:
        """An O_PATH descriptor, good until the monitor is left.

        Raises:
            OSError: the directory is gone from the layer.
        """
        if self.fd >= 0:
            self.used = True
            return self.fd
        chain = []
        directory = self
        while directory.fd < 0:
            chain.append(directory)
            assert directory.parent is not None, "a layer's root stays open"
            directory = directory.parent
        fd = directory.fd
        for directory in reversed(chain):
            fd = calls.open_beneath(fd, directory.name, _O_DIR)
            directory.fd = fd
            directory.layer.fds.dirs[directory] = None
        return fd

    def proc_path(self, name: bytes) -> bytes:
        """A path for the calls that take no directory descriptor (xattrs); never a symlink walk."""
        if name:
            return b"/proc/self/fd/%d/%s" % (self.dirfd(), name)
        return b"/proc/self/fd/%d/." % self.dirfd()

    def read_xattr(self, name: bytes, attribute: bytes) -> bytes:
        """getxattr(2) of the name in this directory (empty: the directory)."""
        return os.getxattr(self.proc_path(name), attribute, follow_symlinks=False)

    def list_xattrs(self, name: bytes) -> list[bytes]:
        """listxattr(2) of the name in this directory (empty: the directory)."""
        return [os.fsencode(t) for t in os.listxattr(self.proc_path(name), follow_symlinks=False)]

    def readlink(self, name: bytes) -> bytes:
        """readlink(2) of a name."""
        return os.readlink(name, dir_fd=self.dirfd())

    def open_data(self, name: bytes, ino: int | None) -> int:
        """A descriptor, of the caller's, for reading a regular file.

        Raises:
            OSError: ESTALE if it is not the file with the number ``ino`` (None: any).
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(name, flags | os.O_NOATIME, dir_fd=self.dirfd())
        except PermissionError:
            fd = os.open(name, flags, dir_fd=self.dirfd())
        if ino is not None and os.fstat(fd).st_ino != ino:
            os.close(fd)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fd

    def size_on_disk(self) -> int:
        """Bytes of the directory itself: how much reading its names would cost."""
        return 0 if self.masked else os.fstat(self.dirfd()).st_size

    def get_xattr(self, name: bytes, attribute: bytes) -> bytes | None:
        """An attribute of the name in this directory (empty: the directory); None: not there."""
        try:
            return self.read_xattr(name, attribute)
        except OSError as error:
            if error.errno in _NO_XATTR:
                return None
            raise

    def first_xattr(self, name: bytes, attributes: tuple[bytes, ...]) -> bytes | None:
        """The first of several attributes that is there."""
        for attribute in attributes:
            value = self.get_xattr(name, attribute)
            if value is not None:
                return value
        return None

    def stat(self, name: bytes) -> os.stat_result:
        """lstat(2) of a name, with the owner and mode of an override_stat layer."""
        st = os.stat(name, dir_fd=self.fd if self.fd >= 0 else self.dirfd(), follow_symlinks=False)
        if self.layer.override is not None:
            value = self.get_xattr(name, self.layer.override)
            if value is not None:
                return override_stat(st, value)
        return st

    def stat_shown(self, name: bytes) -> os.stat_result:
        """As ``stat``, for a name that may be masked."""
        if self.layer.masks and self.is_masked(name):
            return _masked_stat(self, name)
        return self.stat(name)

    def stat_self(self) -> os.stat_result:
        """Attributes of the directory itself."""
        if self.parent is None or self.fd >= 0:
            st = os.fstat(self.fd)
            if self.layer.override is not None:
                value = self.get_xattr(b"", self.layer.override)
                if value is not None:
                    return override_stat(st, value)
            return st
        if self.masked:
            return _masked_stat(self.parent, self.name)
        return self.parent.stat(self.name)

    def is_masked(self, name: bytes) -> bool:
        """Whether the name must show as an empty directory."""
        masks = self.layer.masks
        if not masks:
            return False
        path = self.path()
        return (path + b"/" + name if path else name) in masks

    def probe(self, name: bytes) -> Entry | None:
        """What this layer says of ``name``; None: nothing.

        Raises:
            OSError: anything but "not there".
        """
        if self.masked:
            return None
        if self.layer.masks and self.is_masked(name):
            return self._masked_entry(name)
        try:
            st = self.stat(name)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
            if self.has_wh(name):
                return Entry(Says.WHITEOUT, self, name, _NO_STAT, None)
            return None
        return self.classify(name, st)

    def _masked_entry(self, name: bytes) -> Entry | None:
        try:
            st = _masked_stat(self, name)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        if not stat.S_ISDIR(st.st_mode):
            return Entry(Says.FILE, self, name, st, None)
        sub = LayerDir(self.layer, self, name)
        sub.masked = True
        sub.whs = frozenset()
        return Entry(Says.DIR, self, name, st, sub)

    def classify(self, name: bytes, st: os.stat_result) -> Entry | None:
        """The answer for a name that is there with the attributes ``st``; None: gone meanwhile."""
        kind = st.st_mode & 0o170000
        if kind == stat.S_IFDIR:
            if st.st_dev != self.layer.dev:
                # A subvolume (btrfs) numbers its inodes anew: as a mount point, it is not crossed.
                return self._masked_entry(name)
            sub = LayerDir(self.layer, self, name)
            sub.load_marks()
            opaque = sub.opaque or self.has_wh(name)
            return Entry(Says.OPAQUE_DIR if opaque else Says.DIR, self, name, st, sub)
        if kind == stat.S_IFCHR and st.st_rdev == 0:
            return Entry(Says.WHITEOUT, self, name, st, None)
        if (
            self.xwhiteouts
            and kind == stat.S_IFREG
            and st.st_size == 0
            and self.first_xattr(name, formats.WHITEOUT_NAMES) is not None
        ):
            return Entry(Says.WHITEOUT, self, name, st, None)
        return Entry(Says.FILE, self, name, st, None)

    def has_wh(self, name: bytes) -> bool:
        """Whether a ``.wh.`` file for ``name`` lies here."""
        if self.whs is not None:
            return name in self.whs
        if len(name) > 251:
            return False
        try:
            os.stat(formats.WH_PREFIX + name, dir_fd=self.dirfd(), follow_symlinks=False)
        except OSError as error:
            if error.errno in _ABSENT:
                return False
            raise
        return True

    def load_marks(self) -> None:
        """Read the marks of this directory: opaque, redirect, impure, origin."""
        parent = self.parent
        path = self.proc_path(b"") if parent is None else parent.proc_path(self.name)
        try:
            names = os.listxattr(path, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_XATTR:
                raise
            names = []
        for text in names:
            name = os.fsencode(text)
            if not formats.is_private(name):
                continue
            if name in formats.OPAQUE_NAMES:
                value = os.getxattr(path, name, follow_symlinks=False)
                self.opaque = self.opaque or value == b"y"
                self.xwhiteouts = self.xwhiteouts or value == b"x"
            elif name in formats.REDIRECT_NAMES:
                if self.redirect is None or name.startswith(formats.TRUSTED):
                    self.redirect = os.getxattr(path, name, follow_symlinks=False)
            elif name in formats.IMPURE_NAMES:
                self.impure = True
            elif name in formats.ORIGIN_NAMES:
                self.origin = os.getxattr(path, name, follow_symlinks=False)
        if not self.opaque:
            above, prefix = (self, b"") if parent is None else (parent, self.name + b"/")
            try:
                os.stat(prefix + formats.WH_OPAQUE, dir_fd=above.dirfd(), follow_symlinks=False)
                self.opaque = True
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG):
                    raise

    def scan(self, numbers: dict[bytes, int] | None = None) -> Iterator[Scanned]:
        """Every name this layer mentions, whiteouts included (each name once).

        ``numbers`` gets the inode numbers on disk of plain files.

        Raises:
            OSError: the directory cannot be read.
        """
        if self.masked:
            return
        whs = []
        masks = self.layer.masks
        with os.scandir(b"/proc/self/fd/%d" % self.dirfd()) as listing:
            entries = list(listing)
        present = []
        for entry in entries:
            name = entry.name
            if name.startswith(b".wh."):
                if name != formats.WH_OPAQUE:
                    whs.append(name[4:])
                continue
            present.append(name)
            if entry.is_dir(follow_symlinks=False):
                yield Scanned(name, Says.DIR, stat.S_IFDIR)
            elif entry.is_file(follow_symlinks=False):
                if self.xwhiteouts:
                    said = self.probe(name)
                    if said is None:
                        continue
                    yield Scanned(name, said.says, stat.S_IFREG)
                else:
                    if numbers is not None:
                        numbers[name] = entry.inode()
                    yield Scanned(name, Says.FILE, stat.S_IFREG)
            elif entry.is_symlink():
                if numbers is not None:
                    numbers[name] = entry.inode()
                yield Scanned(name, Says.FILE, stat.S_IFLNK)
            elif masks and self.is_masked(name):
                yield Scanned(name, Says.FILE, stat.S_IFREG)
            else:
                said = self.probe(name)
                if said is not None:
                    yield Scanned(name, said.says, said.st.st_mode & 0o170000)
        self.whs = frozenset(whs)
        if whs:
            here = set(present)
            for name in whs:
                if name not in here:
                    yield Scanned(name, Says.WHITEOUT, 0)


class Entry(Row):
    """What one layer holds under a name; ``says`` is never ABSENT."""

    says: int
    dir: LayerDir
    name: bytes
    st: os.stat_result
    sub: LayerDir | None


def edit_stat(st: os.stat_result, **changes: int) -> os.stat_result:
    """A copy of ``st`` with some ``st_*`` fields replaced (times are kept to the nanosecond)."""
    basic = [
        changes.get(name, getattr(st, name))
        for name in ("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size")
    ]
    basic += [st[7], st[8], st[9]]
    names = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blksize", "st_blocks", "st_rdev")
    return os.stat_result(basic, {name: changes.get(name, getattr(st, name)) for name in names})


_NO_ID = 0xFFFFFFFF
_TYPES = {
    b"file": stat.S_IFREG,
    b"dir": stat.S_IFDIR,
    b"symlink": stat.S_IFLNK,
    b"pipe": stat.S_IFIFO,
    b"socket": stat.S_IFSOCK,
}


def override_stat(st: os.stat_result, value: bytes) -> os.stat_result:
    """``st`` with owner, mode and type from ``uid:gid:mode[:type]`` (containers/storage).

    A value that cannot be understood changes nothing.
    """
    fields = value.split(b":")
    try:
        uid, gid, mode = int(fields[0]), int(fields[1]), int(fields[2], 8)
        kind, rdev = stat.S_IFMT(st.st_mode), st.st_rdev
        if len(fields) > 3:
            word = fields[3]
            if word in _TYPES:
                kind = _TYPES[word]
            elif word.startswith((b"block-", b"char-")):
                kind = stat.S_IFBLK if word.startswith(b"block-") else stat.S_IFCHR
                _, major, minor = word.split(b"-")
                rdev = os.makedev(int(major), int(minor))
    except (ValueError, IndexError, OverflowError):
        return st
    if not (0 <= uid < _NO_ID and 0 <= gid < _NO_ID):
        return st
    if (kind == stat.S_IFDIR) != stat.S_ISDIR(st.st_mode):
        return st  # nobody could look into it
    return edit_stat(st, st_mode=kind | (mode & 0o7777), st_uid=uid, st_gid=gid, st_rdev=rdev)


_NO_STAT = os.stat_result((0,) * 10)


def _masked_stat(parent: LayerDir, name: bytes) -> os.stat_result:
    """What a masked path shows: an empty directory (or file) owned like its parent."""
    what = calls.statx(parent.dirfd(), name)
    st = parent.stat_self()
    ino = hash_ino(b"mask", os.fsencode(str(parent.layer.root_ino)), parent.path(), name)
    if stat.S_ISDIR(what.mode):
        mode, nlink = stat.S_IFDIR | 0o755, 2
    else:
        mode, nlink = stat.S_IFREG | 0o444, 1
    return edit_stat(
        st, st_mode=mode, st_ino=ino, st_nlink=nlink, st_size=0, st_blocks=0, st_rdev=0
    )


def hash_ino(*parts: bytes) -> int:
    """A 62-bit number from bytes, the same at every mount."""
    from hashlib import blake2b

    digest = blake2b(b"\0".join(parts), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2 | 1 << 62
