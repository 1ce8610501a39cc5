"""Size quotas: what is asked for, and what is said where the filesystem cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cowstore import Store, StoreError, quota
from cowstore.project import project_of
from tests.store.archives import M, tar
from tests.store.commands import cowstore, ok
from tests.store.conftest import AddImage


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("1k", 1024), ("500M", 500 << 20), ("2G", 2 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert quota.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5G", "G", "12Q", "99999999T", "5 M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(StoreError, match="not a size"):
        quota.parse_size(text)


def _has_quotas(root: Path) -> bool:
    try:
        quota.check(str(root))
    except StoreError:
        return False
    return True


def test_where_there_are_none_it_is_told_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar([M("a")]))
    ok(tmp_path / "s", "import", f"rootfs:{tmp_path}/x.tar", "img")
    if _has_quotas(tmp_path / "s"):
        pytest.skip("this filesystem has project quotas")
    done = cowstore(tmp_path / "s", "snapshot", "create", "img", "--quota", "1G")
    assert done.returncode == 1 and "no size quota can be set here" in done.stderr
    assert "hint: as root, on XFS mounted with prjquota" in done.stderr
    assert os.listdir(tmp_path / "s/snapshots") == []
    assert ok(tmp_path / "s", "snapshot", "list", "-q", "--json") == "[]\n"


def test_a_quota_bounds_what_a_snapshot_takes(store: Store, add: AddImage) -> None:
    if not _has_quotas(Path(store.layout.root)):
        pytest.skip("needs a filesystem with project quotas")
    image = add(tar([M("a")]))
    one = store.snapshot_create(image, "one", quota=1 << 20)
    bound = quota.usage(one.place)
    assert bound is not None and bound.limit == 1 << 20
    (one.upper / "kept").write_bytes(b"1" * 4096)
    clone = store.snapshot_clone("one", "two")
    theirs = project_of(clone.place)
    assert theirs not in (0, project_of(store.snapshot("one").place))
    pid = os.fork()
    if not pid:
        quota.obey()
        try:
            (clone.upper / "big").write_bytes(b"1" * (2 << 20))
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (28, 122)  # ENOSPC, EDQUOT
    for name in ("one", "two"):
        store.snapshot_remove(name)
