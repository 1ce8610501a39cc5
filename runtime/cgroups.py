"""Limits: what a request asks of cgroups, and whether this host can hold it to that."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.plan import CgroupPlan
    from runtime.request import RunRequest


def is_unified() -> bool:
    return False


def plan(request: RunRequest, container: str, root: bool) -> CgroupPlan | None:
    return None


def create(plan: CgroupPlan) -> None: ...
def enter(plan: CgroupPlan, pid: int, union: int) -> None: ...
def remove(plan: CgroupPlan) -> None: ...
def join_container(container: object) -> None: ...
