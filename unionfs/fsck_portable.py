"""Rewrite an upper so that kernel overlayfs and fuse-overlayfs show the tree that we show.

What they do not understand, or only with privileges, becomes what all do:

    redirect            a real directory: contents copied up, then marked opaque
    metacopy            a file with its data
    xattr whiteout      character device 0:0
    .wh.NAME            character device 0:0
    .wh..wh..opq        ``P opaque``=``y``
    opaque in one P     opaque in both (``trusted.`` where that may be written)

Each rewriting is staged in the work directory or a single step, and a crash
leaves the old or the new form, which show the same; running again goes on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from unionfs import formats, steps
from unionfs.copyup import copy_data, kept_times
from unionfs.findings import read_marks, values_of
from unionfs.fsck_repair import drop_dot_wh, is_xattr_whiteout, locate, remove_marks
from unionfs.inode import Inode
from unionfs.layer import LayerDir
from unionfs.rename import make_pure
from unionfs.union import Union
from unionfs.upper import Upper

_ATTEMPTS = 3
_REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP})


class Rewrite(NamedTuple):
    """One thing made portable, or (``failed``) that could not be; ``path`` within the upper."""

    path: bytes
    text: str
    failed: bool = False


def make_portable(union: Union) -> list[Rewrite]:
    """Rewrite the upper of a union that nobody has mounted; inside the monitor.

    Raises:
        OSError: a step failed; running again goes on from there.
    """
    upper = union.need_upper()
    done = []
    # Data before directories: a metacopy file's data is found through the merged directory,
    # which ends when its redirect does.
    done += _give_data(union, upper)
    done += _end_redirects(union, upper)
    done += _rewrite_marks(union, upper)
    return done


def _walk(union: Union) -> Iterator[tuple[bytes, LayerDir, list[bytes]]]:
    """Every directory of the upper, parents first: path, directory, names (all, raw)."""
    layer = union.layers[0]
    assert layer is not None
    pending = [(b"", layer.root)]
    while pending:
        path, directory = pending.pop()
        names = sorted(os.listdir(directory.proc_path(b"")))
        below = []
        for name in names:
            st = os.stat(name, dir_fd=directory.dirfd(), follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode) and not directory.is_masked(name):
                sub = LayerDir(layer, directory, name)
                sub.load_marks()
                below.append((path + b"/" + name if path else name, sub))
        yield path, directory, names
        pending.extend(reversed(below))
        union.fds.trim()


def _reach(union: Union, path: bytes) -> Inode:
    """The union's directory at a path; ``union.forget(ino, 0)`` it after use."""
    inode = union.root
    for part in path.split(b"/") if path else []:
        found = union.find(inode, part)
        if not found or found[0].sub is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), os.fsdecode(path))
        inode = union.inode_for(inode, part, found)
    return inode


# -- metacopy ----------------------------------------------------------------------


def _give_data(union: Union, upper: Upper) -> list[Rewrite]:
    files: dict[int, list[bytes]] = {}
    for path, directory, names in _walk(union):
        for name in names:
            st = os.stat(name, dir_fd=directory.dirfd(), follow_symlinks=False)
            if stat.S_ISREG(st.st_mode):
                if values_of(read_marks(directory.proc_path(name)), formats.METACOPY):
                    files.setdefault(st.st_ino, []).append(path + b"/" + name if path else name)
    done = []
    for paths in files.values():
        _materialise(union, upper, paths)
        done += [Rewrite(path, "metacopy file given its data") for path in paths]
    return done


def _materialise(union: Union, upper: Upper, paths: list[bytes]) -> None:
    """Put a complete file in the place of a metacopy file, under all its names."""
    parent_path, _, name = paths[0].rpartition(b"/")
    parent = _reach(union, parent_path)
    try:
        top = union.find(parent, name)[0]
        assert parent.dirs is not None
        where = union.data_behind(parent.dirs, top) if top.st.st_size else None
        temp = _stage_copy(upper, top.dir, top.name, where)
    finally:
        union.forget(parent.ino, 0)
    try:
        for path in paths:
            directory, name = locate(upper.layer, path)
            link = upper.temp_name()
            upper.run(steps.Link(upper.stage_fd, temp, upper.stage_fd, link))
            with kept_times(directory):
                upper.run(steps.Rename(upper.stage_fd, link, directory.dirfd(), name))
    finally:
        upper.discard(temp)


def _stage_copy(
    upper: Upper, directory: LayerDir, name: bytes, where: tuple[LayerDir, bytes] | None
) -> bytes:
    """A copy of an upper file with the data at ``where``, no metacopy; its name in stage/."""
    temp = upper.temp_name()
    fd = upper.create(upper.stage_fd, temp, 0o600)
    try:
        st = os.stat(name, dir_fd=directory.dirfd(), follow_symlinks=False)
        if where is not None:
            source = where[0].open_data(where[1], None)
            try:
                copy_data(source, fd, st.st_size)
            finally:
                os.close(source)
        os.fchown(fd, st.st_uid, st.st_gid)
        os.fchmod(fd, stat.S_IMODE(st.st_mode))
        _copy_raw_xattrs(directory.proc_path(name), fd)
        os.utime(fd, ns=(st.st_atime_ns, st.st_mtime_ns))
        # The old file cannot be asked any more once the new one has its name.
        os.fsync(fd)
    except BaseException:
        upper.discard(temp)
        raise
    finally:
        os.close(fd)
    return temp


def _copy_raw_xattrs(path: bytes, fd: int) -> None:
    """All attributes as they are on disk, but for the metacopy mark and its redirect."""
    for text in os.listxattr(path, follow_symlinks=False):
        name = os.fsencode(text)
        if name in formats.METACOPY_NAMES or name in formats.REDIRECT_NAMES:
            continue
        try:
            os.setxattr(fd, name, os.getxattr(path, name, follow_symlinks=False))
        except OSError as error:
            label = name.startswith(b"security.") and name != formats.CAPABILITY
            if not label or error.errno not in _REFUSED:
                raise


# -- redirects ---------------------------------------------------------------------


def _end_redirects(union: Union, upper: Upper) -> list[Rewrite]:
    paths = [path for path, directory, _ in _walk(union) if directory.redirect is not None]
    for path in paths:
        inode = _reach(union, path)
        try:
            _make_real(union, upper, inode)
        finally:
            union.forget(inode.ino, 0)
    return [Rewrite(path, "redirected directory given its contents") for path in paths]


def _make_real(union: Union, upper: Upper, inode: Inode) -> None:
    """Copy up all of a redirected directory, mark it opaque, and only then end the redirect."""
    assert inode.dirs is not None
    for _ in range(_ATTEMPTS):
        if len(inode.dirs) == 1:
            break
        make_pure(union, inode)
    else:
        if len(inode.dirs) > 1:
            raise OSError(errno.EBUSY, "the lower changed meanwhile", os.fsdecode(inode.name))
    directory = union.updir(inode)
    assert directory.parent is not None
    if not directory.opaque:
        path = directory.proc_path(b"")
        upper.mark_opaque(path, directory.parent.dirfd(), directory.name)
        directory.opaque = True
    remove_marks(upper, directory.proc_path(b""), formats.REDIRECT)
    directory.redirect = None


# -- whiteouts and opaque marks ------------------------------------------------------


def _rewrite_marks(union: Union, upper: Upper) -> list[Rewrite]:
    done: list[Rewrite] = []
    for path, directory, names in _walk(union):
        with kept_times(directory):
            done += _rewrite_whiteouts(upper, path, directory, names)
            done += _rewrite_opaque(upper, path, directory, formats.WH_OPAQUE in names)
    if upper.layer.override is not None:
        text = f"owners and modes are in {os.fsdecode(upper.layer.override)}: overlayfs ignores it"
        done.append(Rewrite(b"", text, failed=True))
    return done


def _rewrite_whiteouts(
    upper: Upper, path: bytes, directory: LayerDir, names: list[bytes]
) -> Iterator[Rewrite]:
    present = set(names)
    prefix = path + b"/" if path else b""
    can = upper.whiteout_style == "chardev"
    left = False
    for name in names:
        if name.startswith(formats.WH_PREFIX):
            if name == formats.WH_OPAQUE:
                continue
            real = name[len(formats.WH_PREFIX) :]
            if real in present:
                drop_dot_wh(upper, directory, name)
            elif can:
                # whiteout before unlink: a crash between leaves both, never a visible file.
                upper.whiteout(directory, real, replace=False)
                upper.run(steps.Unlink(directory.dirfd(), name))
            else:
                yield Rewrite(prefix + name, "devices cannot be made here", failed=True)
                continue
            yield Rewrite(prefix + name, ".wh. file made a device 0:0")
        elif directory.xwhiteouts and is_xattr_whiteout(directory, name):
            if not can:
                left = True
                yield Rewrite(prefix + name, "devices cannot be made here", failed=True)
                continue
            upper.whiteout(directory, name, replace=True)
            yield Rewrite(prefix + name, "xattr whiteout made a device 0:0")
    if directory.xwhiteouts and not left:
        where = directory.proc_path(b"")
        for attribute, value in values_of(read_marks(where), formats.OPAQUE).items():
            if value == b"x":
                upper.run(steps.RemoveXattr(where, attribute))


def _rewrite_opaque(
    upper: Upper, path: bytes, directory: LayerDir, by_file: bool
) -> Iterator[Rewrite]:
    where = directory.proc_path(b"")
    marks = read_marks(where)
    added = []
    if directory.opaque:
        for family in (formats.TRUSTED, formats.USER):
            name = family + formats.OPAQUE
            if marks.get(name) != b"y":
                with contextlib.suppress(PermissionError):
                    upper.run(steps.SetXattr(where, name, b"y"))
                    added.append(os.fsdecode(name))
    if by_file and (not path or upper.prefix is not None):
        # The root merges whatever lies in it; elsewhere the xattr now says the same.
        upper.run(steps.Unlink(directory.dirfd(), formats.WH_OPAQUE))
        added.append("without .wh..wh..opq")
    if added:
        yield Rewrite(path, "opaque mark: " + ", ".join(added))
