"""A Hypothesis state machine: random changes to a union, held against ``model.Model``.

After every step the names it concerned are compared, at the end the whole
tree. ``UnionMachine`` is told how to open its target: a ``Rig`` or a mount.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.helpers import Rig, Target, shown_xattrs
from tests.invariants import check_disk, check_same_places, check_tree
from tests.layers import (
    Dir,
    File,
    Item,
    Layers,
    Link,
    Special,
    Symlink,
    Tree,
    Whiteout,
    join,
    name_of,
    parent_of,
)
from tests.model import Model, Node
from unionfs.sys import calls

NAMES = (b"a", b"b", b"c", b"d", b"e\xff\xfe", b"x" * 255)
_FEW = NAMES[:4]
#: (whiteout style, xattr family): what differing filesystems and rights make of an upper.
UPPERS = (
    ("chardev", b"trusted.overlay."),
    ("chardev", b"user.overlay."),
    ("xattr", b"user.overlay."),
    ("dotwh", b"trusted.overlay."),
    ("dotwh", None),
)
_XATTRS = (b"user.one", b"user.two", b"trusted.overlay.opaque", b"user.overlay.redirect")

MODES = st.sampled_from((0o644, 0o600, 0o755, 0o400, 0o000, 0o777))
CONTENT = st.binary(max_size=40) | st.just(b"long " * 3000)
OFFSETS = st.sampled_from((0, 1, 5, 100, 4096, 70_000))


@st.composite
def trees(draw: st.DrawFn) -> dict[bytes, Item]:
    """A lower layer: any shape that an image may have, with whiteouts and opaque directories."""
    tree: dict[bytes, Item] = {}
    files: list[bytes] = []
    dirs = [b""]
    for _ in range(draw(st.integers(0, 10))):
        above = draw(st.sampled_from(dirs))
        path = join(above, draw(st.sampled_from(_FEW)))
        if path in tree or path.count(b"/") > 3:
            continue
        what = draw(st.sampled_from(("file", "dir", "dir", "opaque", "symlink", "link", "gone")))
        if what == "file":
            tree[path] = File(draw(CONTENT), draw(MODES), xattrs=draw(_lower_xattrs()))
            files.append(path)
        elif what == "dir":
            tree[path] = Dir(draw(st.sampled_from((0o755, 0o700, 0o1777))))
            dirs.append(path)
        elif what == "opaque":
            tree[path] = Dir(opaque=draw(st.sampled_from(("trusted", "user", "file"))))
            dirs.append(path)
        elif what == "symlink":
            tree[path] = Symlink(draw(st.sampled_from((b"a", b"../b", b"/nowhere"))))
            files.append(path)
        elif what == "link" and files:
            to = draw(st.sampled_from(files))
            tree[path] = Link(to)
        elif what == "gone":
            holder = tree.get(above)
            if isinstance(holder, Dir) and holder.opaque:
                continue
            tree[path] = Whiteout(draw(st.sampled_from(("chardev", "dotwh", "xattr"))))
        else:
            tree[path] = Special(stat.S_IFIFO)
            files.append(path)
    return tree


def _lower_xattrs() -> st.SearchStrategy[tuple[tuple[bytes, bytes], ...]]:
    return st.sampled_from(((), (), ((b"user.one", b"below"),)))


@dataclass(slots=True)
class Scan:
    """A listing that is being read in pieces."""

    node: Node
    ino: int
    cookie: int
    stable: dict[bytes, Node]
    seen: list[bytes] = field(default_factory=list)


MakeTarget = Callable[[Layers, dict[str, Any]], Target]
Where = Callable[[], Layers]


class UnionMachine(RuleBasedStateMachine):
    """Random operations on a union and on the oracle."""

    def __init__(
        self, place: Callable[..., Layers], make: MakeTarget, *, remounts: int = 1000
    ) -> None:
        super().__init__()
        self.place = place
        self.make = make
        self.target: Target
        self.model: Model
        self.layers: Layers
        self.handles: list[tuple[int, Node]] = []
        self.scans: list[Scan] = []
        self.hidden_links = False
        self.ready = False
        self.remounts = remounts
        self.owners_in_xattrs = False

    # -- set-up ------------------------------------------------------------------

    @initialize(data=st.data())
    def set_up(self, data: st.DataObject) -> None:
        lowers: list[Tree] = list(data.draw(st.lists(trees(), min_size=1, max_size=3), "lowers"))
        whiteouts, family = data.draw(st.sampled_from(UPPERS), "upper")
        options = {
            "whiteouts": whiteouts,
            "family": family,
            "redirect_dir": data.draw(st.sampled_from(("copy", "on")), "redirect_dir"),
            "index": data.draw(st.booleans(), "index"),
            "tmpfile": data.draw(st.booleans(), "tmpfile"),
            "can_override": data.draw(st.booleans(), "can_override"),
            "timeout": data.draw(st.sampled_from((None, 0.0)), "timeout"),
            "xattr_permissions": data.draw(st.sampled_from((0, 0, 2)), "xattr_permissions"),
        }
        self.owners_in_xattrs = bool(options["xattr_permissions"])
        self.model = Model(lowers)
        self.hidden_links = any(self.model.find(path).hidden for path in self.model.paths())
        self.layers = self.place(*lowers)
        self.target = self.make(self.layers, options)
        self.ready = True
        self.check_all()

    @property
    def rig(self) -> Rig:
        """The target, if it is one without a mount."""
        assert isinstance(self.target, Rig)
        return self.target

    def has_rig(self) -> bool:
        return self.ready and isinstance(self.target, Rig)

    def teardown(self) -> None:
        if not self.ready:
            return
        target = self.target
        try:
            if sys.exc_info()[0] is not None:
                self.release_all()  # a step has failed: what it left is no use
                return
            for handle, _ in self.handles:
                target.release(handle)
            for scan in self.scans:
                self.rig.release(scan.ino)
            self.check_all()
            target.remount()
            self.check_all()
            check_tree(target, hidden_links=self.hidden_links)
            if isinstance(target, Rig):
                target.close()
                check_disk(self.layers)
                check_same_places(self.layers)
        finally:
            if isinstance(target, Rig):
                target.abandon()
                self.layers.remove()

    def release_all(self) -> None:
        """Close what is open, whatever has gone wrong."""
        for handle, _ in self.handles:
            with contextlib.suppress(OSError):
                self.target.release(handle)

    # -- comparing ------------------------------------------------------------------

    def both(self, expected: Callable[[], object], done: Callable[[], object]) -> bool:
        """Do it to the oracle and to the union; True if it succeeded, in both."""
        want = got = None
        try:
            expected()
        except OSError as problem:
            want = problem.errno
        try:
            done()
        except OSError as problem:
            got = problem.errno
        assert got == want, f"{_name(got)} instead of {_name(want)}"
        return got is None

    def check_node(self, node: Node, stat_: Any, path: object) -> None:
        """Attributes of one file against the oracle."""
        assert stat_.kind == node.kind, path
        if node.kind != stat.S_IFLNK:
            assert stat.S_IMODE(stat_.mode) == node.mode, path
        assert (stat_.uid, stat_.gid, stat_.rdev) == (node.uid, node.gid, node.rdev), path
        if node is not self.model.root:
            allowed = self.model.nlinks(node)
            assert stat_.nlink in allowed, f"{path!r}: st_nlink {stat_.nlink} is none of {allowed}"
            if node.ino is None:
                node.ino = stat_.ino
            assert stat_.ino == node.ino, f"{path!r}: st_ino {stat_.ino}, was {node.ino}"
        if node.mtime_ns is None:
            node.mtime_ns = stat_.mtime_ns
        assert stat_.mtime_ns == node.mtime_ns, f"{path!r}: mtime {stat_.mtime_ns}"
        if node.kind == stat.S_IFREG:
            assert stat_.size == len(node.data), path

    def check_path(self, path: bytes, *, deep: bool = False) -> None:
        """One name, and the listing that it stands in."""
        try:
            node = self.model.find(path)
        except OSError as problem:
            try:
                self.target.lstat(path)
            except OSError as got:
                assert got.errno == problem.errno
                node = None
            else:
                raise AssertionError(f"{path!r} should not exist") from None
        if node is not None:
            self.check_node(node, self.target.lstat(path), path)
            self._check_contents(node, path)
            if node.is_dir:
                self.check_listing(path)
        if path and not deep:
            above = parent_of(path)
            self.check_node(self.model.find(above), self.target.lstat(above), above)
            self.check_listing(above)

    def _check_contents(self, node: Node, path: bytes) -> None:
        if node.kind == stat.S_IFREG:
            assert self.target.read(path) == node.data, path
        elif node.kind == stat.S_IFLNK:
            assert self.target.readlink(path) == node.target, path
        if node.kind in (stat.S_IFREG, stat.S_IFDIR):
            names = shown_xattrs(self.target, path)
            shown = {name: self.target.getxattr(path, name) for name in names}
            assert shown == node.xattrs, path

    def check_listing(self, path: bytes) -> None:
        """Names, types and inode numbers of one directory."""
        node = self.model.find(path)
        entries = self.target.listdir(path)
        shown = {entry.name: entry for entry in entries}
        assert len(entries) == len(shown), f"{path!r} shows a name twice"
        assert shown.keys() == node.children.keys(), path
        for name, child in node.children.items():
            assert shown[name].kind == child.kind, join(path, name)
            if child.ino is None:
                child.ino = shown[name].ino
            assert shown[name].ino == child.ino, f"{join(path, name)!r}: d_ino"

    def check_all(self) -> None:
        """The whole tree, and that no two files share an inode number."""
        owners: dict[int, Node] = {}
        for path in self.model.paths():
            self.check_path(path, deep=True)
            node = self.model.find(path)
            if path:
                assert node.ino is not None
                assert owners.setdefault(node.ino, node) is node, f"{path!r} shares its number"

    # -- choosing -----------------------------------------------------------------------

    def old_path(self, data: st.DataObject, *kinds: int) -> bytes | None:
        """A path that exists, of one of the types; never the root."""
        paths = [
            path
            for path in self.model.paths()
            if path and (not kinds or self.model.find(path).kind in kinds)
        ]
        return data.draw(st.sampled_from(paths), "path") if paths else None

    def directory(self, data: st.DataObject) -> bytes:
        """A directory, possibly the root."""
        paths = [path for path in self.model.paths() if self.model.find(path).is_dir]
        return data.draw(st.sampled_from(paths), "directory")

    def any_path(self, data: st.DataObject) -> bytes:
        """A name in a directory, which may or may not exist."""
        return join(self.directory(data), data.draw(st.sampled_from(NAMES), "name"))

    # -- names -----------------------------------------------------------------------------

    @rule(data=st.data(), mode=MODES)
    def create(self, data: st.DataObject, mode: int) -> None:
        path = self.any_path(data)
        mode &= ~0o022
        self.both(lambda: self.model.create(path, mode), lambda: self.target.create(path, mode))
        self.check_path(path)

    @rule(data=st.data())
    def mkdir(self, data: st.DataObject) -> None:
        path = self.any_path(data)
        self.both(lambda: self.model.mkdir(path, 0o755), lambda: self.target.mkdir(path, 0o755))
        self.check_path(path)

    @rule(data=st.data(), to=st.sampled_from((b"a", b"b/c", b"t" * 300)))
    def symlink(self, data: st.DataObject, to: bytes) -> None:
        path = self.any_path(data)
        self.both(lambda: self.model.symlink(to, path), lambda: self.target.symlink(to, path))
        self.check_path(path)

    @rule(data=st.data())
    def link(self, data: st.DataObject) -> None:
        old, new = self.old_path(data), self.any_path(data)
        if old is not None:
            self.both(lambda: self.model.link(old, new), lambda: self.target.link(old, new))
            self.check_path(old)
            self.check_path(new)

    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        path = self.old_path(data)
        if path is not None:
            self.both(lambda: self.model.unlink(path), lambda: self.target.unlink(path))
            self.check_path(path)

    @rule(data=st.data())
    def rmdir(self, data: st.DataObject) -> None:
        path = self.old_path(data, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFREG)
        if path is not None:
            self.both(lambda: self.model.rmdir(path), lambda: self.target.rmdir(path))
            self.check_path(path)

    @rule(data=st.data(), whole=st.booleans())
    def clear(self, data: st.DataObject, whole: bool) -> None:
        """rm -r of a directory's contents, and of the directory."""
        top = self.old_path(data, stat.S_IFDIR)
        if top is None:
            return
        beneath = [path for path in self.model.paths() if path.startswith(top + b"/")]
        for path in reversed(beneath):
            if self.model.find(path).is_dir:
                self.model.rmdir(path)
                self.target.rmdir(path)
            else:
                self.model.unlink(path)
                self.target.unlink(path)
        self.check_path(top)
        if whole:
            self.model.rmdir(top)
            self.target.rmdir(top)
            self.check_path(top)

    @rule(data=st.data())
    def rename(self, data: st.DataObject) -> None:
        self._rename(data, 0, self.any_path(data))

    @rule(data=st.data())
    def rename_over(self, data: st.DataObject) -> None:
        new = self.old_path(data)
        if new is not None:
            self._rename(data, 0, new)

    @rule(data=st.data())
    def rename_directory(self, data: st.DataObject) -> None:
        self._rename(data, 0, self.any_path(data), stat.S_IFDIR)

    @rule(data=st.data())
    def rename_noreplace(self, data: st.DataObject) -> None:
        self._rename(data, calls.RENAME_NOREPLACE, self.any_path(data))

    @rule(data=st.data())
    def exchange(self, data: st.DataObject) -> None:
        new = self.old_path(data)
        if new is not None:
            self._rename(data, calls.RENAME_EXCHANGE, new)

    def _rename(self, data: st.DataObject, flags: int, new: bytes, *kinds: int) -> None:
        old = self.old_path(data, *kinds)
        if old is None:
            return
        done = self.both(
            lambda: self.model.rename(old, new, flags),
            lambda: self.target.rename(old, new, flags),
        )
        self.check_path(old)
        self.check_path(new)
        if done:
            for path in self.model.paths():
                if path.startswith((old + b"/", new + b"/")):
                    self.check_path(path, deep=True)

    # -- contents and attributes ---

    @rule(data=st.data(), content=CONTENT, offset=OFFSETS)
    def write(self, data: st.DataObject, content: bytes, offset: int) -> None:
        path = self.old_path(data, stat.S_IFREG)
        if path is not None and content:
            self.model.write(self.model.find(path), offset, content)
            self.target.write(path, offset, content)
            self.check_path(path)

    @rule(data=st.data(), size=OFFSETS)
    def truncate(self, data: st.DataObject, size: int) -> None:
        path = self.old_path(data, stat.S_IFREG)
        if path is not None:
            self.model.truncate(self.model.find(path), size)
            self.target.truncate(path, size)
            self.check_path(path)

    @rule(data=st.data(), mode=MODES)
    def chmod(self, data: st.DataObject, mode: int) -> None:
        more = () if self.owners_in_xattrs else (stat.S_IFIFO,)
        path = self.old_path(data, stat.S_IFREG, stat.S_IFDIR, *more)
        if path is not None:
            self.model.find(path).mode = mode
            self.target.chmod(path, mode)
            self.check_path(path)

    @rule(data=st.data(), uid=st.integers(0, 3), gid=st.integers(0, 3))
    def chown(self, data: st.DataObject, uid: int, gid: int) -> None:
        # What cannot have user.* attributes cannot keep an owner in one.
        path = self.old_path(data, *(self.owners_in_xattrs * (stat.S_IFREG, stat.S_IFDIR)))
        if path is not None:
            node = self.model.find(path)
            node.uid, node.gid = uid, gid
            self.target.chown(path, uid, gid)
            self.check_path(path)

    @rule(data=st.data(), when=st.integers(0, 2_000_000_000_999_999_999))
    def utime(self, data: st.DataObject, when: int) -> None:
        path = self.old_path(data)
        if path is not None:
            self.model.find(path).mtime_ns = when
            self.target.utime(path, when)
            self.check_path(path)

    @rule(
        data=st.data(),
        name=st.sampled_from(_XATTRS),
        value=st.binary(max_size=20),
        flags=st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
    )
    def setxattr(self, data: st.DataObject, name: bytes, value: bytes, flags: int) -> None:
        path = self.old_path(data, stat.S_IFREG, stat.S_IFDIR)
        if path is not None:
            node = self.model.find(path)
            self.both(
                lambda: self.model.setxattr(node, name, value, flags),
                lambda: self.target.setxattr(path, name, value, flags),
            )
            self.check_path(path)

    @rule(data=st.data(), name=st.sampled_from(_XATTRS))
    def removexattr(self, data: st.DataObject, name: bytes) -> None:
        path = self.old_path(data, stat.S_IFREG, stat.S_IFDIR)
        if path is not None:
            node = self.model.find(path)
            self.both(
                lambda: self.model.removexattr(node, name),
                lambda: self.target.removexattr(path, name),
            )
            self.check_path(path)

    # -- open files ---

    @precondition(lambda self: len(self.handles) < 6)
    @rule(data=st.data())
    def open_file(self, data: st.DataObject) -> None:
        path = self.old_path(data, stat.S_IFREG)
        if path is not None:
            self.handles.append((self.target.open(path), self.model.find(path)))

    @precondition(lambda self: self.handles)
    @rule(data=st.data(), content=CONTENT, offset=OFFSETS)
    def write_open(self, data: st.DataObject, content: bytes, offset: int) -> None:
        handle, node = data.draw(st.sampled_from(self.handles), "handle")
        if content:
            self.model.write(node, offset, content)
            self.target.pwrite(handle, offset, content)
        self._check_handles()

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def unlink_open(self, data: st.DataObject) -> None:
        """Remove every name of an open file."""
        _, node = data.draw(st.sampled_from(self.handles), "handle")
        for path in self.model.paths():
            if self.model.find(path) is node:
                self.model.unlink(path)
                self.target.unlink(path)
                self.check_path(path)
        self._check_handles()

    @precondition(lambda self: self.has_rig() and self.handles)
    @rule(data=st.data(), mode=MODES, when=st.integers(0, 1 << 30))
    def change_open(self, data: st.DataObject, mode: int, when: int) -> None:
        """fchmod, futimens and ftruncate of an open file."""
        handle, node = data.draw(st.sampled_from(self.handles), "handle")
        node.mode = mode
        self.rig.set(handle, mode=mode)
        self.model.truncate(node, 7)
        self.rig.set(handle, size=7)
        node.mtime_ns = when * 1_000_000_000
        self.rig.set(handle, mtime=(when, 0))
        self._check_handles()

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(self.handles), "handle")
        self.handles.remove(pair)
        self.target.release(pair[0])

    def _check_handles(self) -> None:
        for handle, node in self.handles:
            self.check_node(node, self.target.fstat(handle), f"handle {handle}")
            assert self.target.pread(handle) == node.data, f"handle {handle}"

    # -- listings ---

    @precondition(lambda self: self.has_rig())
    @rule(data=st.data(), plus=st.booleans(), chunk=st.integers(1, 4))
    def list_in_chunks(self, data: st.DataObject, plus: bool, chunk: int) -> None:
        path = self.directory(data)
        names = [entry.name for entry in self.rig.listdir(path, plus=plus, chunk=chunk)]
        assert sorted(names) == sorted(self.model.find(path).children)

    @precondition(lambda self: self.has_rig() and len(self.scans) < 3)
    @rule(data=st.data())
    def start_listing(self, data: st.DataObject) -> None:
        path = self.directory(data)
        node = self.model.find(path)
        self.scans.append(Scan(node, self.rig.open(path), 0, dict(node.children)))

    @precondition(lambda self: self.has_rig() and self.scans)
    @rule(data=st.data(), count=st.integers(1, 3), plus=st.booleans())
    def continue_listing(self, data: st.DataObject, count: int, plus: bool) -> None:
        scan = self.scans[data.draw(st.integers(0, len(self.scans) - 1), "scan")]
        part = self.rig.entries(scan.ino, scan.cookie, plus=plus, limit=count)
        for entry in part:
            assert entry.cookie > scan.cookie
            scan.cookie = entry.cookie
            if entry.name not in (b".", b".."):
                assert entry.name not in scan.seen, f"{entry.name!r} comes twice"
                assert entry.name in scan.node.children
                scan.seen.append(entry.name)
        if len(part) < count:
            missed = scan.stable.keys() - set(scan.seen)
            assert not missed, f"a listing passed over {missed}"
            self.scans.remove(scan)
            self.rig.release(scan.ino)

    @invariant()
    def notice_changes(self) -> None:
        for scan in self.scans:
            now = scan.node.children
            scan.stable = {
                name: node for name, node in scan.stable.items() if now.get(name) is node
            }

    # -- the kernel's memory ---

    @precondition(lambda self: self.has_rig())
    @rule(which=st.integers(0, 50))
    def forget(self, which: int) -> None:
        inodes = self.rig.forgettable()
        if inodes:
            self.rig.forget(inodes[which % len(inodes)])

    @precondition(lambda self: self.has_rig())
    @rule()
    def forget_all(self) -> None:
        self.rig.forget_all()

    @precondition(lambda self: self.has_rig())
    @rule(data=st.data())
    def look_again(self, data: st.DataObject) -> None:
        path = self.old_path(data)
        if path is not None:
            self.rig.look_again(path)

    @precondition(lambda self: self.has_rig())
    @rule(data=st.data())
    def drop_descriptors(self, data: st.DataObject) -> None:
        """Too many open files: everything that may be closed is."""
        fds = self.rig.union.fds
        fds.max_dirs = fds.max_data = data.draw(st.sampled_from((0, 0, 1000)), "limit")
        fds.max_pins = data.draw(st.sampled_from((0, 1000)), "pins")

    @precondition(lambda self: self.remounts)
    @rule()
    def remount(self) -> None:
        self.remounts -= 1
        for handle, _ in self.handles:
            self.target.release(handle)
        for scan in self.scans:
            self.rig.release(scan.ino)
        self.handles.clear()
        self.scans.clear()
        self.target.remount()
        self.check_all()


def _name(number: int | None) -> str:
    import errno

    return "success" if number is None else errno.errorcode[number]


__all__ = ["UPPERS", "UnionMachine", "name_of", "trees"]
