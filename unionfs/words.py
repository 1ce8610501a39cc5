"""Plain command lines, read without a parser: argparse takes longer to load than all the rest."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any


class Arguments:
    """What a command line says, as a parser's namespace would."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def split(
    words: Sequence[str],
    switches: Mapping[str, str],
    values: Mapping[str, str],
    repeated: Collection[str] = (),
) -> tuple[list[str], dict[str, Any]] | None:
    """Places, and what the options set; None: there is a word that a parser has to see.

    ``switches`` and ``values`` are the options without and with a value, by what they set;
    ``repeated`` is what becomes a list.
    """
    places: list[str] = []
    found: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            places.append(word)
        elif word in switches:
            found[switches[word]] = True
        else:
            name, value = values.get(word), next(rest, "-")
            if name is None or value.startswith("-"):
                return None
            if name in repeated:
                found.setdefault(name, []).append(value)
            else:
                found[name] = value
    return places, found
