"""Plain command lines, read without a parser: argparse takes longer to load than all the rest."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

#: Options without and with a value, by what they set; ``words`` may be repeated.
_CONTRACT: Final = {"-f": "foreground", "--foreground": "foreground", "-d": "debug",
                    "--debug": "debug"}  # fmt: skip
_FORMS: Final[dict[str, tuple[dict[str, str], dict[str, str]]]] = {
    "fuse-pyunion": (_CONTRACT, {"-o": "words"}),
    "mount.fuse.pyunion": (
        {"-s": "sloppy", "-f": "fake", "-n": "no_mtab", "-v": "verbose"},
        {"-N": "namespace", "-t": "fstype", "-o": "words"},
    ),
    "mount": (
        {**_CONTRACT, "--volatile": "volatile", "--allow-other": "allow_other",
         "--read-only": "read_only"},
        {"-o": "words", "--work": "work", "--trace": "trace", "--engine": "engine"},
    ),
    "umount": ({"-z": "lazy", "--lazy": "lazy"}, {}),
    "list": ({"--json": "json"}, {}),
    "stat": ({"--json": "json"}, {}),
}  # fmt: skip


#: How many places each form has.
_PLACES: Final = {"mount.fuse.pyunion": 2, "umount": 1, "list": 0, "stat": 1}
_ENGINES: Final = ("auto", "direct", "pyfuse3")


class Arguments:
    """What a command line says: ``places``, and a field for each option of its form."""

    def __init__(self, places: list[str], **values: Any) -> None:
        self.places = places
        self.__dict__.update(values)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


def read(form: str, arguments: Sequence[str]) -> Arguments | None:
    """The arguments of a command; None: there is something in them that a parser has to see."""
    if form not in _FORMS:
        return None
    switches, valued = _FORMS[form]
    found: dict[str, Any] = dict.fromkeys(switches.values(), False)
    found |= {name: [] if name == "words" else None for name in valued.values()}
    places = []
    rest = iter(arguments)
    for word in rest:
        if not word.startswith("-"):
            places.append(word)
        elif word in switches:
            found[switches[word]] = True
        else:
            name, value = valued.get(word), next(rest, "-")
            if name is None or value.startswith("-"):
                return None
            if name == "engine" and value not in _ENGINES:
                return None
            if name == "words":
                found[name].append(value)
            else:
                found[name] = value
    if len(places) != _PLACES.get(form, len(places)):
        return None
    return Arguments(places, **found)
