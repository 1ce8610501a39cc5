"""The union's state: layers, inodes, and how a name becomes an inode.

Everything here runs inside the monitor. Reading only; changes are in
``copyup``, ``create``, ``remove`` and ``rename``.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import formats
from unionfs.fds import Descriptors, raise_open_files_limit
from unionfs.index import Indexed, shown
from unionfs.inode import ROOT_INO, Inode
from unionfs.layer import Entry, Layer, LayerDir, edit_stat, hash_ino, override_stat
from unionfs.listings import Listings
from unionfs.live import Watcher
from unionfs.monitor import Monitor
from unionfs.numbers import PLAIN, Numbers, alternative, in_space
from unionfs.prepared import PreparedDir, PreparedLayer
from unionfs.resolve import Says, resolve
from unionfs.sys import calls
from unionfs.types import Attr, Options, encode_rdev
from unionfs.upper import Upper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from unionfs.listing import Listing

_SECOND = 1_000_000_000
_MAX_HOPS = 1000
#: ``Attr`` from a tuple, without its constructor: one a reply, or one an entry of a listing.
_attr = tuple.__new__


def _nobody(ino: int) -> None:
    """No engine is there to be told."""


class Union:
    """A stack of layers shown as one tree.

    Attributes:
        layers: by ``Layer.index``; ``layers[0]`` is the upper, None in a read-only union.
        table: inodes that the kernel knows.
        root: inode 1.
        index: files whose names are not all in the upper yet, by (layer, st_ino).
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.monitor = Monitor()
        self.fds = Descriptors(raise_open_files_limit())
        self.layers: list[Layer | None] = [None]
        self.upper: Upper | None = None
        self.table: dict[int, Inode] = {}
        self._most = 0
        self.can_override = calls.has_dac_override()
        self.numbers = Numbers()
        self._prepared: list[PreparedLayer] = []
        self.listings = Listings(self)
        squashed = options.squash_uid is not None or options.squash_gid is not None
        self._maps_owners = squashed or bool(options.uid_map.ranges or options.gid_map.ranges)
        self.seen_redirect = False
        self._hops = 0
        #: Told when set-id bits go that the kernel may still hold. Inside the monitor.
        self.on_mode_lost: Callable[[int], object] = _nobody
        self.watcher: Watcher | None = None
        self.mount_table: bytes | None = None
        self.index: dict[tuple[int, int], Indexed] = {}
        self.link_scans: dict[int, dict[int, list[bytes]]] = {}
        try:
            self._open_layers()
        except BaseException:
            self.close()
            raise
        self.root = self._make_root()

    def _open_layers(self) -> None:
        options = self.options
        if options.upper is not None:
            layer = Layer(options.upper, 0, self.fds)
            self.layers[0] = layer
            assert options.work is not None
            self.upper = Upper(layer, options.work)
        opener = options.open_layer or Layer
        for index, path in enumerate(options.lowers, 1):
            layer = opener(path, index, self.fds)
            self.layers.append(layer)
            if layer.prepared is not None:
                owner = self._shown_owner if self._maps_owners else None
                layer.prepared.adapt(owner, options.timeout)
                self._prepared.append(layer.prepared)
        seen: set[bytes] = set()
        for known in self.layers:
            if known is not None:
                if not known.indexed:  # its numbers are its own
                    known.space = self.numbers.space_of(known.fs)
                known.shared_fs = known.fs in seen
                if not known.is_upper:
                    seen.add(known.fs)

    def _make_root(self) -> Inode:
        root = Inode(ROOT_INO, ROOT_INO, stat.S_IFDIR)
        stack: list[LayerDir] = []
        for layer in self.layers:
            if layer is None:
                continue
            layer.root.load_marks()
            stack.append(layer.root)
            if layer.root.opaque:
                break
        root.dirs = stack
        root.upper = stack[0].layer.is_upper
        root.nlookup = 1
        self.table[ROOT_INO] = root
        return root

    def close(self) -> None:
        """Close every descriptor and release the locks."""
        for inode in list(self.table.values()):
            self.fds.release(inode)
        self.table.clear()
        roots = {layer.root for layer in self.layers if layer is not None}
        for directory in list(self.fds.dirs):
            if directory not in roots:
                self.fds.drop_dir(directory)
        self.fds.close_all()
        if self.watcher is not None:
            self.watcher.close()
            self.watcher = None
        for layer in self.layers:
            if layer is not None:
                layer.close()
        if self.upper is not None:
            self.upper.close()
            self.upper = None
        self.layers = [None]

    # -- writing side ----------------------------------------------------------

    def need_upper(self) -> Upper:
        """The upper layer.

        Raises:
            OSError: EROFS in a read-only union.
        """
        if self.upper is None or self.options.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self.upper

    @staticmethod
    def updir(inode: Inode) -> LayerDir:
        """The upper directory of a directory that has one."""
        assert inode.dirs is not None and inode.upper
        return inode.dirs[0]

    def place(self, inode: Inode) -> tuple[LayerDir, bytes]:
        """Where in the upper a file is reached that has a name there, or is in the index."""
        if inode.indexed is not None:
            assert self.upper is not None
            return self.upper.index_dir, inode.indexed.name
        assert inode.parent is not None
        return self.updir(inode.parent), inode.name

    @staticmethod
    def lowers_of(inode: Inode) -> list[LayerDir]:
        """The lower directories merged in a directory."""
        assert inode.dirs is not None
        return inode.dirs[1:] if inode.upper else inode.dirs

    # -- inode numbers -----------------------------------------------------------

    def number_of(self, entry: Entry) -> int:
        """The inode number of a name whose topmost entry this is."""
        layer = entry.dir.layer
        st = entry.st
        if layer.is_upper and len(self.layers) > 1:
            assert self.upper is not None
            if entry.sub is not None:
                origin = entry.sub.origin
                if origin is None and self.upper.records:
                    origin = self.upper.origin_of(entry.dir, entry.name, st)
            else:
                origin = self.upper.origin_of(entry.dir, entry.name, st)
            if origin is not None:
                shown_number = self.numbers.of_origin(origin)
                if shown_number is not None:
                    return shown_number
        space = layer.space
        if st.st_nlink > 1 and layer.shared_fs and entry.sub is None and not layer.is_upper:
            space = self.numbers.space_of(b"%s/%d" % (layer.fs, layer.root_ino))
        return in_space(space, st.st_ino)

    # -- names ---------------------------------------------------------------------

    def says(self, dirs: Sequence[LayerDir], name: bytes) -> Iterator[Entry]:
        """What each of the merged directories says of ``name``, following redirects."""
        for position, directory in enumerate(dirs):
            entry = directory.probe(name)
            if entry is None:
                continue
            yield entry
            if entry.sub is not None and entry.sub.redirect is not None:
                self.seen_redirect = True
                yield from self._says_redirected(
                    entry.sub.redirect, directory.layer.index, dirs[position + 1 :]
                )
                return

    def _says_redirected(
        self, redirect: bytes, index: int, below: Sequence[LayerDir]
    ) -> Iterator[Entry]:
        # Redirects in the middle of redirects multiply: layers made for that must not stop us.
        self._hops += 1
        if self._hops > _MAX_HOPS:
            raise OSError(errno.ELOOP, "too many redirects")
        if not redirect.startswith(b"/"):
            if b"/" not in redirect and redirect not in (b"", b".", b".."):
                yield from self.says(below, redirect)
            return
        names = [part for part in redirect.split(b"/") if part]
        if not names or any(part in (b".", b"..") for part in names):
            return
        dirs = [layer.root for layer in self.layers[index + 1 :] if layer is not None]
        for part in names[:-1]:
            found = resolve(self.says(dirs, part))
            dirs = [entry.sub for entry in found if entry.sub is not None]
        yield from self.says(dirs, names[-1])

    def resolve_in(self, dirs: Sequence[LayerDir], name: bytes) -> list[Entry]:
        """The entries of these directories that make up a name."""
        self._hops = 0
        return resolve(self.says(dirs, name))

    def find(self, parent: Inode, name: bytes) -> list[Entry]:
        """The layers' entries that make up ``name``; empty: it does not exist."""
        dirs = parent.dirs
        if dirs is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if len(name) > 255:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if parent.parent is None and parent is not self.root:
            return []
        listing = self.listings.of(parent)
        if listing is not None:
            note = listing.names.get(name)
            if note is None:
                return []
            if note[1] == stat.S_IFREG or note[1] == stat.S_IFLNK:
                plain = self._plain(dirs, name, *note)
                if plain is not None:
                    return plain
            elif note == (0, stat.S_IFDIR):
                made = self._known_dir(parent, name)
                if made is not None:
                    return made
            if len(dirs) > 1:
                first = note[0]
                dirs = [directory for directory in dirs if directory.layer.index >= first]
        elif name.startswith(formats.WH_PREFIX):
            return []
        found = self.resolve_in(dirs, name)
        if not found:
            if listing is not None:
                self.listings.forget(parent)  # a lower changed below us
        elif self.index:
            return shown(self, found)
        return found

    def find_listed(self, parent: Inode, listing: Listing, name: bytes) -> list[Entry]:
        """As ``find``, for a name of the parent's listing. Hot path."""
        index, kind = listing.names[name]
        if kind == stat.S_IFREG or kind == stat.S_IFLNK:
            assert parent.dirs is not None
            plain = self._plain(parent.dirs, name, index, kind)
            if plain is not None:
                return plain
        return self.find(parent, name)

    def _known_dir(self, parent: Inode, name: bytes) -> list[Entry] | None:
        """A directory that is the upper's alone and known: its marks need not be read again."""
        assert parent.dirs is not None
        directory = parent.dirs[0]
        if directory.layer.masks:
            return None
        try:
            st = directory.stat(name)
        except FileNotFoundError:
            return None
        inode = self.table.get(st.st_ino + directory.layer.space)
        if (
            inode is None
            or inode.real != st.st_ino
            or inode.parent is not parent
            or inode.name != name
            or inode.dirs is None
            or not inode.upper
            or len(inode.dirs) > 1
        ):
            return None
        return [Entry(Says.DIR, directory, name, st, inode.dirs[0])]

    def _plain(
        self, dirs: Sequence[LayerDir], name: bytes, index: int, kind: int
    ) -> list[Entry] | None:
        """A file that a listing has in layer ``index``, by one lstat; None: look closer."""
        for directory in dirs:
            if directory.layer.index == index:
                break
        if directory.layer.masks or directory.xwhiteouts:
            return None
        try:
            st = directory.stat(name)
        except FileNotFoundError:
            return None
        if st.st_mode & 0o170000 != kind:
            return None
        found = [Entry(Says.FILE, directory, name, st, None)]
        return shown(self, found) if self.index else found

    def below(self, parent: Inode, name: bytes) -> list[Entry]:
        """What the lowers alone would show under ``name``."""
        lowers = self.lowers_of(parent)
        return self.resolve_in(lowers, name) if lowers else []

    # -- inodes -----------------------------------------------------------------

    def inode_for(self, parent: Inode, name: bytes, found: list[Entry]) -> Inode:
        """The inode of a name, made known if it is not."""
        top = found[0]
        st = top.st
        kind = st.st_mode & 0o170000
        ino = self.number_of(top)
        inode = self.table.get(ino)
        if inode is not None and not self._same(inode, top, kind):
            ino = alternative(top.dir.layer.index, st.st_ino)
            inode = self.table.get(ino)
            if inode is not None and not self._same(inode, top, kind):
                ino = hash_ino(b"alt", os.urandom(16))
                inode = None
        if inode is None:
            inode = Inode(ino, st.st_ino, kind)
            inode.upper = top.dir.layer.is_upper
            if top.sub is not None:
                inode.dirs = [entry.sub for entry in found if entry.sub is not None]
            else:
                if not inode.upper:
                    inode.low = top.dir
                elif self.index:
                    self._find_indexed(inode, st)
                if kind == stat.S_IFREG and self.may_be_metacopy(top):
                    self._find_metacopy(inode, parent, top)
            self.table[ino] = inode
            if self._prepared and not inode.upper:
                self._still_known(inode)
        inode.add_link(parent, name)
        return inode

    def listed(
        self, parent: Inode, listing: Listing, name: bytes
    ) -> tuple[Inode, os.stat_result] | None:
        """The inode of a name of the parent's listing, made known, and its ``st``; None: gone.

        Hot path: a file of a lower that is met for the first time.
        """
        found = self.find_listed(parent, listing, name)
        if not found:
            return None
        top = found[0]
        st = top.st
        real = st.st_ino
        ino = real + top.dir.layer.space
        if (
            top.sub is not None
            or top.dir.layer.is_upper
            or st.st_nlink > 1
            or not ROOT_INO < real < PLAIN
            or ino in self.table
            or self.may_be_metacopy(top)
        ):
            return self.inode_for(parent, name, found), st
        inode = self.table[ino] = Inode(ino, real, st.st_mode & 0o170000)
        inode.low = top.dir
        inode.add_link(parent, name)
        return inode, st

    def fresh_inode(self, st: os.stat_result) -> Inode:
        """An inode for a file just made in the upper."""
        assert self.layers[0] is not None
        ino = in_space(self.layers[0].space, st.st_ino)
        if ino in self.table:
            ino = alternative(self.layers[0].index, st.st_ino)
        while ino in self.table:
            ino = hash_ino(b"alt", os.urandom(16))
        inode = Inode(ino, st.st_ino, st.st_mode & 0o170000)
        self.table[ino] = inode
        return inode

    @staticmethod
    def _same(inode: Inode, top: Entry, kind: int) -> bool:
        return (
            inode.kind == kind
            and inode.real == top.st.st_ino
            and inode.upper == top.dir.layer.is_upper
            and not (inode.is_dir and inode.parent is None and inode.ino != ROOT_INO)
        )

    def known(self, found: list[Entry]) -> Inode | None:
        """The inode of what was found, if the kernel knows it."""
        top = found[0]
        kind = top.st.st_mode & 0o170000
        inode = self.table.get(self.number_of(top))
        if inode is not None and self._same(inode, top, kind):
            return inode
        alt = alternative(top.dir.layer.index, top.st.st_ino)
        inode = self.table.get(alt)
        return inode if inode is not None and self._same(inode, top, kind) else None

    @staticmethod
    def may_be_metacopy(top: Entry) -> bool:
        """Whether it is worth asking a regular file for the mark of overlayfs metacopy.

        Such a file has no blocks, or only that of its attributes, and overlayfs marks the
        directory of a copied-up file as impure.
        """
        st = top.st
        if st.st_size == 0:
            return False
        return st.st_blocks == 0 or top.dir.impure or st.st_blocks * 512 < st.st_size

    def _find_indexed(self, inode: Inode, st: os.stat_result) -> None:
        """A file of the upper that comes to be known again may be in the index."""
        inode.indexed = self.index.get((0, st.st_ino))
        if inode.indexed is not None:
            inode.indexed.ino = inode.ino

    def _find_metacopy(self, inode: Inode, parent: Inode, top: Entry) -> None:
        assert parent.dirs is not None
        inode.data = self.data_behind(parent.dirs, top)

    def data_behind(self, dirs: Sequence[LayerDir], top: Entry) -> tuple[LayerDir, bytes] | None:
        """Where the data of a file of the merged ``dirs`` is; None: in the file itself.

        Raises:
            OSError: EIO, an overlayfs metacopy file whose data no layer beneath has.
        """
        if top.dir.first_xattr(top.name, formats.METACOPY_NAMES) is None:
            return None
        name = top.name
        redirect = top.dir.first_xattr(name, tuple(formats.REDIRECT_NAMES))
        below = [d for d in dirs if d.layer.index > top.dir.layer.index]
        self._hops = 0
        answers: Iterable[Entry]
        if redirect is not None:
            answers = self._says_redirected(redirect, top.dir.layer.index, below)
        else:
            answers = self.says(below, name)
        for entry in answers:
            if entry.says != Says.FILE or not stat.S_ISREG(entry.st.st_mode):
                break
            if entry.dir.first_xattr(entry.name, formats.METACOPY_NAMES) is None:
                return entry.dir, entry.name
        raise OSError(errno.EIO, "metacopy file without data", os.fsdecode(top.name))

    def get(self, ino: int) -> Inode:
        """The inode with a number that the kernel holds.

        Raises:
            OSError: ESTALE, which a correct kernel never causes.
        """
        inode = self.table.get(ino)
        if inode is None:
            inode = self._revive(ino)
            if inode is None:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return inode

    # -- indexed layers ---------------------------------------------------------------

    def _layer_with(self, ino: int) -> PreparedLayer | None:
        """The indexed layer that a number is of."""
        for layer in self._prepared:
            if ino >> 32 == layer.base >> 32:
                return layer
        return None

    def _revive(self, ino: int) -> Inode | None:
        """Bring an inode into the table that the kernel knows from a prepared reply."""
        layer = self._layer_with(ino)
        known = None if layer is None else layer.known(ino)
        if layer is None or known is None:
            return None
        parent = self.root if not known.parent else self.get(known.parent)
        inode = Inode(ino, ino, known.kind)
        if known.kind == stat.S_IFDIR:
            inode.dirs = [layer.directory(ino)]
        else:
            inode.low = layer.directory(known.parent)
        inode.nlookup = layer.take(ino)
        self.table[ino] = inode
        inode.add_link(parent, known.name)
        return inode

    def prepared(self, inode: Inode) -> PreparedDir | None:
        """A directory that an indexed layer alone makes up: it has the replies ready."""
        dirs = inode.dirs
        if dirs is None or len(dirs) != 1 or dirs[0].prepared is None:
            return None
        if self.index:
            return None  # what the index has of a file may have been changed
        return dirs[0].prepared if inode.parent is not None or inode is self.root else None

    def forget(self, ino: int, count: int) -> None:
        """The kernel gives up ``count`` references."""
        inode = self.table.get(ino)
        if ino == ROOT_INO:
            return
        if inode is None:
            layer = self._layer_with(ino)
            if layer is not None:
                layer.forget(ino, count)
            return
        inode.nlookup -= count
        if inode.nlookup <= 0 and not inode.children and not self._still_known(inode):
            self._drop(inode)

    def _still_known(self, inode: Inode) -> bool:
        """Whether the kernel has references that an indexed layer has counted; they count now."""
        layer = self._layer_with(inode.ino)
        if layer is not None:
            inode.nlookup += layer.take(inode.ino)
        return inode.nlookup > 0

    def _drop(self, inode: Inode) -> None:
        while True:
            if inode.busy or inode.users:
                return
            self.table.pop(inode.ino, None)
            self.listings.forget(inode)
            if inode.dirs is not None:
                for directory in inode.dirs:
                    self.fds.drop_dir(directory)
                if self.watcher is not None:
                    self.watcher.unwatch(inode.ino)
            self.fds.release(inode)
            if inode.orphan is not None and self.upper is not None:
                self.upper.drop_orphan(inode.orphan)
                inode.orphan = None
            parents = [parent for parent, _ in inode.links()]
            inode.parent, inode.more = None, None
            rest = None
            for parent in parents:
                parent.children -= 1
                if parent.children or parent.nlookup > 0 or parent.ino == ROOT_INO:
                    continue
                if not self._still_known(parent):
                    if rest is not None:
                        self._drop(rest)
                    rest = parent
            if rest is None:
                return
            inode = rest

    def shrink(self) -> None:
        """Give memory back when most inodes are gone: a dict never shrinks."""
        count = len(self.table)
        if count > self._most:
            self._most = count
        elif self._most > 4096 and count * 8 < self._most:
            self.table = dict(self.table)
            self._most = count
            calls.trim_heap()

    # -- attributes ----------------------------------------------------------------

    def stat(self, inode: Inode) -> os.stat_result:
        """Attributes on disk of an inode, wherever it is now."""
        if inode.dirs is not None:
            if inode.parent is None and inode is not self.root:
                return self._stat_detached(inode)
            return inode.dirs[0].stat_self()
        if inode.parent is None and inode.indexed is None:
            return self._stat_detached(inode)
        if inode.upper:
            directory, name = self.place(inode)
            if inode.fd >= 0 and inode.data is None and directory.layer.override is None:
                return os.fstat(inode.fd)
            return directory.stat(name)
        assert inode.low is not None
        return inode.low.stat_shown(inode.name)

    def _stat_detached(self, inode: Inode) -> os.stat_result:
        if inode.low is not None:
            # The lower's file keeps its names; the union shows none of them.
            return edit_stat(inode.low.stat_shown(inode.name), st_nlink=0)
        if inode.orphan is not None and self.upper is not None:
            st = os.stat(inode.orphan, dir_fd=self.upper.orphan_fd, follow_symlinks=False)
            st = edit_stat(st, st_nlink=max(0, st.st_nlink - 1))
            path = b"/proc/self/fd/%d/%s" % (self.upper.orphan_fd, inode.orphan)
        elif inode.fd >= 0:
            st = os.fstat(inode.fd)
            path = b"/proc/self/fd/%d" % inode.fd
        elif inode.dirs is not None and not inode.upper:
            return inode.dirs[0].stat_self()
        else:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        layer = self.layers[0]
        if inode.upper and layer is not None and layer.override is not None:
            try:
                value = os.getxattr(path, layer.override, follow_symlinks=inode.orphan is None)
            except OSError:
                return st
            return override_stat(st, value)
        return st

    def attr(self, inode: Inode, st: os.stat_result) -> Attr:
        """What the union shows for an inode with ``st`` on disk."""
        mode, _, _, nlink, uid, gid, size, _, _, _ = st
        atime, atimensec = divmod(st.st_atime_ns, _SECOND)
        mtime, mtimensec = divmod(st.st_mtime_ns, _SECOND)
        ctime, ctimensec = divmod(st.st_ctime_ns, _SECOND)
        rdev = 0
        if inode.dirs is not None:
            if inode.parent is None and inode.ino != ROOT_INO:
                nlink = 0
            elif len(inode.dirs) > 1 and not self.options.static_nlink:
                listing = self.listings.of(inode)
                nlink = 1 if listing is None else 2 + listing.subdirs
        else:
            if st.st_rdev:
                rdev = encode_rdev(st.st_rdev)
            if inode.orphan is not None and inode.parent is not None:
                nlink -= 1  # another name has turned up; the one in orphans/ is none of the union's
            if inode.indexed is not None:
                nlink += len(inode.indexed.names) - 1  # that in the index is none either
        if self._maps_owners:
            uid, gid = self._shown_owner(uid, gid)
        return _attr(
            Attr,
            (
                inode.ino,
                size,
                st.st_blocks,
                atime,
                mtime,
                ctime,
                atimensec,
                mtimensec,
                ctimensec,
                mode,
                nlink,
                uid,
                gid,
                rdev,
                st.st_blksize,
                0,
            ),
        )

    def _shown_owner(self, uid: int, gid: int) -> tuple[int, int]:
        options = self.options
        if options.uid_map.ranges:
            uid = options.uid_map.to_view(uid)
        if options.gid_map.ranges:
            gid = options.gid_map.to_view(gid)
        return (
            uid if options.squash_uid is None else options.squash_uid,
            gid if options.squash_gid is None else options.squash_gid,
        )

    def renamed_dirs(self) -> bool:
        """Whether directories may stand elsewhere than in the lowers (redirects)."""
        return self.seen_redirect or (self.upper is not None and self.upper.may_have_redirects)

    # -- data ------------------------------------------------------------------------

    def open_lower_data(self, inode: Inode) -> int:
        """A descriptor, of the caller's, for reading the data of a file not (wholly) in the upper.

        Raises:
            OSError: ESTALE if another file has taken its place below.
        """
        where = inode.data
        if where is None:
            assert inode.low is not None
            where = (inode.low, inode.name)
        directory, name = where
        if directory.layer.masks and directory.is_masked(name):
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # shown as an empty file
        return directory.open_data(name, inode.real if inode.data is None else None)
