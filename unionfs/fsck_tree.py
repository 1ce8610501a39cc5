"""fsck's walk over an upper: every entry once, each looked at together with the lowers.

Reads only; what it finds is data. See ``fsck`` for the rest.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from unionfs import formats
from unionfs.findings import (
    ORIGIN_FORM,
    Finding,
    is_valid_override,
    is_valid_redirect,
    read_marks,
    values_of,
)
from unionfs.layer import Entry, LayerDir
from unionfs.resolve import Says, resolve
from unionfs.sys import calls
from unionfs.union import Union

_Marks = dict[bytes, bytes]


class _Place(NamedTuple):
    """A directory under examination: merged directories, the upper's first."""

    path: bytes
    dirs: list[LayerDir]
    opaque: bool


class Tree:
    """One walk over the upper of a view (``diff.open_view``).

    Attributes:
        confirmed: inode numbers whose record fits a file.
    """

    def __init__(
        self, view: Union, records: dict[int, tuple[int, bytes]], *, has_lowers: bool
    ) -> None:
        self.view = view
        self.records = records
        self.has_lowers = has_lowers
        self.findings: list[Finding] = []
        self.confirmed: set[int] = set()
        self._claims: dict[bytes, dict[int, tuple[int, bytes]]] = {}

    def walk(self) -> None:
        """Look at every entry once."""
        root = self.view.root
        assert root.dirs is not None
        marks = read_marks(root.dirs[0].proc_path(b""))
        self._contradictions(b"", marks)
        self._override(b"", marks, is_dir=True)
        pending = [_Place(b"", root.dirs, root.dirs[0].opaque)]
        while pending:
            place = pending.pop()
            here = place.dirs[0]
            names = sorted(os.listdir(here.proc_path(b"")))
            present = set(names)
            here.whs = frozenset(
                name[4:]
                for name in names
                if name.startswith(formats.WH_PREFIX) and name != formats.WH_OPAQUE
            )
            for name in names:
                if name.startswith(formats.WH_PREFIX):
                    if name != formats.WH_OPAQUE:
                        self._dot_wh(place, name, beside=name[4:] in present)
                    continue
                below = self._entry(place, name)
                if below is not None:
                    pending.append(below)
            self.view.fds.trim()
        self._duplicates()

    def _add(self, kind: str, path: bytes, detail: str = "") -> None:
        self.findings.append(Finding(kind, path, detail))

    def _dot_wh(self, place: _Place, name: bytes, *, beside: bool) -> None:
        path = _join(place.path, name)
        if beside:
            self._add("wh-beside-name", path)
        else:
            self._whiteout(place, name[4:], path)

    def _whiteout(self, place: _Place, name: bytes, path: bytes) -> None:
        if place.opaque:
            self._add("whiteout-in-opaque", path)
        elif self.has_lowers and not resolve(self.view.says(place.dirs[1:], name)):
            self._add("whiteout-useless", path)

    def _entry(self, place: _Place, name: bytes) -> _Place | None:
        """Look at one name; where it is a directory, what to go on with."""
        here, path = place.dirs[0], _join(place.path, name)
        if here.is_masked(name):
            return None
        st = os.stat(name, dir_fd=here.dirfd(), follow_symlinks=False)
        kind = stat.S_IFMT(st.st_mode)
        if kind == stat.S_IFCHR and st.st_rdev == 0:
            self._whiteout(place, name, path)
            return None
        marks = read_marks(here.proc_path(name))
        if kind == stat.S_IFREG and st.st_size == 0:
            # An opaque=y that took the place of opaque=x turns these into files.
            marked = any(mark in marks for mark in formats.WHITEOUT_NAMES)
            if marked and (place.opaque or here.xwhiteouts):
                self._whiteout(place, name, path)
                return None
        self._override(path, marks, is_dir=kind == stat.S_IFDIR)
        self._origin(here, name, path, st, marks)
        if kind == stat.S_IFDIR:
            return self._directory(place, name, path, marks)
        if kind == stat.S_IFREG and st.st_size > 0:
            self._metacopy(place, Entry(Says.FILE, here, name, st, None), path, marks)
        return None

    def _directory(self, place: _Place, name: bytes, path: bytes, marks: _Marks) -> _Place | None:
        found = resolve(self.view.says(place.dirs, name))
        dirs = [entry.sub for entry in found if entry.sub is not None]
        if not dirs:
            return None
        opaque = found[0].says == Says.OPAQUE_DIR
        self._contradictions(path, marks)
        redirects = values_of(marks, formats.REDIRECT)
        if redirects and opaque:
            self._add("redirect-on-opaque", path)
        elif redirects:
            wrong = [value for value in redirects.values() if not is_valid_redirect(value)]
            if wrong:
                self._add("redirect-malformed", path, repr(wrong[0]))
            elif self.has_lowers and len(dirs) == 1:
                self._add("redirect-nowhere", path, os.fsdecode(next(iter(redirects.values()))))
        return _Place(path, dirs, opaque)

    def _contradictions(self, path: bytes, marks: _Marks) -> None:
        for mark in (formats.OPAQUE, formats.REDIRECT):
            values = values_of(marks, mark)
            if len(set(values.values())) > 1:
                words = (f"{os.fsdecode(name)}={value!r}" for name, value in values.items())
                self._add("marks-contradict", path, ", ".join(words))

    def _override(self, path: bytes, marks: _Marks, *, is_dir: bool) -> None:
        for name in formats.OVERRIDE_STAT_NAMES:
            value = marks.get(name)
            if value is not None and not is_valid_override(value, is_dir):
                self._add("override-malformed", path, f"{os.fsdecode(name)}={value!r}")

    def _metacopy(self, place: _Place, entry: Entry, path: bytes, marks: _Marks) -> None:
        if self.has_lowers and any(name in marks for name in formats.METACOPY_NAMES):
            try:
                self.view.data_behind(place.dirs, entry)
            except OSError:
                self._add("metacopy-no-data", path)

    def _origin(
        self, here: LayerDir, name: bytes, path: bytes, st: os.stat_result, marks: _Marks
    ) -> None:
        origin = next((marks[key] for key in formats.ORIGIN_NAMES if key in marks), None)
        if origin is not None and not ORIGIN_FORM.fullmatch(origin):
            self._add("origin-malformed", path, repr(origin))
            return
        record = self.records.get(st.st_ino)
        if origin is None and record is None:
            return
        btime = calls.statx(here.dirfd(), name).btime_ns
        if record is not None and record[0] == btime:
            self.confirmed.add(st.st_ino)
            origin = record[1]  # records are asked first (Upper.origin_of)
        if origin is not None:
            self._claims.setdefault(origin, {}).setdefault(st.st_ino, (btime, path))

    def _duplicates(self) -> None:
        for claims in self._claims.values():
            if len(claims) > 1:
                # The copy-up came first; whatever carries its mark too was copied from it.
                (_, first), *rest = sorted(claims.values())
                for _, path in rest:
                    self._add("origin-duplicate", path, os.fsdecode(first))


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name
