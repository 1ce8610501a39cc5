"""What fsck can find: the kinds, one finding as data, and the marks that are looked at."""

from __future__ import annotations

import errno
import os
import re
from typing import Final, NamedTuple

from unionfs import formats

#: A well-formed origin: ``filesystem[/layer root]:st_ino`` (``numbers.identity_of``).
ORIGIN_FORM: Final = re.compile(rb"[0-9a-f]+(/[0-9]+)?:[0-9]+")
_OVERRIDE: Final = re.compile(
    rb"[0-9]+:[0-9]+:[0-7]+(?::(file|dir|symlink|pipe|socket|(?:block|char)-[0-9]+-[0-9]+))?"
)
_UNLISTABLE: Final = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES})


class Kind(NamedTuple):
    """A sort of finding; a ``note`` is harmless and does not make a check fail."""

    text: str
    repairable: bool = True
    note: bool = False


KINDS: Final = {
    # in the work directory
    "stage-leftover": Kind("left in the work directory by a crash"),
    "orphan": Kind("an unlinked file that a crash left behind"),
    "index": Kind(
        "a file whose other names only this union shows (--portable writes them)",
        repairable=False,
        note=True,
    ),
    "index-malformed": Kind("an entry of the index that cannot be understood"),
    "record-stale": Kind("an identity record of a file that is gone"),
    "record-malformed": Kind("an identity record that cannot be read"),
    "volatile": Kind(
        "was mounted volatile and not unmounted: if the machine crashed, contents may be"
        " incomplete; a repair accepts them as they are"
    ),
    "work-stranger": Kind("does not belong into a work directory", repairable=False),
    # in the upper
    "whiteout-in-opaque": Kind("a whiteout inside an opaque directory"),
    "whiteout-useless": Kind("a whiteout that hides nothing", repairable=False, note=True),
    "wh-beside-name": Kind("a .wh. file beside the name that it deletes"),
    "marks-contradict": Kind("the trusted and user marks contradict each other"),
    "override-malformed": Kind("an override_stat that cannot be understood"),
    "redirect-malformed": Kind("a redirect that cannot be understood"),
    "redirect-on-opaque": Kind("a redirect on an opaque directory"),
    "redirect-nowhere": Kind(
        "a redirect to what no lower has (is --lower the mount's?)", repairable=False
    ),
    "metacopy-no-data": Kind(
        "a metacopy file whose data no lower has (is --lower the mount's?)", repairable=False
    ),
    "origin-malformed": Kind("an origin record that cannot be understood"),
    "origin-duplicate": Kind("claims the same origin as another file"),
}


class Finding(NamedTuple):
    """One thing found. ``path`` is relative to the upper, or (``in_work``) to the work directory.

    ``detail`` adds to the kind's text what is particular here.
    """

    kind: str
    path: bytes
    detail: str = ""
    in_work: bool = False

    @property
    def is_note(self) -> bool:
        return KINDS[self.kind].note

    @property
    def repairable(self) -> bool:
        return KINDS[self.kind].repairable

    @property
    def text(self) -> str:
        """One line for people, without the path."""
        text = KINDS[self.kind].text
        return f"{text}: {self.detail}" if self.detail else text


def read_marks(path: bytes) -> dict[bytes, bytes]:
    """The attributes of a file that are the union's: marks of all families, override_stat."""
    try:
        names = [os.fsencode(text) for text in os.listxattr(path, follow_symlinks=False)]
    except OSError as error:
        if error.errno not in _UNLISTABLE:
            raise
        return {}
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in names
        if formats.unescape(name) is None or name in formats.OVERRIDE_STAT_NAMES
    }


def values_of(marks: dict[bytes, bytes], mark: bytes) -> dict[bytes, bytes]:
    """The attributes called ``mark`` in any family, by full name, trusted first."""
    names = (prefix + mark for prefix in formats.PRIVATE_PREFIXES)
    return {name: marks[name] for name in names if name in marks}


def is_valid_redirect(value: bytes) -> bool:
    """A name, or an absolute path without empty, ``.`` or ``..`` parts, of 256 bytes at most."""
    if not 0 < len(value) <= formats.REDIRECT_MAX or b"\0" in value:
        return False
    parts = value[1:].split(b"/") if value.startswith(b"/") else [value]
    return not any(part in (b"", b".", b"..") or b"/" in part for part in parts)


def is_valid_override(value: bytes, is_dir: bool) -> bool:
    """``uid:gid:mode[:type]``, with a type that the file on disk can stand for."""
    match = _OVERRIDE.fullmatch(value)
    return match is not None and (match[1] is None or (match[1] == b"dir") == is_dir)
