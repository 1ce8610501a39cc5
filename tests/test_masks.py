"""Which paths of a layer must show as empty; and how mountinfo is read."""

from __future__ import annotations

import pytest

from unionfs.masks import masks_for
from unionfs.sys.mountinfo import parse, read_mounts


@pytest.mark.parametrize(
    ("root", "hidden", "points", "expected"),
    [
        (b"/", [b"/u", b"/w"], [b"/", b"/proc", b"/proc/sys"],
         {b"u", b"w", b"proc", b"proc/sys"}),
        (b"/a", [b"/a", b"/ab", b"/a/b"], [], {b"b"}),
        (b"/a/", [b"/a/b"], [b"/"], {b"b"}),
        (b"/a", [], [b"/a", b"/b/a", b"/aa/b"], set()),
    ],
)  # fmt: skip
def test_masks_are_what_lies_strictly_beneath(
    root: bytes, hidden: list[bytes], points: list[bytes], expected: set[bytes]
) -> None:
    assert masks_for(root, hidden, points) == expected


def test_mountinfo_lines_are_unescaped() -> None:
    text = (
        b"36 35 98:0 /sub /mnt\\040with\\011tab\\134 rw,noatime master:1 - ext4 /dev/a\\040b rw\n"
        b"37 35 0:1 / /fuse rw - fuse.pyunion x rw,user_id=0\n"
        b"garbage\n"
    )
    first, second = parse(text)
    assert first.mount_point == b"/mnt with\ttab\\"
    assert (first.mount_id, first.device, first.fstype) == (36, b"98:0", b"ext4")
    assert (first.source, first.super_options) == (b"/dev/a b", b"rw")
    assert (second.mount_point, second.fstype) == (b"/fuse", b"fuse.pyunion")


def test_the_mounts_of_this_process() -> None:
    assert b"/" in {mount.mount_point for mount in read_mounts()}
