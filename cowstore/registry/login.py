"""Keeping and forgetting credentials, in the file that docker, podman and skopeo read too.

Source: containers-auth.json(5). The file is 0600 and written whole or not at all; what else is in
it stays. A password comes from standard input or a prompt, never from an argument.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from cowstore.errors import StoreError
from cowstore.registry.auth import Credentials, own_file
from cowstore.registry.client import Registry


def login(
    host: str, user: str, password: str, *, authfile: str | None = None, insecure: bool = False
) -> str:
    """Try credentials at a registry, and keep them if it takes them; the file's path.

    Raises:
        StoreError: refused, not to be reached, or the file cannot be written.
    """
    if not user or ":" in user or not password:
        raise StoreError("a user (without ':' in it) and a password are needed")
    credentials = Credentials(user, password)
    with contextlib.closing(Registry(host, insecure=insecure)) as registry:
        registry.check_credentials(credentials)
    path = own_file(authfile)
    with _changed(path) as document:
        auths = document.setdefault("auths", {})
        if not isinstance(auths, dict):
            raise StoreError(f"{path}: 'auths' is not an object")
        text = f"{user}:{password}".encode()
        auths[host] = {"auth": base64.b64encode(text).decode("ascii")}
    return path


def logout(host: str, *, authfile: str | None = None) -> str:
    """Forget what is kept for a registry; the file's path.

    Raises:
        StoreError: nothing is kept for it there, or the file cannot be written.
    """
    path = own_file(authfile)
    if not os.path.exists(path):
        raise StoreError(f"no credentials for {host} in {path}: there is no such file")
    with _changed(path) as document:
        auths = document.get("auths")
        if not isinstance(auths, dict) or host not in auths:
            raise StoreError(f"no credentials for {host} in {path}")
        del auths[host]
    return path


@contextlib.contextmanager
def _changed(path: str) -> Iterator[dict[str, Any]]:
    """The document in a file, to be changed; written when the block ends well."""
    from cowstore.locks import Lock

    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        # Two at a time would lose one's entry; the lock is not the file, which is replaced.
        lock = Lock.acquire(f"{path}.lock")
        assert lock is not None
        try:
            document = _read(path)
            yield document
            _write(path, document)
        finally:
            lock.release(remove=True)
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename else path
        raise StoreError(f"{where}: {error.strerror}") from None


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read() or b"{}")
    except FileNotFoundError:
        return {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StoreError(f"{path}: not a file of credentials", "--authfile names another")
    return found


def _write(path: str, document: dict[str, Any]) -> None:
    target = os.path.realpath(path)  # people keep it as a symlink into their dotfiles
    draft = f"{target}.{os.urandom(4).hex()}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            json.dump(document, file, indent="\t")
            file.write("\n")
            file.flush()
            os.fsync(fd)
        os.rename(draft, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        raise
