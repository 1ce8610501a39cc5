"""Profiles as people have them in files, made an OCI ``linux.seccomp`` section.

docker's and podman's own profiles are one file for all containers: an entry may hold for some
capabilities, architectures and kernels alone (``includes``, ``excludes``), and ``archMap`` lists
architectures by machine. Here it is decided which entries hold; what is not understood is an
error, because an entry that is passed over may be the one that refuses.
"""

from __future__ import annotations

import errno

from runtime.errors import RunError
from runtime.sys.syscalls import NATIVE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Names of machines in such files (Go's GOARCH) by ``uname -m``.
_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
_CONDITIONS = frozenset({"caps", "arches", "minKernel"})


class Situation:
    """What entries may depend on: capabilities as ``CAP_X``, ``uname -m``, and the kernel."""

    def __init__(self, capabilities: tuple[str, ...], machine: str, release: str) -> None:
        self.capabilities = capabilities
        self.machine = machine
        self.kernel = _kernel(release)


def _wrong(what: str) -> RunError:
    return RunError(f"seccomp profile: {what}")


def _kernel(text: object) -> tuple[int, int]:
    """(6, 1) of ``6.1.0-13-amd64`` or ``6.1``."""
    words = str(text).split("-")[0].split(".")
    try:
        return int(words[0]), int(words[1])
    except (ValueError, IndexError):
        raise _wrong(f"minKernel {text} is not a version") from None


def _texts(value: object, what: str) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(f"{what} is not a list of texts")
    return value


def _conditions(entry: dict[str, Any], name: str) -> dict[str, Any]:
    found = entry.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict) or set(found) - _CONDITIONS:
        raise _wrong(f"{name} not understood: {found}")
    return found


def _holds(entry: dict[str, Any], here: Situation) -> bool:
    """All of ``includes`` and none of ``excludes``."""
    arch = _NAMES.get(here.machine, here.machine)
    include, exclude = _conditions(entry, "includes"), _conditions(entry, "excludes")
    wanted = _texts(include.get("caps"), "includes.caps")
    unwanted = _texts(exclude.get("caps"), "excludes.caps")
    arches = _texts(include.get("arches"), "includes.arches")
    if not set(wanted) <= set(here.capabilities) or set(unwanted) & set(here.capabilities):
        return False
    if (arches and arch not in arches) or arch in _texts(exclude.get("arches"), "excludes.arches"):
        return False
    if include.get("minKernel") and here.kernel < _kernel(include["minKernel"]):
        return False
    return not (exclude.get("minKernel") and here.kernel >= _kernel(exclude["minKernel"]))


def _number(entry: dict[str, Any], number: str, name: str) -> Any:
    """The error number, which podman's files also give by name."""
    word = entry.get(name)
    if word is None or word == "":
        return entry.get(number)
    found = getattr(errno, word, None) if isinstance(word, str) and word.isupper() else None
    if not isinstance(found, int):
        raise _wrong(f"{name} {word!r} is not the name of an error")
    return found


def _entry(entry: object, here: Situation) -> dict[str, Any] | None:
    if not isinstance(entry, dict):
        raise _wrong(f"not an entry: {entry}")
    names = _texts(entry.get("names"), "names")
    if entry.get("name"):
        names = [*names, *_texts([entry["name"]], "name")]
    if not names:
        raise _wrong(f"an entry without names: {entry}")
    args = entry.get("args") or []
    if not isinstance(args, list) or not all(isinstance(item, dict) for item in args):
        raise _wrong(f"args is not a list of objects: {args}")
    for key in ("value", "valueTwo"):
        if not all(isinstance(item.get(key, 0), int) for item in args):
            raise _wrong(f"condition not understood: {args}")
    if not _holds(entry, here):
        return None
    result = {"names": names, "action": entry.get("action", ""), "args": args}
    told = _number(entry, "errnoRet", "errno")
    return result if told is None else {**result, "errnoRet": told}


def _architectures(profile: dict[str, Any], machine: str) -> list[str]:
    listed = _texts(profile.get("architectures"), "architectures")
    known = profile.get("archMap")
    if not known:
        return listed
    if listed:
        raise _wrong("both architectures and archMap")
    if not isinstance(known, list) or not all(isinstance(item, dict) for item in known):
        raise _wrong("archMap is not a list of objects")
    for item in known:
        if item.get("architecture") == NATIVE[machine][0]:
            return [NATIVE[machine][0], *_texts(item.get("subArchitectures"), "subArchitectures")]
    return [NATIVE[machine][0]]


def section(profile: object, here: Situation) -> dict[str, Any]:
    """The OCI section of a profile from a file, for one container.

    Raises:
        RunError: something in it is not understood.
    """
    if not isinstance(profile, dict):
        raise _wrong("not a JSON object")
    entries = profile.get("syscalls") or []
    if not isinstance(entries, list):
        raise _wrong("syscalls is not a list")
    found = [_entry(entry, here) for entry in entries]
    result: dict[str, Any] = {
        "defaultAction": profile.get("defaultAction", ""),
        "syscalls": [entry for entry in found if entry is not None],
    }
    default = _number(profile, "defaultErrnoRet", "defaultErrno")
    if default is not None:
        result["defaultErrnoRet"] = default
    if here.machine in NATIVE:
        result["architectures"] = _architectures(profile, here.machine)
    return result
