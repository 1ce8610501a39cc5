"""Which user and group ids a container has, and who they are outside.

Three spaces: the *host's* ids; the *outer* ids of the intermediate user
namespace, where the union's daemon lives (0 is the caller, then every
subordinate id in order); the *container's* ids. Files are kept on disk with
the outer id that equals the container's id, so that one image serves every
mapping; where the two differ (``keep-id``, ``auto``, ``nomap``) the union
translates and nothing is ever chowned (user_namespaces(7), subuid(5)).
"""

from __future__ import annotations

import os

from runtime.errors import RunError
from unionfs.record import Record

#: (inside, outside, count)
Range = tuple[int, int, int]

_ALL = 0xFFFFFFFF


class IdPlan(Record):
    """The two mappings of a container.

    ``outer`` maps outer ids to the host's, ``inner`` the container's to outer ones (empty: the
    namespace is the caller's own). ``view`` is what the union must show for ids on disk, as
    triples (outer, disk, count), empty if they are equal. ``daemon`` is the outer id that no
    container has, the union daemon's; -1: there is none. ``single``: one id is all there is.
    """

    mode: str
    outer_uids: tuple[Range, ...]
    outer_gids: tuple[Range, ...]
    inner_uids: tuple[Range, ...]
    inner_gids: tuple[Range, ...]
    view_uids: tuple[Range, ...] = ()
    view_gids: tuple[Range, ...] = ()
    daemon: int = -1
    helpers: bool = False
    single: bool = False


class Callers(Record):
    """Who calls: ids, and the ids that are at hand for namespaces."""

    uid: int
    gid: int
    sub_uids: tuple[tuple[int, int], ...] = ()
    sub_gids: tuple[tuple[int, int], ...] = ()
    own_uids: tuple[Range, ...] = ()
    own_gids: tuple[Range, ...] = ()
    capable: bool = False


def subordinate(path: str, names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """The ranges (first, count) that subuid(5) or subgid(5) gives to a user."""
    found = []
    try:
        with open(path, "rb") as lines:
            for line in lines:
                fields = line.decode(errors="replace").strip().split(":")
                if len(fields) == 3 and fields[0] in names:
                    try:
                        first, count = int(fields[1]), int(fields[2])
                    except ValueError:
                        continue
                    if first > 0 and count > 0:
                        found.append((first, count))
    except OSError:
        pass
    return tuple(found)


def read_map(path: str) -> tuple[Range, ...]:
    """The lines of /proc/PID/uid_map."""
    with open(path, "rb") as lines:
        return tuple((int(a), int(b), int(c)) for a, b, c in (line.split() for line in lines))


def caller(capable: bool) -> Callers:
    """The ids of this process; ``capable``: it may map any id that it has (CAP_SETUID)."""
    uid, gid = os.geteuid(), os.getegid()
    own_uids, own_gids = read_map("/proc/self/uid_map"), read_map("/proc/self/gid_map")
    if capable:
        return Callers(uid=uid, gid=gid, own_uids=own_uids, own_gids=own_gids, capable=True)
    import pwd

    names: tuple[str, ...] = (str(uid),)
    try:
        names = (pwd.getpwuid(uid).pw_name, str(uid))
    except KeyError:
        pass
    return Callers(
        uid=uid,
        gid=gid,
        sub_uids=subordinate("/etc/subuid", names),
        sub_gids=subordinate("/etc/subgid", names),
        own_uids=own_uids,
        own_gids=own_gids,
    )


def _outer(own: int, sub: tuple[tuple[int, int], ...]) -> tuple[Range, ...]:
    ranges: list[Range] = [(0, own, 1)]
    at = 1
    for first, count in sub:
        if not first <= own < first + count:
            ranges.append((at, first, count))
            at += count
    return tuple(ranges)


def _total(ranges: tuple[Range, ...]) -> int:
    """Ids without a gap from 0."""
    end = 0
    for inside, _, count in sorted(ranges):
        if inside > end:
            break
        end = max(end, inside + count)
    return min(end, _ALL)


def _keep(own: int, usable: int) -> tuple[Range, ...]:
    """The caller keeps the own id; what it displaces moves down by one."""
    if own >= usable:
        return ((0, 1, usable - 1), (own, 0, 1))
    ranges = [(0, 1, own), (own, 0, 1), (own + 1, own + 1, usable - own - 1)]
    return tuple(part for part in ranges if part[2] > 0)


def _view(inner: tuple[Range, ...]) -> tuple[Range, ...]:
    """Container ids are the ids on disk: what the union shows for each."""
    if all(inside == outside for inside, outside, _ in inner):
        return ()
    return tuple((outside, inside, count) for inside, outside, count in inner)


def _split(inner: tuple[Range, ...], outer: tuple[Range, ...]) -> tuple[Range, ...]:
    """The same mapping in pieces that each lie in one range of the namespace above.

    The kernel refuses a line that spans two (kernel/user_namespace.c, map_id_range_down).
    """
    pieces = []
    for inside, outside, count in inner:
        for first, _, length in sorted(outer):
            low, high = max(outside, first), min(outside + count, first + length)
            if low < high:
                pieces.append((inside + low - outside, low, high - low))
    return tuple(pieces)


def plan_ids(mode: str, who: Callers, taken: tuple[tuple[int, int], ...] = ()) -> IdPlan:
    """The mappings for ``--userns MODE``; ``taken`` are (first, count) of other ``auto`` ones.

    Raises:
        RunError: an unknown mode, or too few ids for it.
    """
    word, _, option = mode.partition(":")
    if word not in ("", "private", "keep-id", "nomap", "host", "auto"):
        raise RunError(
            f"--userns {mode}: unknown mode", "keep-id, nomap, host, auto[:size=N] or single"
        )
    if who.capable:
        outer_uids = tuple((inside, inside, count) for inside, _, count in who.own_uids)
        outer_gids = tuple((inside, inside, count) for inside, _, count in who.own_gids)
        if word == "host":
            return IdPlan(mode="host", outer_uids=(), outer_gids=(), inner_uids=(), inner_gids=())
    else:
        outer_uids = _outer(who.uid, who.sub_uids if who.sub_gids else ())
        outer_gids = _outer(who.gid, who.sub_gids if who.sub_uids else ())
    total = min(_total(outer_uids), _total(outer_gids))
    if total < 2:
        return _single(word, who)
    usable = total - 1  # the last one is the daemon's
    inner_uids: tuple[Range, ...] = ((0, 0, usable),)
    inner_gids = inner_uids
    if word == "keep-id":
        inner_uids, inner_gids = _keep(who.uid, usable), _keep(who.gid, usable)
    elif word == "nomap":
        inner_uids = inner_gids = ((0, 1, usable - 1),)
    elif word == "auto":
        inner_uids = inner_gids = _auto(option, usable, taken)
    return IdPlan(
        mode=word or "private",
        outer_uids=outer_uids,
        outer_gids=outer_gids,
        inner_uids=_split(inner_uids, outer_uids),
        inner_gids=_split(inner_gids, outer_gids),
        view_uids=_view(inner_uids),
        view_gids=_view(inner_gids),
        daemon=total - 1,
        helpers=not who.capable,
    )


def _single(word: str, who: Callers) -> IdPlan:
    if word in ("auto", "nomap"):
        raise RunError(
            f"--userns {word} needs subordinate ids, and there are none for this user",
            "add ranges to /etc/subuid and /etc/subgid (usermod --add-subuids --add-subgids)",
        )
    uid, gid = (who.uid, who.gid) if word == "keep-id" else (0, 0)
    return IdPlan(
        mode=word or "private",
        outer_uids=((0, who.uid, 1),),
        outer_gids=((0, who.gid, 1),),
        inner_uids=((uid, 0, 1),),
        inner_gids=((gid, 0, 1),),
        single=True,
    )


def _auto(option: str, usable: int, taken: tuple[tuple[int, int], ...]) -> tuple[Range, ...]:
    from runtime.values import integer

    key, _, value = option.partition("=")
    if option and key != "size":
        raise RunError(f"--userns auto:{option}: unknown option", "expected auto:size=NUMBER")
    wanted = integer(value, "--userns auto:size", 1, 1 << 24) if value else 65536
    # Above the first 65536 where the ids reach: those are what other modes use.
    at = 65536 if usable > 65536 + wanted else 1
    for first, count in sorted(taken):
        if first < at + wanted and at < first + count:
            at = first + count
    if at + wanted > usable:
        raise RunError(
            f"--userns auto: {wanted} more ids are not free, {max(0, usable - at)} are",
            "add ranges to /etc/subuid and /etc/subgid, or ask for fewer: --userns auto:size=1000",
        )
    return ((0, at, wanted),)


def show_foreign_as_root(plan: IdPlan) -> IdPlan:
    """The same plan over a tree whose owners have no name in the outer namespace.

    There they all are the overflow id 65534, and are shown as root. The container's own 65534
    (nobody) is then kept on disk as a spare id, which the container gives up.
    """
    if plan.single or not plan.helpers:
        return plan
    base: list[Range] = [(0, 0, min(_OVERFLOW, plan.daemon)), (0, _OVERFLOW, 1)]
    spare = plan.daemon - 1
    inner_uids, inner_gids = plan.inner_uids, plan.inner_gids
    if spare > _OVERFLOW:
        base += [(_OVERFLOW, spare, 1), (_OVERFLOW + 1, _OVERFLOW + 1, spare - _OVERFLOW - 1)]
        inner_uids, inner_gids = _without(inner_uids, spare), _without(inner_gids, spare)
    return plan.replace(
        inner_uids=inner_uids,
        inner_gids=inner_gids,
        view_uids=_compose(inner_uids, base),
        view_gids=_compose(inner_gids, base),
    )


_OVERFLOW = 65534


def _without(ranges: tuple[Range, ...], outer_id: int) -> tuple[Range, ...]:
    kept: list[Range] = []
    for inside, outside, count in ranges:
        before = max(0, min(count, outer_id - outside))
        after = max(0, min(count, outside + count - outer_id - 1))
        kept.append((inside, outside, before))
        kept.append((inside + count - after, outside + count - after, after))
    return tuple(part for part in dict.fromkeys(kept) if part[2] > 0)


def _compose(inner: tuple[Range, ...], base: list[Range]) -> tuple[Range, ...]:
    """(outer, disk, count) from (container, outer, count) and (container, disk, count)."""
    found = []
    for shown, disk, length in base:
        for inside, outside, count in inner:
            low, high = max(shown, inside), min(shown + length, inside + count)
            if low < high:
                found.append((outside + low - inside, disk + low - shown, high - low))
    return tuple(found)
