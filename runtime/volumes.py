"""Volumes: ``-v``, ``--mount``, ``--tmpfs`` and ``--device`` as OCI mounts and devices."""

from __future__ import annotations

import os
import stat

from runtime.errors import RunError
from unionfs.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
_PROPAGATIONS = ("private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable")
_PLAIN = frozenset(
    {"ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "bind", "rbind", "noatime",
     "relatime", "strictatime", "nodiratime", "nosymfollow", "copy", "nocopy", *_PROPAGATIONS}
)  # fmt: skip
_HEX = frozenset("0123456789abcdef")
_ANONYMOUS = 32  # digits of its first container's id
_LABELS = frozenset({"z", "Z"})  # SELinux relabelling; nothing to do where it is off


class Volume(Record):
    """One mount of the user's.

    ``kind`` is bind, volume or tmpfs; ``source`` a host path, a volume's name (empty: a new,
    anonymous one) or nothing.
    """

    kind: str
    source: str
    target: str
    options: tuple[str, ...] = ()


def is_name(text: str) -> bool:
    """Whether ``text`` can name a volume or container: [a-zA-Z0-9][a-zA-Z0-9_.-]*."""
    return bool(text) and text[0].isalnum() and text[0].isascii() and set(text) <= _NAME


def _target(text: str, what: str) -> str:
    if not text.startswith("/"):
        raise RunError(f"{what}: {text or 'no path'}: not an absolute path in the container")
    path = os.path.normpath(text)
    if path in ("/", "//"):
        raise RunError(f"{what}: the container's root cannot be mounted over")
    return path


def _options(words: list[str], what: str) -> tuple[str, ...]:
    chosen = []
    for word in words:
        if word in _PLAIN:
            chosen.append(word)
        elif word in ("U", "idmap"):
            raise RunError(
                f"{what}: option {word} is not needed here",
                "ids are translated by the mapping: see --userns keep-id",
            )
        elif word not in _LABELS and word:
            raise RunError(f"{what}: unknown option {word}")
    return tuple(chosen)


def parse_volume(text: str) -> Volume:
    """``-v [SRC:]DST[:OPTIONS]``.

    Raises:
        RunError: not understood.
    """
    what = f"volume {text}"
    parts = text.split(":")
    if len(parts) > 3:
        raise RunError(f"{what}: too many colons", "for paths with colons use --mount")
    if len(parts) == 1:
        return Volume(kind="volume", source="", target=_target(parts[0], what))
    options = _options(parts[2].split(","), what) if len(parts) == 3 else ()
    source, target = parts[0], _target(parts[1], what)
    if source.startswith(("/", "./", "../")) or source in (".", ".."):
        path = os.path.abspath(source)
        return Volume(kind="bind", source=path, target=target, options=options)
    if not is_name(source):
        raise RunError(
            f"{what}: {source or 'an empty text'} is neither a path nor a volume's name",
            "a host path begins with / or ./",
        )
    return Volume(kind="volume", source=source, target=target, options=options)


_KERNELS = ("/proc", "/sys", "/dev")


def image_volume(text: str) -> Volume:
    """A place that an image wants a volume on: a path and nothing else, whatever it looks like.

    Raises:
        RunError: no path, or one where a container has the kernel's own filesystems.
    """
    what = f"the image's volume {text!r}"
    target = _target(text, what)
    if target in _KERNELS or target.startswith(tuple(f"{place}/" for place in _KERNELS)):
        raise RunError(f"{what}: lies where the kernel's filesystems are")
    return Volume(kind="volume", source="", target=target)


def is_anonymous(name: str) -> bool:
    """Whether a volume's name is one that ``anonymous_name`` gave."""
    head, dash, tail = name.partition("-")
    digits = tail.isascii() and tail.isdigit()
    return len(head) == _ANONYMOUS and not set(head) - _HEX and bool(dash) and digits


def anonymous_name(container: str, index: int) -> str:
    """The name of a container's volume that nobody has named."""
    return f"{container[:_ANONYMOUS]}-{index}"


def parse_mount(text: str) -> Volume:
    """``--mount type=bind|volume|tmpfs,src=...,dst=...[,ro][,OPTION]``.

    Raises:
        RunError: not understood.
    """
    from runtime.values import boolean

    what = f"mount {text}"
    kind, source, target = "volume", "", ""
    words: list[str] = []
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if key == "type":
            kind = value
        elif key in ("src", "source"):
            source = value
        elif key in ("dst", "destination", "target"):
            target = value
        elif key in ("ro", "readonly"):
            words.append("ro" if not equals or boolean(value, f"{what}: {key}") else "rw")
        elif key in ("bind-propagation", "relabel"):
            words.append(value if key != "relabel" else "z")
        elif key in ("tmpfs-size", "tmpfs-mode") and kind == "tmpfs":
            words.append(f"{key.removeprefix('tmpfs-')}={value}")
        elif not equals:
            words.append(key)
        else:
            raise RunError(f"{what}: unknown key {key}")
    target = _target(target, what)
    if kind == "tmpfs":
        return Volume(kind=kind, source="", target=target, options=_tmpfs_options(words, what))
    options = _options(words, what)
    if kind == "bind":
        if not source:
            raise RunError(f"{what}: no src=")
        return Volume(kind=kind, source=os.path.abspath(source), target=target, options=options)
    if kind != "volume":
        raise RunError(f"{what}: type {kind} is not known", "expected bind, volume or tmpfs")
    if source and not is_name(source):
        raise RunError(f"{what}: {source} is not a volume's name")
    return Volume(kind=kind, source=source, target=target, options=options)


def _tmpfs_options(words: list[str], what: str) -> tuple[str, ...]:
    from runtime.values import size

    chosen = ["nosuid", "nodev"]
    for word in words:
        key, equals, value = word.partition("=")
        if key == "size":
            chosen.append(f"size={value if value.endswith('%') else size(value, what)}")
        elif (key in ("mode", "uid", "gid", "nr_inodes") and equals) or word in _PLAIN:
            chosen.append(word)
        elif word and word not in _LABELS and word != "tmpcopyup":
            raise RunError(f"{what}: unknown option {word}")
    return tuple(chosen)


def parse_tmpfs(text: str) -> Volume:
    """``--tmpfs DST[:OPTIONS]``.

    Raises:
        RunError: not understood.
    """
    target, _, options = text.partition(":")
    what = f"tmpfs {text}"
    words = options.split(",") if options else []
    return Volume(
        kind="tmpfs", source="", target=_target(target, what), options=_tmpfs_options(words, what)
    )


def oci_mount(volume: Volume, source: str) -> dict[str, Any]:
    """The OCI mount of a volume whose files are at ``source`` on the host."""
    options = [word for word in volume.options if word not in ("copy", "nocopy")]
    if volume.kind == "tmpfs":
        return {
            "destination": volume.target,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": options,
        }
    if volume.kind == "volume":
        from runtime.fill import is_marked

        if is_marked(source):
            options.append("touch" if "nocopy" in volume.options else "copy")
    if not {"bind", "rbind"} & set(options):
        options.insert(0, "rbind")
    if not set(_PROPAGATIONS) & set(options):
        options.append("rprivate")
    return {"destination": volume.target, "type": "bind", "source": source, "options": options}


def parse_device(text: str) -> tuple[str, str, str]:
    """``--device SRC[:DST][:rwm]`` as (host path, path in the container, access).

    Raises:
        RunError: no such device, or not understood.
    """
    parts = text.split(":")
    source = parts[0]
    access = parts.pop() if len(parts) > 1 and set(parts[-1]) <= set("rwm") and parts[-1] else "rwm"
    target = parts[1] if len(parts) > 1 else source
    if len(parts) > 2 or not source.startswith("/") or not target.startswith("/"):
        raise RunError(f"device {text}: not understood", "--device /dev/NAME[:/dev/NAME][:rwm]")
    try:
        mode = os.stat(source).st_mode
    except OSError as error:
        raise RunError(f"device {source}: {error.strerror}") from None
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        raise RunError(f"device {source}: not a device")
    return source, os.path.normpath(target), access
