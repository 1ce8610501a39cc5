"""``pyunion setup mount``: the program that mount(8) runs for the type ``fuse.pyunion``.

It is a script of sh that names the interpreter, and the folder of this package
where the interpreter alone would not find it, by absolute path: mount(8) and
systemd start helpers with an empty environment. A file that is not ours is
never replaced or removed.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import subprocess
import sys
import tempfile

from unionfs.errors import UserError

HELPER = "sbin/mount.fuse.pyunion"
_MARK = "# Made by: pyunion setup mount"
_CALL = (
    "import sys; {path}from unionfs import codecache; codecache.use();"
    " from unionfs.cli.main import mount_helper; sys.exit(mount_helper())"
)


def script() -> str:
    """The helper, for this interpreter and this package.

    Raises:
        UserError: the interpreter's place is not known.
    """
    if not sys.executable:
        raise UserError("the path of the Python interpreter is not known")
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
    path = "" if _finds_package(root) else f"sys.path.insert(0, {root!r}); "
    call = _CALL.format(path=path)
    # -I: the environment and the current directory of whoever mounts are not ours to trust.
    words = ["exec", sys.executable, "-I", "-c", call]
    return f'#!/bin/sh\n{_MARK}\n{shlex.join(words)} "$@"\n'


def _finds_package(root: str) -> bool:
    """Whether the interpreter, told nothing, imports the package below ``root``."""
    ask = "import unionfs; print(unionfs.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", ask],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    found = os.path.realpath(os.fsdecode(done.stdout.strip()))
    return done.returncode == 0 and found == os.path.join(root, "unionfs", "__init__.py")


def install_helper(prefix: str) -> int:
    """Install or renew the helper below ``prefix``; the exit code.

    Raises:
        UserError: not allowed, or a foreign file stands there.
    """
    path = os.path.join(os.path.abspath(prefix), HELPER)
    text = script()
    try:
        present = _ours(path)
        if present == text and os.stat(path).st_mode & 0o777 == 0o755:
            print(f"{path} is installed already")
            return 0
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write(path, text, replace=present is not None)
    except FileExistsError:
        raise _foreign(path) from None
    except OSError as error:
        raise _refused(path, error) from None
    print(f"installed {path}")
    for risk in _writable_by_others():
        sys.stderr.write(f"pyunion: warning: {risk} is not root's, but mount(8) will run it\n")
    return 0


def remove_helper(prefix: str) -> int:
    """Remove the helper below ``prefix``; the exit code.

    Raises:
        UserError: not allowed, or it is not ours.
    """
    path = os.path.join(os.path.abspath(prefix), HELPER)
    try:
        if _ours(path) is None:
            print(f"{path} is not installed")
            return 0
        os.unlink(path)
    except OSError as error:
        raise _refused(path, error) from None
    print(f"removed {path}")
    return 0


def _ours(path: str) -> str | None:
    """The text of the helper at ``path``; None if nothing is there."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise _foreign(path)
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except FileNotFoundError:
        return None
    if not text.startswith(f"#!/bin/sh\n{_MARK}\n"):
        raise _foreign(path)
    return text


def _write(path: str, text: str, *, replace: bool) -> None:
    """Write all or nothing; without ``replace``, FileExistsError if something is there."""
    fd, temporary = tempfile.mkstemp(prefix=".mount.fuse.pyunion.", dir=os.path.dirname(path))
    try:
        with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o755)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.rename(temporary, path)
        else:
            # link(2), for it replaces nothing that has appeared since we looked.
            os.link(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _writable_by_others() -> list[str]:
    """What the helper runs though another user than root could change it."""
    found = []
    for path in (os.path.realpath(sys.executable), os.path.realpath(os.path.dirname(__file__))):
        while path not in found:
            status = os.stat(path)
            sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
            if status.st_uid != 0 or (status.st_mode & 0o002 and not sticky):
                found.append(path)
                break
            if path == "/":
                break
            path = os.path.dirname(path)
    return found


def _foreign(path: str) -> UserError:
    return UserError(f"{path} is not made by pyunion", "move it away, or give another --prefix")


def _refused(path: str, error: OSError) -> UserError:
    hint = "run this as root" if isinstance(error, PermissionError) and os.geteuid() else ""
    return UserError(f"{path}: {error.strerror}", hint)
