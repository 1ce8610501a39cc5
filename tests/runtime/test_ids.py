"""Mappings of ids."""

from __future__ import annotations

import pytest

from runtime import ids
from runtime.errors import RunError

_USER = ids.Callers(uid=1000, gid=1000, sub_uids=((100000, 65536),), sub_gids=((100000, 65536),))
_ROOT = ids.Callers(
    uid=0, gid=0, own_uids=((0, 0, 0xFFFFFFFF),), own_gids=((0, 0, 0xFFFFFFFF),), capable=True
)


def _host(plan: ids.IdPlan, container_id: int) -> int | None:
    """The host's id of a container's, through both namespaces."""
    for inside, outside, count in plan.inner_uids:
        if inside <= container_id < inside + count:
            outer = outside + container_id - inside
            for first, host, length in plan.outer_uids:
                if first <= outer < first + length:
                    return host + outer - first
    return None


def test_by_default_root_is_the_caller_and_the_rest_are_subordinate_ids() -> None:
    plan = ids.plan_ids("", _USER)
    assert _host(plan, 0) == 1000
    assert _host(plan, 1) == 100000
    assert plan.helpers and not plan.single


def test_no_container_has_the_id_of_the_union_daemon() -> None:
    for mode in ("", "keep-id", "nomap", "auto:size=100"):
        plan = ids.plan_ids(mode, _USER)
        assert plan.daemon == 65536
        assert all(a + n <= plan.daemon for _, a, n in plan.inner_uids), mode
    plan = ids.plan_ids("", _ROOT)
    assert all(a + n <= plan.daemon for _, a, n in plan.inner_uids)


def test_keep_id_keeps_the_callers_number_and_moves_nobody_onto_another() -> None:
    plan = ids.plan_ids("keep-id", _USER)
    assert _host(plan, 1000) == 1000
    hosts = [_host(plan, number) for number in range(3000)]
    assert None not in hosts and len(set(hosts)) == len(hosts)


def test_keep_id_of_an_id_beyond_all_subordinate_ones() -> None:
    far = _USER.replace(uid=3_000_000, gid=3_000_000)
    plan = ids.plan_ids("keep-id", far)
    assert _host(plan, 3_000_000) == 3_000_000
    assert _host(plan, 0) == 100000


def test_nomap_leaves_the_caller_out() -> None:
    plan = ids.plan_ids("nomap", _USER)
    assert all(_host(plan, number) != 1000 for number in range(65535))


def test_no_line_of_the_inner_map_spans_two_of_the_outer() -> None:
    several = _USER.replace(sub_uids=((100000, 1000), (300000, 5000), (900000, 60000)))
    plan = ids.plan_ids("", several.replace(sub_gids=several.sub_uids))
    for _, outside, count in plan.inner_uids:
        assert any(
            first <= outside and outside + count <= first + length
            for first, _, length in plan.outer_uids
        )
    assert sum(count for _, _, count in plan.inner_uids) == 66000


def test_the_union_shows_on_disk_ids_as_the_container_knows_them() -> None:
    for mode in ("keep-id", "nomap", "auto:size=500"):
        plan = ids.plan_ids(mode, _USER)
        shown = {disk: outer for outer, disk, count in plan.view_uids if count}
        for inside, outside, _ in plan.inner_uids:
            assert shown.get(inside, outside) == outside or inside not in shown, mode
    assert ids.plan_ids("", _USER).view_uids == ()


def test_without_subordinate_ids_one_id_is_mapped() -> None:
    alone = _USER.replace(sub_uids=(), sub_gids=())
    plan = ids.plan_ids("", alone)
    assert plan.single and plan.inner_uids == ((0, 0, 1),) and plan.outer_uids == ((0, 1000, 1),)
    assert ids.plan_ids("keep-id", alone).inner_uids == ((1000, 0, 1),)
    for mode in ("auto", "nomap"):
        with pytest.raises(RunError, match="subordinate"):
            ids.plan_ids(mode, alone)


def test_auto_ranges_do_not_meet() -> None:
    first = ids.plan_ids("auto:size=1000", _USER)
    taken = ((first.inner_uids[0][1], 1000),)
    second = ids.plan_ids("auto:size=1000", _USER, taken)
    assert second.inner_uids[0][1] >= first.inner_uids[0][1] + 1000
    with pytest.raises(RunError, match="not free"):
        ids.plan_ids("auto:size=70000", _USER)


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(RunError, match="--userns bogus"):
        ids.plan_ids("bogus", _USER)


def test_foreign_owners_are_shown_as_root_and_nobody_is_kept_apart() -> None:
    plan = ids.show_foreign_as_root(ids.plan_ids("", _USER))

    def view(disk: int) -> int | None:
        for outer, first, count in plan.view_uids:
            if first <= disk < first + count:
                return outer + disk - first
        return None

    def disk(outer: int) -> int | None:
        for shown, first, count in plan.view_uids:
            if shown <= outer < shown + count:
                return first + outer - shown
        return None

    assert view(65534) == 0 and view(0) == 0 and disk(0) == 0
    spare = disk(65534)
    assert spare == 65535 and view(spare) == 65534
    assert _host(plan, 65535) is None


def test_subordinate_files_with_nonsense_in_them(tmp_path: object) -> None:
    path = f"{tmp_path}/subuid"
    with open(path, "w", encoding="utf-8") as file:
        file.write("me:10:5\nyou:1:1\nme:x:5\nme:20\n1000:50:2\nme:7:0\n")
    assert ids.subordinate(path, ("me", "1000")) == ((10, 5), (50, 2))
    assert ids.subordinate(f"{path}.none", ("me",)) == ()
