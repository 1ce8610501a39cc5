"""Views and trees against the layers they were made from."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from cowstore.errors import Damaged, StoreError
from cowstore.merge import Node
from cowstore.view import View
from cowstore.viewbuild import build
from unionfs import formats
from unionfs.layer import override_stat

if TYPE_CHECKING:
    from cowstore.store import Store


def view_problem(
    store: Store, path: str, chain: str, layers: list[str], *, full: bool
) -> str | None:
    """What is wrong with an index; None: nothing."""
    try:
        view = View(path)
    except (Damaged, OSError):
        return "not an index, or cut short"
    try:
        if not view.verify():
            return "its checksum is wrong"
    finally:
        view.close()
    if not full:
        return None
    try:
        expected = build(store.merged(layers), chain)
    except StoreError:
        return None  # the layer itself is told of
    with open(path, "rb") as file:
        same = all(file.read(len(part)) == part for part in expected) and not file.read(1)
    return None if same else "not what its layers make"


def tree_problem(
    store: Store, path: str, name: str, layers: list[str], bad: set[str]
) -> str | None:
    """The first difference between a tree and its layers; None: there is none.

    Files whose object is among the ``bad`` are compared in all but their content.
    """
    try:
        root = store.merged(layers)
    except StoreError:
        return None
    top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _Walk(store, name.rpartition(".")[2], bad).directory(top, root, b"")
    finally:
        os.close(top)


class _Walk:
    def __init__(self, store: Store, flavour: str, bad: set[str]) -> None:
        self._store = store
        self._override = flavour == "override"
        self._marks = {"data": formats.TRUSTED, "userdata": formats.USER}.get(flavour, b"")
        self._bad = bad
        self._groups: dict[int, int] = {}

    def directory(self, fd: int, node: Node, path: bytes) -> str | None:
        assert node.children is not None
        names = set(map(os.fsencode, os.listdir(fd)))
        for name in sorted(names ^ node.children.keys()):
            what = "is not there" if name in node.children else "is there and should not be"
            return f"/{os.fsdecode(path + name)} {what}"
        for name, child in node.children.items():
            problem = self._entry(fd, name, child, path + name)
            if problem is not None:
                return f"/{os.fsdecode(path + name)}: {problem}"
            if child.children is not None:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(name, flags, dir_fd=fd)
                try:
                    problem = self.directory(below, child, path + name + b"/")
                finally:
                    os.close(below)
                if problem is not None:
                    return problem
        return None

    def _entry(self, fd: int, name: bytes, node: Node, path: bytes) -> str | None:
        entry = node.entry
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if self._override and not stat.S_ISLNK(st.st_mode):
            where = b"/proc/self/fd/%d/%s" % (fd, name)
            try:
                value = os.getxattr(where, formats.OVERRIDE_STAT, follow_symlinks=False)
                st = override_stat(st, value)
            except OSError:
                if entry.kind in (stat.S_IFREG, stat.S_IFDIR):
                    return "has no owner kept"
        if stat.S_IFMT(st.st_mode) != entry.kind:
            return "of another type"
        owned = not self._override or entry.kind in (stat.S_IFREG, stat.S_IFDIR)
        if owned and (st.st_uid, st.st_gid) != (entry.uid, entry.gid):
            return "of another owner"
        if owned and entry.kind != stat.S_IFLNK and stat.S_IMODE(st.st_mode) != entry.mode:
            return "of another mode"
        if entry.kind == stat.S_IFLNK and os.readlink(name, dir_fd=fd) != entry.target:
            return "wrong link: another target"
        if node.children is None and self._groups.setdefault(st.st_ino, id(node)) != id(node):
            return "wrong link: a name of another file"
        if entry.kind == stat.S_IFREG:
            if st.st_size != entry.size:
                return "of another size"
            if entry.object in self._bad or not entry.object:
                return None
            if self._marks:
                if self._lead(fd, name) != f"/{entry.object[0]}/{entry.object[1:]}":
                    return "wrong link: to other data"
            elif not self._same(fd, name, node):
                return "of another content"
        return None

    def _lead(self, fd: int, name: bytes) -> str:
        where = b"/proc/self/fd/%d/%s" % (fd, name)
        try:
            os.getxattr(where, self._marks + formats.METACOPY, follow_symlinks=False)
            lead = os.getxattr(where, self._marks + formats.REDIRECT, follow_symlinks=False)
        except OSError:
            return ""
        return os.fsdecode(lead)

    def _same(self, fd: int, name: bytes, node: Node) -> bool:
        from cowstore.objects import same_content

        entry = node.entry
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        for holder in self._store.holders():
            try:
                there = os.open(holder.layout.object(entry.object), flags)
            except FileNotFoundError:
                continue
            here = os.open(name, flags, dir_fd=fd)
            try:
                return same_content(here, there, entry.size, entry.sparse)
            finally:
                os.close(here)
                os.close(there)
        return True  # that the object is missing is told elsewhere
