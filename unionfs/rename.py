"""rename(2), of everything, within the union never EXDEV.

A file is copied up, then renamed. A directory with lower contents is first
made *pure* (all of it copied up in place, which changes nothing that can be
seen, then marked opaque) or, with ``redirect_dir=on``, given a redirect. What
follows is one renameat2 that also leaves the whiteout.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import formats, index, steps
from unionfs.copyup import copy_up, ensure_dir, kept_times
from unionfs.create import check_name, has_whiteout
from unionfs.errors import suppress
from unionfs.inode import Inode
from unionfs.layer import LayerDir
from unionfs.remove import (
    check_empty,
    clear_whiteouts,
    detach_dir,
    keep_reachable,
    settle,
)
from unionfs.sys import calls
from unionfs.union import Union


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def rename(
    union: Union, old_parent: Inode, old: bytes, parent: Inode, name: bytes, flags: int
) -> None:
    """renameat2(2) with 0, RENAME_NOREPLACE or RENAME_EXCHANGE.

    Raises:
        OSError: EINVAL for other flags, and what rename(2) lists.
    """
    if flags & ~(calls.RENAME_NOREPLACE | calls.RENAME_EXCHANGE):
        raise _error(errno.EINVAL)
    union.need_upper()
    check_name(name)
    if flags & calls.RENAME_EXCHANGE:
        _exchange(union, old_parent, old, parent, name)
    else:
        _move(union, old_parent, old, parent, name, bool(flags & calls.RENAME_NOREPLACE))


def _source(union: Union, parent: Inode, name: bytes) -> Inode:
    """The inode of a name, made ready to be moved (in the upper, tied to nothing beneath)."""
    while True:
        found, _ = settle(union, parent, name)
        inode = union.inode_for(parent, name, found)
        if _movable(union, inode):
            return inode
        if inode.is_dir:
            _make_movable(union, inode)
        else:
            copy_up(union, inode)
        # The monitor may have been given up: look again.


def _movable(union: Union, inode: Inode) -> bool:
    if not inode.upper:
        return False
    if inode.dirs is None:
        return inode.data is None  # metacopy data is found by the name
    if len(inode.dirs) == 1:
        return True
    return union.options.redirect_dir == "on" and inode.dirs[0].redirect is not None


def _make_movable(union: Union, inode: Inode) -> None:
    assert inode.dirs is not None
    upper = union.need_upper()
    if union.options.redirect_dir == "on" and upper.prefix is not None:
        directory = ensure_dir(union, inode)
        if len(inode.dirs) == 1:
            return
        redirect = _path_below(inode)
        if len(redirect) <= formats.REDIRECT_MAX:
            upper.expect_redirects()
            upper.run(
                steps.SetXattr(directory.proc_path(b""), upper.prefix + formats.REDIRECT, redirect)
            )
            directory.redirect = redirect
            union.seen_redirect = True
            return
    make_pure(union, inode)


def _path_below(inode: Inode) -> bytes:
    """Where a union of the lowers alone would show what is merged beneath a directory.

    Not the path in any one layer: a lower may itself have moved a directory above.
    """
    parts: list[bytes] = []
    current = inode
    while current.parent is not None:
        redirect = current.dirs[0].redirect if current.upper and current.dirs else None
        parts.append(current.name if redirect is None else redirect.strip(b"/"))
        if redirect is not None and redirect.startswith(b"/"):
            break
        current = current.parent
    return b"/" + b"/".join(reversed(parts))


def _untied_beside_wh(union: Union, inode: Inode, directory: LayerDir, name: bytes) -> bool:
    """Whether a redirected directory had to be made pure after all, for its place.

    Beside a ``.wh.`` file a directory is opaque, so its redirect would not be followed.
    """
    if inode.dirs is None or len(inode.dirs) == 1 or not directory.has_wh(name):
        return False
    make_pure(union, inode)
    return True


def make_pure(union: Union, top: Inode) -> None:
    """Copy up everything in a merged directory, then cut it off from the lowers.

    Each step leaves the union showing the same; if one fails, the rest is simply
    still in the lowers.
    """
    order = [top]
    top.children += 1  # stays in the table while we hold it
    try:
        for inode in order:
            ensure_dir(union, inode)
            for name in list(union.listings.read(inode).names):
                found = union.find(inode, name)
                if not found:
                    continue
                top_entry = found[0]
                if index.settle(union, found, inode, name):
                    continue
                if (
                    top_entry.sub is None
                    and top_entry.dir.layer.is_upper
                    and not union.may_be_metacopy(top_entry)
                ):
                    continue
                child = union.inode_for(inode, name, found)
                if not child.is_dir:
                    copy_up(union, child, by=(inode, name))
                elif child.dirs is not None and (len(child.dirs) > 1 or not child.upper):
                    child.children += 1
                    order.append(child)
                union.forget(child.ino, 0)
        for inode in reversed(order):
            if inode.parent is not None and inode.dirs is not None and len(inode.dirs) > 1:
                _cut_off(union, inode)
    finally:
        for inode in reversed(order):
            inode.children -= 1
            union.forget(inode.ino, 0)


def _cut_off(union: Union, inode: Inode) -> None:
    for name, (layer, kind) in union.listings.read(inode).names.items():
        if kind == stat.S_IFDIR:
            found = union.find(inode, name)
            if len(found) > 1 or (found and not found[0].dir.layer.is_upper):
                return  # appeared while the monitor was given up: the caller looks again
        elif layer != 0:
            return
    _mark_opaque(union, inode)
    with kept_times(union.updir(inode)):
        clear_whiteouts(union, inode)


def _forget_lowers(union: Union, inode: Inode) -> None:
    """The directory has been marked opaque."""
    for directory in union.lowers_of(inode):
        union.fds.drop_dir(directory)
    inode.dirs = [union.updir(inode)]


def _mark_opaque(union: Union, inode: Inode) -> None:
    directory = union.updir(inode)
    if directory.opaque:
        return
    upper = union.need_upper()
    parent = directory.parent
    assert parent is not None
    with kept_times(directory):
        path = directory.proc_path(b"")
        if directory.xwhiteouts:
            # The mark that allows whiteouts in xattr form is the one to be overwritten: another
            # family's says opaque until they are gone, or they would turn into empty files.
            upper.run(steps.SetXattr(path, formats.FUSE_OPAQUE, b"y"))
            directory.opaque = True
            _forget_lowers(union, inode)
            clear_whiteouts(union, inode)
        upper.mark_opaque(directory.proc_path(b""), parent.dirfd(), directory.name)
        if directory.xwhiteouts:
            upper.run(steps.RemoveXattr(directory.proc_path(b""), formats.FUSE_OPAQUE))
    directory.opaque = True
    directory.xwhiteouts = False
    _forget_lowers(union, inode)


def _hide_below(union: Union, inode: Inode, hides: bool) -> None:
    """A directory that comes to stand over lower contents must not merge with them."""
    if hides and inode.dirs is not None and inode.dirs[0].redirect is None:
        _mark_opaque(union, inode)


def _carry_impure(union: Union, source: LayerDir, name: bytes, target: LayerDir) -> None:
    upper = union.need_upper()
    if source.impure and not target.impure and source is not target:
        if source.first_xattr(name, formats.ORIGIN_NAMES) is not None:
            upper.mark_impure(target)


def _attach(inode: Inode, directory: LayerDir, name: bytes) -> None:
    """A moved directory's place in the upper."""
    if inode.dirs is not None:
        inode.dirs[0].parent = directory
        inode.dirs[0].name = name


def _move(
    union: Union, old_parent: Inode, old: bytes, parent: Inode, name: bytes, noreplace: bool
) -> None:
    upper = union.need_upper()
    while True:
        inode = _source(union, old_parent, old)
        turns = union.monitor.turns
        if union.find(parent, name):
            if noreplace:
                raise _error(errno.EEXIST)
            found, victim = settle(union, parent, name)
            target = victim or union.inode_for(parent, name, found)
            if target is inode:
                return
            _check_types(union, inode, target)
        else:
            found, target = [], None
        source = ensure_dir(union, old_parent)
        directory = ensure_dir(union, parent)
        if _untied_beside_wh(union, inode, directory, name):
            continue
        if turns == union.monitor.turns or inode is _source(union, old_parent, old):
            break
    index.before_move(union, inode)
    old_hides = bool(union.below(old_parent, old))
    new_hides = bool(union.below(parent, name))
    _hide_below(union, inode, new_hides)
    _carry_impure(union, source, old, directory)
    whiteout = not found and has_whiteout(union, parent, directory, name)
    orphan = None
    if target is not None and target.upper:
        orphan = _vacate(union, target, directory, name, new_hides)
    over_whiteout = whiteout and inode.is_dir
    over_marked = upper.prefix is None and target is not None and _is_marked(target)
    vacant = not found and not whiteout
    _rename_on_disk(
        union, source, old, directory, name, old_hides, over_whiteout, over_marked, vacant
    )
    record = target.real if target is not None and target.upper else None
    if record is not None and (found[0].sub is not None or found[0].st.st_nlink <= 1):
        upper.forget_record(record)
    if target is not None:
        if target.is_dir:
            detach_dir(union, parent, name, target)
        else:
            target.drop_link(parent, name)
        target.orphan = orphan or target.orphan
        union.forget(target.ino, 0)
    if directory.whs and name in directory.whs and not new_hides:
        upper.remove_whiteout(directory, name) if inode.is_dir else None
    inode.drop_link(old_parent, old)
    inode.add_link(parent, name)
    _attach(inode, directory, name)
    union.listings.note_gone(old_parent, old, whiteout=old_hides)
    union.listings.note_name(parent, name, inode.kind)
    union.forget(inode.ino, 0)


def _check_types(union: Union, inode: Inode, target: Inode) -> None:
    if inode.is_dir:
        if not target.is_dir:
            raise _error(errno.ENOTDIR)
        check_empty(union, target)
    elif target.is_dir:
        raise _error(errno.EISDIR)


def _vacate(
    union: Union, target: Inode, directory: LayerDir, name: bytes, hides: bool
) -> bytes | None:
    """Make ready the upper file or (visibly empty) directory that a rename will replace."""
    upper = union.need_upper()
    orphan = None
    if target.nlookup and len(target.links()) <= 1:
        # A directory is replaced by the rename itself: it cannot be moved away before.
        movable = not target.is_dir
        orphan = keep_reachable(union, target, directory, name, movable=movable)
    if target.is_dir:
        assert target.dirs is not None
        if len(os.listdir(target.dirs[0].proc_path(b""))):
            # Opaque first: with its whiteouts gone, nothing from beneath may show.
            if hides or len(target.dirs) > 1:
                _mark_opaque(union, target)
            clear_whiteouts(union, target)
            if target.dirs[0].opaque:
                _remove_opaque_file(union, target)
    if orphan is not None:
        upper.run(steps.Link(directory.dirfd(), name, upper.orphan_fd, orphan))
        return orphan
    return None


def _remove_opaque_file(union: Union, target: Inode) -> None:
    """Let a directory marked by ``.wh..wh..opq`` be replaced: rename(2) wants it empty.

    Where there are no xattrs to mark it with instead, the file stays, and
    ``_rename_on_disk`` exchanges.
    """
    upper = union.need_upper()
    if upper.prefix is None:
        return
    directory = union.updir(target)
    upper.run(steps.SetXattr(directory.proc_path(b""), upper.prefix + formats.OPAQUE, b"y"))
    with suppress(FileNotFoundError):
        upper.run(steps.Unlink(directory.dirfd(), formats.WH_OPAQUE))


def _is_marked(target: Inode) -> bool:
    return target.upper and target.dirs is not None and target.dirs[0].opaque


def _rename_on_disk(
    union: Union,
    source: LayerDir,
    old: bytes,
    directory: LayerDir,
    name: bytes,
    old_hides: bool,
    over_whiteout: bool,
    over_marked: bool,
    vacant: bool,
) -> None:
    upper = union.need_upper()
    from_fd, to_fd = source.dirfd(), directory.dirfd()
    if over_marked:
        # Without its .wh..wh..opq the directory to be replaced would show the lowers.
        upper.run(steps.Rename(from_fd, old, to_fd, name, calls.RENAME_EXCHANGE))
        if old_hides:
            upper.whiteout(source, old, replace=True)
        else:
            temp = upper.temp_name()
            upper.run(steps.Rename(from_fd, old, upper.stage_fd, temp))
            upper.discard(temp)
    elif over_whiteout:
        # The whiteout, which may be another union's, moves to the source's place.
        xattr = upper.whiteout_style == "xattr" or (directory.xwhiteouts and upper.prefix)
        if xattr and not source.opaque:
            upper.allow_xattr_whiteouts(source)
        upper.run(steps.Rename(from_fd, old, to_fd, name, calls.RENAME_EXCHANGE))
        if not old_hides:
            upper.run(steps.Unlink(from_fd, old))
    elif not old_hides:
        upper.run(steps.Rename(from_fd, old, to_fd, name))
    elif upper.rename_whiteout:
        upper.run(steps.Rename(from_fd, old, to_fd, name, calls.RENAME_WHITEOUT))
    elif upper.whiteout_style == "xattr" and vacant and not directory.opaque:
        # A whiteout where nothing is to be seen changes nothing; the exchange does it all at once.
        upper.allow_xattr_whiteouts(source)
        upper.whiteout(directory, name, replace=False)
        upper.run(steps.Rename(from_fd, old, to_fd, name, calls.RENAME_EXCHANGE))
    elif upper.whiteout_style == "dotwh" and upper.prefix is None:
        # What is there wins over a .wh. file beside it, so that this changes nothing yet.
        upper.whiteout(source, old, replace=False)
        upper.run(steps.Rename(from_fd, old, to_fd, name))
    else:
        staged = None
        if upper.whiteout_style != "dotwh":
            if upper.whiteout_style == "xattr":
                upper.allow_xattr_whiteouts(source)
            staged = upper.stage_whiteout()
        # rename before whiteout: a crash between leaves an old file visible, never a lost one.
        try:
            upper.run(steps.Rename(from_fd, old, to_fd, name))
        except OSError:
            if staged is not None:
                upper.discard(staged)
            raise
        if staged is None:
            upper.whiteout(source, old, replace=False)
        else:
            try:
                upper.run(steps.Rename(upper.stage_fd, staged, from_fd, old))
            except OSError:
                upper.discard(staged)
                raise


def _exchange(union: Union, old_parent: Inode, old: bytes, parent: Inode, name: bytes) -> None:
    upper = union.need_upper()
    check_name(old)
    while True:
        if not union.find(parent, name):
            raise _error(errno.ENOENT)
        one = _source(union, old_parent, old)
        turns = union.monitor.turns
        two = _source(union, parent, name)
        if one is two:
            return
        source = ensure_dir(union, old_parent)
        directory = ensure_dir(union, parent)
        if _untied_beside_wh(union, one, directory, name):
            continue
        if _untied_beside_wh(union, two, source, old):
            continue
        if turns == union.monitor.turns or one is _source(union, old_parent, old):
            break
    index.before_move(union, one)
    index.before_move(union, two)
    _hide_below(union, one, bool(union.below(parent, name)))
    _hide_below(union, two, bool(union.below(old_parent, old)))
    _carry_impure(union, source, old, directory)
    _carry_impure(union, directory, name, source)
    upper.run(steps.Rename(source.dirfd(), old, directory.dirfd(), name, calls.RENAME_EXCHANGE))
    one.drop_link(old_parent, old)
    two.drop_link(parent, name)
    one.add_link(parent, name)
    two.add_link(old_parent, old)
    _attach(one, directory, name)
    _attach(two, source, old)
    union.listings.note_name(parent, name, one.kind)
    union.listings.note_name(old_parent, old, two.kind)
    union.forget(one.ino, 0)
    union.forget(two.ino, 0)
