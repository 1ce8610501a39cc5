"""Which layers make up a name: the one rule of the union, as a pure function.

Every layer, topmost first, says one thing of a name. LOOKUP feeds ``resolve``
lazily with probes, a directory's listing is ``merge`` of what its layers hold,
tests feed it lists. Source: Documentation/filesystems/overlayfs.rst, "Merging"
and "whiteouts and opaque directories"; OCI image-spec layer.md, "Whiteouts".
"""

from __future__ import annotations

from unionfs.record import Protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final, TypeVar

    S = TypeVar("S", bound="Said")
    N = TypeVar("N")


class Says:
    """What one layer says of one name: one of these numbers."""

    ABSENT: Final = 0
    WHITEOUT: Final = 1
    FILE: Final = 2
    DIR: Final = 3
    OPAQUE_DIR: Final = 4


class Said(Protocol):
    """Anything that carries a layer's answer."""

    @property
    def says(self) -> int: ...


def resolve(answers: Iterable[S]) -> list[S]:
    """The answers that make up the name, topmost first; empty: the name does not exist.

    A file hides all beneath it. Directories merge down to the first opaque
    directory, whiteout or file. ``answers`` is not read further than needed.
    """
    stack: list[S] = []
    for answer in answers:
        says = answer.says
        if says == Says.ABSENT:
            continue
        if says == Says.WHITEOUT:
            break
        if says == Says.FILE:
            if not stack:
                stack.append(answer)
            break
        stack.append(answer)
        if says == Says.OPAQUE_DIR:
            break
    return stack


def merge(listings: Iterable[Iterable[tuple[bytes, int, N]]]) -> dict[bytes, tuple[int, N]]:
    """Every name that some layer mentions, with the answer of the topmost that does.

    That answer decides whether ``resolve`` finds the name and of what type, so
    nothing beneath it is looked at. Whiteouts stay in the result: a caller that
    creates a name must know that one lies there.
    """
    merged: dict[bytes, tuple[int, N]] = {}
    for listing in listings:
        for name, says, note in listing:
            if name not in merged:
                merged[name] = (says, note)
    return merged
