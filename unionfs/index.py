"""Copies of files with several names, and which of those names the upper does not hold yet.

WORK/pyunion/index/ID/ is one file: ``file`` is a name of it, and every other
entry stands for a name that the upper is still to get. The folder appears
whole, by one rename. Giving a name is a link, then its entry goes; with the
last entry the folder goes.

By default all names are given at once, and the index is a journal: what a
crash interrupts, the next mount completes. With ``index=on`` only that name is
given by which the change came, as in overlayfs; the union shows the file of
the upper under the others too, and gives them when they are changed.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import steps
from unionfs.errors import suppress
from unionfs.layer import Entry, LayerDir
from unionfs.numbers import identity_of
from unionfs.resolve import Says
from unionfs.sys import calls
from unionfs.trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from unionfs.inode import Inode
    from unionfs.union import Union
    from unionfs.upper import Upper

FILE = b"file"
#: What a symlink holds (symlink(7): PATH_MAX); longer paths are kept in a file.
_SYMLINK_MAX = 4095

Name = tuple["Inode", bytes]


class Indexed:
    """A file of the upper some of whose names are not there yet.

    Attributes:
        keys: (layer, st_ino) of the lower file that it is a copy of, and of itself.
        folder: its folder's name in the index.
        names: the entry in that folder, by the path in the upper.
        ino: the inode's number in the union, once that is known.
    """

    __slots__ = ("folder", "ino", "keys", "names")

    def __init__(self, keys: tuple[tuple[int, int], ...], folder: bytes, ino: int) -> None:
        self.keys = keys
        self.folder = folder
        self.ino = ino
        self.names: dict[bytes, bytes] = {}

    @property
    def name(self) -> bytes:
        """How the file is reached in the index directory."""
        return self.folder + b"/" + FILE


def new_folder(upper: Upper) -> bytes:
    """A name that the index does not hold: what it keeps may be of a process with our number."""
    while True:
        folder = upper.temp_name()
        try:
            os.stat(folder, dir_fd=upper.index_fd, follow_symlinks=False)
        except FileNotFoundError:
            return folder


def publish(
    union: Union, inode: Inode, staged: steps.Step, folder: bytes, names: Sequence[Name]
) -> None:
    """Put a staged copy into the index and give it its names.

    ``staged`` makes ``FOLDER/file`` in stage/, where this makes the folder. All
    names are in directories that are in the upper; the first is to be changed.

    Raises:
        OSError: none of it has happened.
    """
    upper = union.need_upper()
    assert inode.low is not None
    for parent, _ in names:
        upper.mark_impure(union.updir(parent))
    known = Indexed((), folder, inode.ino)
    try:
        upper.run(steps.Mkdir(upper.stage_fd, folder, 0o700))
        for number, (parent, name) in enumerate(names):
            path = _path(union.updir(parent), name)
            known.names[path] = b"%d" % number
            _write_entry(upper, folder + b"/%d" % number, path)
        upper.run(staged)
        upper.run(steps.Rename(upper.stage_fd, folder, upper.index_fd, folder))
    except BaseException:
        upper.discard(folder)
        raise
    real = upper.index_dir.stat(known.name).st_ino
    known.keys = ((inode.low.layer.index, inode.real), (0, real))
    _register(union, known)
    inode.indexed = known
    given = names[:1] if union.options.index else names
    try:
        for parent, name in given:
            _give(union, known, parent, name)
        # All names first: until here a crash, also in the undoing below, gives all of them.
        if len(given) < len(names):
            for parent, name in given:
                _strike(union, known, _path(union.updir(parent), name))
        else:
            _discard(upper, folder)
            _forget(union, known)
    except BaseException:
        for parent, name in given:
            union.listings.forget(parent)
            with suppress(OSError):
                fd = union.updir(parent).dirfd()
                if os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino == real:
                    os.unlink(name, dir_fd=fd)
        _forget(union, known)
        with suppress(FileNotFoundError):
            _discard(upper, folder)
        upper.discard(folder)
        raise


def _path(parent: LayerDir, name: bytes) -> bytes:
    return (parent.path() + b"/" + name).lstrip(b"/")


def _write_entry(upper: Upper, entry: bytes, path: bytes) -> None:
    """A symlink is whole or not there, without an fsync."""
    if len(path) <= _SYMLINK_MAX:
        try:
            os.symlink(path, entry, dir_fd=upper.stage_fd)
            return
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # xfs: 1023 bytes, ext4: one block
                raise
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    fd = os.open(entry, flags, 0o600, dir_fd=upper.stage_fd)
    try:
        if os.write(fd, path) != len(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _register(union: Union, known: Indexed) -> None:
    for key in known.keys:
        union.index[key] = known


def _forget(union: Union, known: Indexed) -> None:
    for key in known.keys:
        union.index.pop(key, None)
    inode = union.table.get(known.ino)
    if inode is not None and inode.indexed is known:
        inode.indexed = None


def _discard(upper: Upper, folder: bytes) -> None:
    """Out of the index by one step; what is left over then, a mount sweeps."""
    upper.run(steps.Rename(upper.index_fd, folder, upper.stage_fd, folder))
    with suppress(OSError):
        upper.discard(folder)


def shown(union: Union, found: list[Entry]) -> list[Entry]:
    """What a name really is, where the layers show a file that the index has a copy of."""
    top = found[0]
    if top.sub is None and top.st.st_nlink > 1 and not top.dir.layer.is_upper:
        known = union.index.get((top.dir.layer.index, top.st.st_ino))
        if known is not None:
            assert union.upper is not None
            where = union.upper.index_dir
            return [Entry(Says.FILE, where, known.name, where.stat(known.name), None)]
    return found


def settle(union: Union, found: list[Entry], parent: Inode, name: bytes) -> bool:
    """Put a name that is to be changed into the upper, if it is only in the index; whether it was.

    Raises:
        OSError: ENOSPC … from the upper.
    """
    top = found[0]
    if not union.index or union.upper is None or top.dir is not union.upper.index_dir:
        return False
    from unionfs.copyup import ensure_dir

    directory = ensure_dir(union, parent)
    known = union.index[0, top.st.st_ino]
    _give(union, known, parent, name)
    _strike(union, known, _path(directory, name))
    return True


def before_move(union: Union, inode: Inode) -> None:
    """A directory is to be moved: what it holds that is only in the index gets its names now.

    Raises:
        OSError: from the upper.
    """
    if inode.dirs is None or not union.index:
        return
    prefix = union.updir(inode).path() + b"/"
    if any(path.startswith(prefix) for known in union.index.values() for path in known.names):
        complete(union)


def _give(union: Union, known: Indexed, parent: Inode, name: bytes) -> None:
    """Put a name into the upper directory of ``parent``, which is there.

    Raises:
        OSError: nothing that can be seen has changed.
    """
    from unionfs.copyup import kept_times

    upper = union.need_upper()
    directory = union.updir(parent)
    kind = stat.S_IFMT(upper.index_dir.stat(known.name).st_mode)
    with kept_times(directory), suppress(FileExistsError):
        upper.run(steps.Link(upper.index_fd, known.name, directory.dirfd(), name))
    union.listings.note_name(parent, name, kind)


def _strike(union: Union, known: Indexed, path: bytes) -> None:
    """A name is given: its entry goes, or after a crash the name could come back once deleted."""
    upper = union.need_upper()
    entry = known.names.get(path)
    if entry is not None:
        if len(known.names) == 1:
            _discard(upper, known.folder)
            _forget(union, known)
        else:
            upper.run(steps.Unlink(upper.index_fd, known.folder + b"/" + entry))
        del known.names[path]


def complete(union: Union) -> None:
    """Give every file in the index all its names.

    Raises:
        OSError: from the upper; what is not done stays as it was.
    """
    if not union.index:
        return
    upper = union.need_upper()
    try:
        for known in dict.fromkeys(union.index.values()):
            for path in list(known.names):
                _link(upper, known.folder, path)
                _strike(union, known, path)
    finally:
        # What they say of the names' layer is not so any more.
        for inode in union.table.values():
            union.listings.forget(inode)


# -- at mount ----------------------------------------------------------------------


def read_folder(path: bytes) -> tuple[dict[bytes, bytes], bool]:
    """Of a folder in the index: its entries by the names they stand for; whether all is well."""
    names: dict[bytes, bytes] = {}
    well = False
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name == FILE:
                    well = True
                    continue
                if entry.is_symlink():
                    name = os.readlink(entry.path)
                else:
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    with os.fdopen(os.open(entry.path, flags), "rb") as file:
                        name = file.read()
                names[name] = entry.name
    except OSError:
        return {}, False
    good = {name: e for name, e in names.items() if not {b"", b".", b".."} & set(name.split(b"/"))}
    return good, well and bool(good) and len(good) == len(names)


def _link(upper: Upper, folder: bytes, path: bytes) -> None:
    """linkat(2) to a path of any length in the upper, through no symlink.

    What stands at the path, or instead of a directory of it, is newer: it stays.
    """
    above, _, name = path.rpartition(b"/")
    source = folder + b"/" + FILE
    with suppress(FileExistsError, FileNotFoundError, NotADirectoryError):
        fd = calls.open_deep(upper.upper_fd, above)
        try:
            st = os.fstat(fd)
            os.link(source, name, src_dir_fd=upper.index_fd, dst_dir_fd=fd, follow_symlinks=False)
            calls.utimensat(fd, b"", *steps.times_of(st), empty=True)
        finally:
            os.close(fd)


def _has(upper: Upper, path: bytes) -> bool:
    """Whether the upper has the path, even as a whiteout."""
    above, _, name = path.rpartition(b"/")
    try:
        fd = calls.open_deep(upper.upper_fd, above)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    finally:
        os.close(fd)
    return True


def recover(union: Union, *, keep: bool) -> None:
    """Read the index at mount; all names are given unless it is to be kept (``index=on``).

    A read-only union keeps it, and writes nothing.

    Raises:
        OSError: from the upper; the rest stays in the index.
    """
    upper = union.upper
    assert upper is not None
    read_only = union.options.read_only
    for text in sorted(os.listdir(upper.index_fd)):
        folder = os.fsencode(text)
        names, well = read_folder(b"/proc/self/fd/%d/%s" % (upper.index_fd, folder))
        given = [path for path in names if _has(upper, path)]  # a crash came before the striking
        keys: set[tuple[int, int] | None] = set()
        if well and (keep or read_only):
            promised = [path for path in names if path not in given]
            keys = {_lower_key(union, upper, folder, path) for path in promised}
        key = keys.pop() if len(keys) == 1 else None
        if key is not None:
            real = upper.index_dir.stat(folder + b"/" + FILE).st_ino
            known = Indexed((key, (0, real)), folder, 0)
            known.names = names
            _register(union, known)
            for path in given:
                known.names.pop(path) if read_only else _strike(union, known, path)
            continue
        if read_only:
            continue
        for path in names:
            _link(upper, folder, path)
        remove_tree(upper.index_fd, folder)


def _lower_key(union: Union, upper: Upper, folder: bytes, path: bytes) -> tuple[int, int] | None:
    """(layer, st_ino) of the lower file that the index's file is a copy of, by one of its names.

    None where the lowers have something else there by now.
    """
    dirs: Sequence[LayerDir] = union.root.dirs or ()
    found: list[Entry] = []
    for part in path.split(b"/"):
        found = union.resolve_in(dirs, part)
        dirs = [entry.sub for entry in found if entry.sub is not None]
    if not found or found[0].sub is not None or found[0].dir.layer.is_upper:
        return None
    top = found[0]
    if top.st.st_nlink < 2:
        return None  # the other names would not be looked up in the index
    name = folder + b"/" + FILE
    origin = upper.origin_of(upper.index_dir, name, upper.index_dir.stat(name))
    if origin is not None and origin != identity_of(top.dir.layer, top.st):
        return None
    return top.dir.layer.index, top.st.st_ino
