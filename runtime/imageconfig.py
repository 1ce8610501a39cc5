"""The ``config`` part of an image's configuration, checked at the door: images are of strangers.

What is let in has the types of image-spec's config.md, so nothing behind has to ask again.
"""

from __future__ import annotations

from runtime.errors import RunError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LISTS = ("Env", "Cmd", "Entrypoint")
_MAPPINGS = ("Volumes", "ExposedPorts", "Labels")
_TEXTS = ("User", "WorkingDir", "StopSignal")
_NUMBERS = ("Interval", "Timeout", "StartPeriod", "Retries")


def checked(part: object) -> dict[str, Any]:
    """The known fields of ``part``, which has been read from JSON; null ones are left out.

    Raises:
        RunError: a field of another type, or a text that no system call takes.
    """
    if part is None:
        return {}
    if not isinstance(part, dict):
        raise RunError("the image's configuration has a config that is not an object")
    found: dict[str, Any] = {}
    for name in (*_LISTS, *_MAPPINGS, *_TEXTS, "Healthcheck"):
        value = part.get(name)
        if value is None:
            continue
        if name in _LISTS:
            found[name] = _texts(value, name)
        elif name in _TEXTS:
            found[name] = _text(value, name)
        elif name == "Healthcheck":
            found[name] = _healthcheck(value)
        else:
            found[name] = _mapping(value, name)
    return found


def _wrong(name: str, wanted: str) -> RunError:
    return RunError(f"the image's configuration is wrong: {name} is not {wanted}")


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _wrong(name, "a text")
    try:
        if "\0" not in value:
            value.encode(errors="surrogateescape")
            return value
    except UnicodeEncodeError:
        pass
    raise _wrong(name, "a text that a system call takes")


def _texts(value: object, name: str) -> list[str]:
    if not isinstance(value, list):
        raise _wrong(name, "a list of texts")
    return [_text(item, name) for item in value]


def _mapping(value: object, name: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _wrong(name, "an object")
    return {
        _text(key, name): _text(item, name) if name == "Labels" else ""
        for key, item in value.items()
    }


def _healthcheck(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong("Healthcheck", "an object")
    found: dict[str, Any] = {}
    if value.get("Test") is not None:
        found["Test"] = _texts(value["Test"], "Healthcheck.Test")
    for name in _NUMBERS:
        number = value.get(name)
        if number is None:
            continue
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise _wrong(f"Healthcheck.{name}", "a number")
        found[name] = number
    return found
