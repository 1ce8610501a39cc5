"""The plain command lines of mounts; what is not plain goes to ``parser``."""

from __future__ import annotations

from unionfs.words import Arguments, split

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


def read(form: str, arguments: Sequence[str]) -> Arguments | None:
    """``places`` and the options of a command; None: it is for a parser to read."""
    switches, valued = _FORMS[form]
    told = split(arguments, switches, valued, ("words", "engine"))
    if told is None:
        return None
    places, said = told
    engines = said.pop("engine", [])
    if len(places) != _PLACES.get(form, len(places)) or not set(engines) <= set(_ENGINES):
        return None
    if engines:
        said["engine"] = engines[-1]
    found: dict[str, Any] = dict.fromkeys(switches.values(), False)
    found |= {name: [] if name == "words" else None for name in valued.values()}
    return Arguments(places=places, **found | said)
