"""What fsck does about its findings; ``fsck`` says what a repair may change of what is shown.

Things in the work directory are removed under the locks of the check; the
upper is repaired through ``Upper``, step by step, so that a crash leaves the
finding or its repair.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Sequence

from unionfs import formats, steps
from unionfs.copyup import kept_times, override_value
from unionfs.findings import Finding, is_valid_override, read_marks, values_of
from unionfs.layer import Layer, LayerDir
from unionfs.trees import remove_tree
from unionfs.upper import Upper

_WORK_KINDS = frozenset(
    {
        "stage-leftover",
        "orphan",
        "record-stale",
        "record-malformed",
        "volatile",
    }
)
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def repair_work(work: bytes, findings: Sequence[Finding]) -> None:
    """Remove from the work directory what has no use; the caller holds its lock.

    Raises:
        OSError: something cannot be removed.
    """
    for finding in findings:
        if finding.kind in _WORK_KINDS:
            parent, name = os.path.split(work + b"/" + finding.path)
            fd = os.open(parent, _DIR_FLAGS)
            try:
                remove_tree(fd, name)
            finally:
                os.close(fd)


def repair_upper(upper: Upper, findings: Sequence[Finding]) -> None:
    """Put the upper in order.

    Raises:
        OSError: a step failed; what was done before it stays done.
    """
    upper.sweep()
    for finding in findings:
        act = _REPAIRS.get(finding.kind)
        if act is not None:
            directory, name = locate(upper.layer, finding.path)
            with kept_times(directory):
                act(upper, directory, name)


def locate(layer: Layer, path: bytes) -> tuple[LayerDir, bytes]:
    """The directory and name of a path in a layer; an empty name for the root."""
    *parts, name = path.split(b"/")
    directory = layer.root
    for part in parts:
        directory = LayerDir(layer, directory, part)
    return directory, name


def remove_marks(upper: Upper, path: bytes, mark: bytes) -> None:
    """Take a mark off a file, in every family that has it."""
    for name in values_of(read_marks(path), mark):
        upper.run(steps.RemoveXattr(path, name))


def is_xattr_whiteout(directory: LayerDir, name: bytes) -> bool:
    """Whether ``name`` is an empty regular file marked as a whiteout."""
    st = os.stat(name, dir_fd=directory.dirfd(), follow_symlinks=False)
    if not stat.S_ISREG(st.st_mode) or st.st_size:
        return False
    return directory.first_xattr(name, formats.WHITEOUT_NAMES) is not None


def drop_dot_wh(upper: Upper, directory: LayerDir, name: bytes) -> None:
    """Remove ``.wh.NAME`` from beside NAME, which hides what is beneath on its own."""
    real = name[len(formats.WH_PREFIX) :]
    st = os.stat(real, dir_fd=directory.dirfd(), follow_symlinks=False)
    if stat.S_ISDIR(st.st_mode):
        # Mark first: without either, the directory would merge with those beneath.
        upper.mark_opaque(directory.proc_path(real), directory.dirfd(), real)
    upper.run(steps.Unlink(directory.dirfd(), name))


def _drop_whiteout(upper: Upper, directory: LayerDir, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        upper.run(steps.Unlink(directory.dirfd(), name))


def _settle_marks(upper: Upper, directory: LayerDir, name: bytes) -> None:
    path = directory.proc_path(name)
    opaque = values_of(read_marks(path), formats.OPAQUE)
    if len(set(opaque.values())) > 1:
        value = b"y" if b"y" in opaque.values() else b"x"
        if value == b"y":
            _clear_xattr_whiteouts(upper, LayerDir(directory.layer, directory, name), name)
        for attribute, old in opaque.items():
            if old != value:
                upper.run(steps.SetXattr(path, attribute, value))
    # Where redirects differ, the one stays that only a privileged union can have written.
    _, *others = values_of(read_marks(path), formats.REDIRECT) or [b""]
    for attribute in others:
        upper.run(steps.RemoveXattr(path, attribute))


def _clear_xattr_whiteouts(upper: Upper, directory: LayerDir, name: bytes) -> None:
    """Before a directory stops being one whose empty marked files are whiteouts."""
    inside = directory if name else upper.layer.root
    for child in os.listdir(inside.proc_path(b"")):
        if is_xattr_whiteout(inside, child):
            upper.run(steps.Unlink(inside.dirfd(), child))


def _rewrite_override(upper: Upper, directory: LayerDir, name: bytes) -> None:
    path = directory.proc_path(name)
    if name:
        st = os.stat(name, dir_fd=directory.dirfd(), follow_symlinks=False)
    else:
        st = os.fstat(directory.dirfd())
    marks = read_marks(path)
    for attribute in formats.OVERRIDE_STAT_NAMES:
        value = marks.get(attribute)
        if value is not None and not is_valid_override(value, stat.S_ISDIR(st.st_mode)):
            # What could not be understood changed nothing: put into words what is shown.
            upper.run(steps.SetXattr(path, attribute, override_value(st)))


def _drop_redirect(upper: Upper, directory: LayerDir, name: bytes) -> None:
    path = directory.proc_path(name)
    # Opaque first: a redirect that leads nowhere shows nothing from beneath.
    upper.mark_opaque(path, directory.dirfd(), name)
    remove_marks(upper, path, formats.REDIRECT)


def _drop_origin(upper: Upper, directory: LayerDir, name: bytes) -> None:
    st = os.stat(name, dir_fd=directory.dirfd(), follow_symlinks=False)
    upper.forget_record(st.st_ino)
    remove_marks(upper, directory.proc_path(name), formats.ORIGIN)


_REPAIRS: dict[str, Callable[[Upper, LayerDir, bytes], None]] = {
    "whiteout-in-opaque": _drop_whiteout,
    "wh-beside-name": drop_dot_wh,
    "marks-contradict": _settle_marks,
    "override-malformed": _rewrite_override,
    "redirect-malformed": _drop_redirect,
    "redirect-on-opaque": _drop_redirect,
    "origin-malformed": _drop_origin,
    "origin-duplicate": _drop_origin,
}
