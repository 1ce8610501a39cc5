"""Trees of an image for other unions: what the kernel's overlayfs shows of them is the image."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cowstore import Store, StoreError
from cowstore.fsck import check
from cowstore.snapshots import _kernel
from tests.store.archives import CHR, LNK, SYM, M, d, tar
from tests.store.conftest import AddImage

TREE = [
    d("etc", mode=0o750, uid=3, gid=4),
    M("etc/file", b"content" * 1000, mode=0o4711, uid=7, gid=8),
    M("etc/empty"),
    M("again", type=LNK, target="etc/file"),
    M("sym", type=SYM, target="etc/file"),
    M("null", type=CHR, device=(1, 3)),
]
_SHOW = """
import os, sys
from unionfs.sys import calls
target, words = sys.argv[1:]
calls.mount(b"none", target.encode(), b"overlay", calls.MS_RDONLY, words.encode())
os.chdir(target)
st = os.stat("etc/file")
assert (st.st_mode & 0o7777, st.st_uid, st.st_gid, st.st_size) == (0o4711, 7, 8, 7000), st
assert os.stat("again").st_ino == st.st_ino and st.st_nlink == 2
assert open("again", "rb").read() == b"content" * 1000 and open("etc/empty").read() == ""
assert os.readlink("sym") == "etc/file" and os.stat("null").st_rdev == os.makedev(1, 3)
assert os.stat("etc").st_uid == 3 and sorted(os.listdir()) == ["again", "etc", "null", "sym"]
"""


def test_the_kernel_reads_a_data_only_lower(store: Store, add: AddImage, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    if _kernel() < (6, 5):
        pytest.skip("needs Linux 6.5")
    image = add(tar(TREE))
    made = store.tree(image, "data")
    assert made.options[0] == f"lowerdir={made.places[0]}::{store.layout.root}/objects"
    assert store.tree(image, "data") == made
    file = Path(made.places[0], "etc/file")
    assert file.stat().st_blocks * 512 < 7000  # no content twice
    (tmp_path / "m").mkdir()
    words = [sys.executable, "-c", _SHOW, str(tmp_path / "m"), ",".join(made.options)]
    subprocess.run(["unshare", "-m", "--propagation", "private", *words], check=True)
    os.setxattr(file, "trusted.overlay.redirect", b"/A/other")
    try:
        (finding,) = check(store, full=True)
        assert finding.code == "tree-damaged" and "to other data" in finding.text
    finally:
        store.remove(image.id)
    assert os.listdir(store.layout.path("trees")) == []


def test_flavours(store: Store, add: AddImage) -> None:
    image = add(tar([d("etc"), M("etc/file", b"1", mode=0o4711, uid=7, gid=8)]))
    made = store.tree(image, "override")
    value = os.getxattr(f"{made.places[0]}/etc/file", "user.containers.override_stat")
    assert value == b"7:8:4711:file" and made.options == ("xattr_permissions=2",)
    if not os.geteuid():
        assert os.stat(f"{store.tree(image).places[0]}/etc/file").st_uid == 7


def test_an_old_kernel_is_told(
    store: Store, add: AddImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = add(tar([M("a", b"1")]))
    monkeypatch.setattr("cowstore.snapshots._kernel", lambda: (6, 4))
    with pytest.raises(StoreError, match=r"before Linux 6\.\d"):
        store.tree(image, "data")
    assert os.listdir(store.layout.path("trees")) == []
