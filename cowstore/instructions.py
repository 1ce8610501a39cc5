"""Dockerfile instructions that change a configuration, as ``commit --change`` takes them.

Source: image-spec config.md; docker-commit(1). A value in JSON brackets is a list, anything else a
command for ``/bin/sh -c`` or a plain value, as the instruction has it.
"""

from __future__ import annotations

import json
import shlex
from typing import Any, Final

from cowstore.errors import StoreError

KNOWN: Final = (
    "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME",
    "WORKDIR",
)  # fmt: skip


def apply(config: dict[str, Any], instructions: tuple[str, ...]) -> None:
    """Change the ``config`` part of a configuration.

    Raises:
        StoreError: an instruction that is not known or not complete.
    """
    for line in instructions:
        word, _, rest = line.strip().partition(" ")
        word, rest = word.upper(), rest.strip()
        if word not in KNOWN or not rest:
            raise StoreError(f"{line!r}: not understood", f"one of {', '.join(KNOWN)}, and a value")
        _check_characters(word, rest)
        _apply(config, word, rest)


def _check_characters(word: str, text: str) -> None:
    """No value can have a NUL, and only those that are free text anything else that cannot be seen.

    Raises:
        StoreError: it has.
    """
    told = json.dumps(text)
    free = word in ("CMD", "ENTRYPOINT", "ENV", "LABEL", "ONBUILD")
    unseen = [char for char in text if char < " " or char == "\x7f"]
    if "\\u0000" in text or "\0" in text or (unseen and not free):
        raise StoreError(f"{word} {told}: a control character", "leave it out")


def _words(text: str) -> list[str]:
    """A JSON list of strings, or words as a shell splits them."""
    if text.startswith("["):
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise StoreError(f"{text}: not a list of strings")
        return found
    try:
        return shlex.split(text)
    except ValueError as error:
        raise StoreError(f"{text}: {error}") from None


def _command(text: str) -> list[str]:
    return _words(text) if text.startswith("[") else ["/bin/sh", "-c", text]


def _pairs(text: str) -> dict[str, str]:
    """``A=1 B=2``, or the old form ``A 1``."""
    words = _words(text)
    if words and words[0] and "=" not in words[0] and not text.startswith(("[", '"', "'")):
        key, _, value = text.partition(" ")
        if not value:
            raise StoreError(f"{text!r}: expected NAME=VALUE")
        return {key: value.strip()}
    if not words:
        raise StoreError(f"{text!r}: expected NAME=VALUE")
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise StoreError(f"{word!r}: expected NAME=VALUE")
        pairs[key] = value
    return pairs


def _apply(config: dict[str, Any], word: str, text: str) -> None:
    match word:
        case "CMD":
            config["Cmd"] = _command(text)
        case "ENTRYPOINT":
            config["Entrypoint"] = _command(text)
        case "ENV":
            set_environment(config, _pairs(text))
        case "LABEL":
            config["Labels"] = {**_table(config, "Labels"), **_pairs(text)}
        case "EXPOSE":
            ports: dict[str, Any] = {p if "/" in p else f"{p}/tcp": {} for p in _words(text)}
            config["ExposedPorts"] = {**_table(config, "ExposedPorts"), **ports}
        case "VOLUME":
            volumes: dict[str, Any] = {path: {} for path in _words(text)}
            config["Volumes"] = {**_table(config, "Volumes"), **volumes}
        case "WORKDIR":
            above = str(config.get("WorkingDir") or "/")
            config["WorkingDir"] = text if text.startswith("/") else f"{above.rstrip('/')}/{text}"
        case "ONBUILD":
            config["OnBuild"] = [*_list(config, "OnBuild"), text]
        case _:
            config["StopSignal" if word == "STOPSIGNAL" else "User"] = text


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    """What a stranger's configuration has there, if it is what belongs there."""
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def _list(config: dict[str, Any], key: str) -> list[Any]:
    found = config.get(key)
    return found if isinstance(found, list) else []


def set_environment(config: dict[str, Any], pairs: dict[str, str]) -> None:
    """Set variables of ``Env``, each in the place it had."""
    found: dict[str, str] = {}
    for item in _list(config, "Env"):
        key, _, value = str(item).partition("=")
        found[key] = value
    config["Env"] = [f"{key}={value}" for key, value in {**found, **pairs}.items()]
