"""Mount options: the ``-o`` words of fuse-overlayfs's contract, parsed and checked.

See docs/formats.md, "The mount_program contract".
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs.errors import UserError
from unionfs.record import Record
from unionfs.sys import calls
from unionfs.sys.mountinfo import read_mounts
from unionfs.types import IdMap, Options

#: Words that mean nothing to us and need no remark.
_IGNORED = frozenset(
    {
        "rw", "async", "auto", "noauto", "user", "nouser", "users", "defaults", "_netdev",
        "default_permissions", "private", "max_write", "threaded", "xino", "ino32_t", "fast_ino",
        "plugins", "context", "relatime", "norelatime", "diratime", "nodiratime", "nofail",
        "userxattr", "metacopy", "nfs_export", "uuid", "intr", "x-systemd.automount",
    }
)  # fmt: skip


class MountOptions(Record):
    """Everything that mounting needs, before any file is touched.

    ``union`` holds what the union itself is told; ``unknown`` the words not understood.
    ``busy_poll`` is in microseconds.
    """

    union: Options
    mountpoint: str
    engine: str = "auto"
    allow_other: bool | None = None
    allow_root: bool = False
    suid: bool | None = None
    dev: bool = False
    noexec: bool = False
    atime: bool = False
    fsname: str | None = None
    subtype: str = "pyunion"
    debug: bool = False
    foreground: bool = False
    trace: str | None = None
    acl: bool = True
    busy_poll: int = 100
    passthrough: bool = False
    second_root: bool = True
    unknown: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()


def split_escaped(text: str, separator: str, *, quotes: bool = False) -> list[str]:
    """Split at ``separator``, except where ``\\`` precedes it or (``quotes``) inside ``"…"``.

    ``\\`` before the separator is removed, before anything else it stays.
    """
    parts = [""]
    quoted = False
    index = 0
    while index < len(text):
        char = text[index]
        if char == "\\" and index + 1 < len(text) and text[index + 1] in (separator, "\\"):
            parts[-1] += text[index + 1] if text[index + 1] == separator else "\\\\"
            index += 2
            continue
        if quotes and char == '"':
            quoted = not quoted
        elif char == separator and not quoted:
            parts.append("")
            index += 1
            continue
        parts[-1] += char
        index += 1
    return parts


def split_layers(text: str) -> list[str]:
    """``lowerdir``'s value: paths separated by ``:``; ``\\:`` is a colon, ``\\\\`` a backslash."""
    parts = [""]
    index = 0
    while index < len(text):
        char = text[index]
        if char == "\\" and index + 1 < len(text) and text[index + 1] in ":\\,":
            parts[-1] += text[index + 1]
            index += 2
            continue
        if char == ":":
            parts.append("")
        else:
            parts[-1] += char
        index += 1
    return [part for part in parts if part]


def _plain(text: str) -> str:
    """A single path of an option, its ``\\:`` and ``\\\\`` undone."""
    return "\\".join(part.replace("\\:", ":") for part in text.split("\\\\"))


def _number(word: str, value: str, convert: type[int] | type[float]) -> float:
    try:
        return convert(value)
    except ValueError:
        raise UserError(f"{word}={value}: not a number") from None


def _id(word: str, value: str) -> int:
    number = int(_number(word, value, int))
    if not 0 <= number < 0xFFFFFFFF:
        raise UserError(f"{word}={value}: not a user or group id")
    return number


def _id_map(word: str, value: str) -> IdMap:
    fields = [part for part in value.split(":") if part]
    try:
        numbers = [int(part) for part in fields]
    except ValueError:
        numbers = [0]
    if not numbers or len(numbers) % 3 or not all(0 <= number < 1 << 32 for number in numbers):
        raise UserError(f"{word}={value}: not triples of container:host:count")
    triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return IdMap(tuple(triples))


def parse_words(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """All ``-o`` arguments as word -> value (empty for a bare word), and the order of words."""
    values: dict[str, str] = {}
    order = []
    for argument in words:
        for part in split_escaped(argument, ",", quotes=True):
            word, _, value = part.partition("=")
            if part:
                values[word] = value
                order.append(word)
    return values, order


def build(
    words: list[str],
    *,
    lowers: list[str],
    upper: str | None,
    work: str | None,
    mountpoint: str,
) -> MountOptions:
    """Mount options from the ``-o`` arguments and the positional layers.

    Raises:
        UserError: a value that cannot be understood, or no lower.
    """
    values, order = parse_words(words)
    if "lowerdir" in values:
        lowers = split_layers(values["lowerdir"])
    if "upperdir" in values:
        upper = _plain(values["upperdir"])
    if "workdir" in values:
        work = _plain(values["workdir"])
    if not lowers:
        raise UserError("no lower directory", "pyunion mount LOWER[:LOWER...] [UPPER] MNT")
    union = Options(
        lowers=tuple(os.fsencode(path) for path in lowers),
        upper=os.fsencode(upper) if upper is not None else None,
        work=os.fsencode(work) if work is not None else None,
        redirect_dir=_default_redirect(),
    )
    options = MountOptions(union, mountpoint)
    unknown = []
    for word in order:
        changed = _apply(options, word, values[word])
        if changed is None:
            unknown.append(f"{word}={values[word]}" if values[word] else word)
        else:
            options = changed
    return options.replace(unknown=tuple(unknown))


def _default_redirect() -> str:
    """Redirects need trusted xattrs to be understood by overlayfs; without them, copies."""
    return "on" if calls.has_sys_admin() and calls.in_initial_user_namespace() else "copy"


def _apply(options: MountOptions, word: str, value: str) -> MountOptions | None:
    """The options with one word more; None: not known."""
    union = options.union
    match word:
        case "lowerdir" | "upperdir" | "workdir":
            return options
        case "ro":
            return options.replace(union=union.replace(read_only=True))
        case "volatile":
            return options.replace(union=union.replace(volatile=True))
        case "fsync":
            return options.replace(union=union.replace(volatile=value == "0"))
        case "redirect_dir":
            if value not in ("on", "off", "copy", "follow", "nofollow"):
                raise UserError(f"redirect_dir={value}: expected copy or on")
            mode = "on" if value == "on" else "copy"
            return options.replace(union=union.replace(redirect_dir=mode))
        case "index":
            if value not in ("on", "off"):
                raise UserError(f"index={value}: expected on or off")
            return options.replace(union=union.replace(index=value == "on"))
        case "copyup":
            if value not in ("open", "write"):
                raise UserError(f"copyup={value}: expected open or write")
            return options.replace(union=union.replace(copyup_at_open=value == "open"))
        case "timeout":
            seconds = _number(word, value, float)
            if not seconds >= 0:
                raise UserError("timeout: expected seconds, 0 or more")
            trusted = seconds if seconds < 1 << 32 else None
            return options.replace(union=union.replace(timeout=trusted))
        case "busy_poll":
            micros = int(_number(word, value, int))
            if not 0 <= micros <= 10_000:
                raise UserError("busy_poll: expected microseconds, 0 to 10000")
            return options.replace(busy_poll=micros)
        case "passthrough":
            return options.replace(passthrough=value != "0")
        case "writeback":
            return options.replace(union=union.replace(writeback=value != "0"))
        case "noacl":
            return options.replace(acl=False, union=union.replace(noacl=True))
        case "noxattrs":
            return options.replace(union=union.replace(noxattrs=value != "0"))
        case "static_nlink":
            return options.replace(union=union.replace(static_nlink=value != "0"))
        case "squash_to_root":
            if value == "0":
                return options
            return options.replace(union=union.replace(squash_uid=0, squash_gid=0))
        case "squash_to_uid":
            return options.replace(union=union.replace(squash_uid=_id(word, value)))
        case "squash_to_gid":
            return options.replace(union=union.replace(squash_gid=_id(word, value)))
        case "uidmapping":
            return options.replace(union=union.replace(uid_map=_id_map(word, value)))
        case "gidmapping":
            return options.replace(union=union.replace(gid_map=_id_map(word, value)))
        case "xattr_permissions":
            level = int(_number(word, value, int))
            if level not in (0, 1, 2):
                raise UserError(f"xattr_permissions={value}: expected 0, 1 or 2")
            return options.replace(union=union.replace(xattr_permissions=level))
        case "suid" | "nosuid":
            return options.replace(suid=word == "suid")
        case "dev" | "nodev":
            return options.replace(dev=word == "dev")
        case "exec" | "noexec":
            return options.replace(noexec=word == "noexec")
        case "atime" | "noatime":
            return options.replace(atime=word == "atime")
        case "allow_other":
            return options.replace(allow_other=True)
        case "allow_root":
            return options.replace(allow_root=True)
        case "fsname":
            return options.replace(fsname=value)
        case "subtype":
            if not value:
                raise UserError("subtype=: expected a name")
            return options.replace(subtype=value)
        case "debug":
            return options.replace(debug=True)
        case "engine":
            if value not in ("auto", "direct", "pyfuse3"):
                raise UserError(f"engine={value}: expected auto, direct or pyfuse3")
            return options.replace(engine=value)
    return options if word in _IGNORED or word.startswith("x-") else None


# -- checks that look at the filesystem ------------------------------------------


def _is_inside(inner: bytes, outer: bytes) -> bool:
    return inner == outer or inner.startswith(outer.rstrip(b"/") + b"/")


def _directory(path: bytes, what: str) -> bytes:
    if not path:
        raise UserError(f"{what}: an empty path")
    real = os.path.realpath(path)
    try:
        mode = os.stat(real).st_mode
    except OSError as error:
        hint = "create it first" if what != "lower" else ""
        if error.errno == errno.ENOTCONN:
            hint = f"a dead FUSE mount is there: umount -l {os.fsdecode(path)}"
        raise UserError(f"{what} {os.fsdecode(path)}: {error.strerror}", hint) from None
    if not stat.S_ISDIR(mode):
        raise UserError(f"{what} {os.fsdecode(path)}: not a directory")
    return real


def _lower(path: bytes) -> bytes:
    """A lower's real path: a directory, or a file, which ``open_union`` may know to open."""
    return os.path.realpath(path) if os.path.isfile(path) else _directory(path, "lower")


def check(options: MountOptions) -> MountOptions:
    """The same options with absolute paths, after every check that needs no lock.

    Raises:
        UserError: one line and a hint.
    """
    union = options.union
    _check_passthrough(options)
    lowers = tuple(_lower(path) for path in union.lowers)
    mountpoint = options.mountpoint
    if not mountpoint.startswith("/dev/fd/"):
        mountpoint = os.fsdecode(_directory(os.fsencode(mountpoint), "mount point"))
        _check_not_mounted(mountpoint)
    if union.upper is None:
        if union.work is not None:
            raise UserError("a work directory without an upper", "give upperdir= as well")
        union = union.replace(lowers=lowers, read_only=True, mountpoint=os.fsencode(mountpoint))
        return options.replace(union=union, mountpoint=mountpoint)
    upper = _directory(union.upper, "upper")
    work = _work_directory(upper, union.work)
    for lower in lowers:
        if lower == upper:
            raise UserError(f"upper and lower are the same directory: {os.fsdecode(upper)}")
        if _is_inside(lower, upper):
            raise UserError(
                f"lower {os.fsdecode(lower)} lies inside the upper {os.fsdecode(upper)}"
            )
        if _is_inside(lower, work):
            raise UserError(
                f"lower {os.fsdecode(lower)} lies inside the work directory {os.fsdecode(work)}"
            )
    if _is_inside(work, upper):
        raise UserError(
            f"work directory {os.fsdecode(work)} lies inside the upper",
            "give a directory beside it with --work",
        )
    if _is_inside(upper, work):
        raise UserError(f"upper {os.fsdecode(upper)} lies inside the work directory")
    union = union.replace(lowers=lowers, upper=upper, work=work, mountpoint=os.fsencode(mountpoint))
    return options.replace(union=union, mountpoint=mountpoint)


def _check_passthrough(options: MountOptions) -> None:
    if not options.passthrough:
        return
    if options.union.writeback:
        raise UserError("passthrough and writeback exclude each other", "give one of them")
    if options.engine == "pyfuse3":
        raise UserError("passthrough needs the direct engine", "leave --engine out")
    if not (calls.has_sys_admin() and calls.in_initial_user_namespace()):
        raise UserError(
            "passthrough needs root outside of user namespaces", "leave -o passthrough out"
        )


def _check_not_mounted(mountpoint: str) -> None:
    path = os.fsencode(mountpoint)
    for mount in read_mounts():
        if mount.mount_point == path and mount.fstype == b"fuse.pyunion":
            raise UserError(
                f"mount point {mountpoint} is busy: a union is mounted there",
                f"pyunion umount {mountpoint}",
            )


def _work_directory(upper: bytes, work: bytes | None) -> bytes:
    hint = "give an empty directory on the same filesystem with --work"
    if os.statvfs(upper).f_flag & os.ST_RDONLY:
        raise UserError(f"upper {os.fsdecode(upper)} is on a read-only filesystem")
    if not os.access(upper, os.W_OK | os.X_OK):
        raise UserError(f"upper {os.fsdecode(upper)} is not writable")
    if work is None:
        work = upper.rstrip(b"/") + b".work"
        parent = os.path.dirname(work) or b"/"
        if os.stat(parent).st_dev != os.stat(upper).st_dev:
            raise UserError(
                f"the place beside the upper ({os.fsdecode(work)}) is on another filesystem", hint
            )
        if not os.path.isdir(work):
            try:
                os.mkdir(work, 0o700)
            except OSError as error:
                raise UserError(
                    f"work directory {os.fsdecode(work)}: {error.strerror}", hint
                ) from None
    real = _directory(work, "work directory")
    if os.stat(real).st_dev != os.stat(upper).st_dev:
        raise UserError(
            f"upper {os.fsdecode(upper)} and work directory {os.fsdecode(real)}"
            " are on different filesystems",
            hint,
        )
    mounts = {calls.statx(-100, path).mount_id for path in (upper, real)}
    if len(mounts) > 1:
        raise UserError(
            f"upper {os.fsdecode(upper)} and work directory {os.fsdecode(real)}"
            " are on different mounts of one filesystem, and nothing can be moved between those",
            hint,
        )
    if not os.access(real, os.W_OK | os.X_OK):
        raise UserError(f"work directory {os.fsdecode(real)} is not writable", hint)
    return real
