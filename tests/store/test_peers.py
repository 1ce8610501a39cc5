"""What other tools make and read: images of umoci, archives of GNU tar."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cowstore import Store
from tests.store.archives import DIR, SYM, M, tar

_BUILD = """
set -e
umoci init --layout u; umoci new --image u:a
change() {
  umoci unpack --image u:a b; (cd b/rootfs; eval "$1"); umoci repack --image u:a b; rm -rf b
}
change 'mkdir -p d op/x/y rep wh link-to-be/in; echo 1 > d/file; ln d/file d/link; echo s > suid
  chown 5:6 suid; chmod 6755 suid; setfattr -n user.note -v hi d/file; mknod null c 1 3; mkfifo pipe
  chmod 1777 op; echo x > op/x/y/z; echo in > rep/in; echo g > wh/gone; echo s > wh/stays
  touch -d @-86400.5 old; touch -d @4102444800.123456789 future
  printf x > "$(printf "nl\\\\nname")"
  printf x > "$(printf "\\\\377bytes")"; chown 3000000:4000000000 wh; truncate -s 2M hole
  printf data | dd of=hole bs=1 seek=1000000 conv=notrunc status=none; echo l > l1; ln l1 l2
  ln -s ../d/file op/sym; chown -h 2097152:7 op/sym; touch -h -d @1234567.5 op/sym
  echo deep > link-to-be/in/file'
change 'rm wh/gone; rm -rf op/x rep link-to-be; mkdir op/x; echo n > op/x/new; echo file > rep
  rm d/link; ln l1 l3; chmod 700 d; echo more >> l1; rm old; mkdir old; touch -d @5.25 old
  ln -s d link-to-be'
change 'rm rep; mkdir rep; echo again > rep/in2; rm -rf op; mkdir op; echo only > op/only; rm hole
  ln suid suid2; setfattr -x user.note d/file'
umoci unpack --image u:a ref
"""


def _facts(top: bytes) -> tuple[dict[bytes, tuple[Any, ...]], list[list[bytes]]]:
    """(everything about each path, groups of hard links) of a tree on disk."""
    found: dict[bytes, tuple[Any, ...]] = {}
    groups: dict[int, list[bytes]] = {}
    pending = [b""]
    while pending:
        path = pending.pop()
        where = top + path
        st = os.lstat(where)
        names = os.listxattr(where, follow_symlinks=False)
        xattrs = {n: os.getxattr(where, n, follow_symlinks=False) for n in names}
        kind, content = stat.S_IFMT(st.st_mode), b""
        if kind == stat.S_IFDIR:
            pending += [path + b"/" + os.fsencode(name) for name in os.listdir(where)]
        else:
            groups.setdefault(st.st_ino, []).append(path)
        if kind == stat.S_IFREG:
            content = Path(os.fsdecode(where)).read_bytes()
        elif kind == stat.S_IFLNK:
            content = os.readlink(where)
        found[path] = (
            st.st_mode,
            st.st_uid,
            st.st_gid,
            st.st_rdev,
            st.st_mtime_ns,
            xattrs,
            content,
        )
    return found, sorted(sorted(group) for group in groups.values() if len(group) > 1)


def test_an_image_of_umoci_is_what_umoci_unpacks(store: Store, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root")
    for tool in ("umoci", "setfattr"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")
    subprocess.run(["bash", "-c", _BUILD], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    image = store.import_image(f"oci:{tmp_path}/u:a", "x")
    made = store.tree(image, "plain").places[0]
    ours, theirs = _facts(os.fsencode(made)), _facts(os.fsencode(tmp_path / "ref/rootfs"))
    assert len(theirs[1]) == 2
    for path in sorted(ours[0].keys() | theirs[0].keys()):
        assert ours[0].get(path) == theirs[0].get(path), path
    assert ours[1] == theirs[1]


def test_a_whiteout_may_stand_beneath_what_is_no_directory_here(store: Store, add: Any) -> None:
    """It says something of the layer below alone, and no path is followed for it."""
    below = tar([M("a", type=DIR), M("a/x", b"1"), M("b", type=DIR), M("b/y"), M("etc", type=DIR)])
    above = tar([M("a", b"file"), M("a/.wh.x"), M("b", type=SYM, target="etc"), M("b/.wh.y")])
    image = add(below, above)
    top = store.tree(image).places[0]
    assert sorted(os.listdir(top)) == ["a", "b", "etc"] and os.path.islink(f"{top}/b")
    assert Path(top, "a").read_bytes() == b"file" and os.listdir(f"{top}/etc") == []


@pytest.mark.parametrize("form", ["0.0", "0.1", "1.0", "gnu"])
def test_holes_of_gnu_tar_come_and_go(store: Store, tmp_path: Path, form: str) -> None:
    (tmp_path / "in").mkdir()
    contents = {"none": b"x" * 9000, "hole": b"", "tail": b"head", "middle": b"\0" * 700_000 + b"m"}
    for name, data in contents.items():
        with open(tmp_path / "in" / name, "wb") as file:
            file.write(data)
            file.truncate(max(len(data), 0 if name == "none" else 1 << 20))
    with open(tmp_path / "in/many", "wb") as file:
        for number in range(40):
            os.pwrite(file.fileno(), b"y" * 4096, number * 65536)
        file.truncate(3 << 20)
    how = ["--format=gnu"] if form == "gnu" else ["--format=pax", f"--sparse-version={form}"]
    command = ["tar", "-C", f"{tmp_path}/in", "--sparse", *how, "-cf", f"{tmp_path}/x.tar", "."]
    subprocess.run(command, check=True)
    image = store.import_image(f"rootfs:{tmp_path}/x.tar", "x")
    assert b"".join(store.layers.archive(image.layers[0])) == (tmp_path / "x.tar").read_bytes()
    store.export_image("x", f"rootfs:{tmp_path}/out.tar")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "out", "-xf", tmp_path / "out.tar"], check=True)
    for place in (Path(store.tree(image).places[0]), tmp_path / "out"):
        for file_in in (tmp_path / "in").iterdir():
            assert (place / file_in.name).read_bytes() == file_in.read_bytes(), file_in.name
