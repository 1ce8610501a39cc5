"""Credentials for registries: from the files of docker and podman, never from arguments.

Sources: containers-auth.json(5); docker's config.json ("auths", "credHelpers", "credsStore").
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cowstore.errors import StoreError

_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")
_HELPER = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password, or an identity token."""

    user: str = ""
    password: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"<Credentials of {self.user or 'a token'}>"

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        text = f"{self.user}:{self.password}".encode()
        return "Basic " + base64.b64encode(text).decode("ascii")


def own_file(authfile: str | None) -> str:
    """Where ``login`` keeps credentials, as podman does: gone with the session unless it is named.

    Raises:
        StoreError: nowhere.
    """
    if authfile or (authfile := os.environ.get("REGISTRY_AUTH_FILE")):
        return authfile
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime, "containers/auth.json")
    if os.geteuid() == 0:
        return "/run/containers/0/auth.json"
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(config, "containers/auth.json")


def _files(authfile: str | None) -> Iterator[str]:
    yield own_file(authfile)
    if authfile is not None or os.environ.get("REGISTRY_AUTH_FILE"):
        return
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    yield os.path.join(config, "containers/auth.json")
    docker = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    yield os.path.join(docker, "config.json")


def find(host: str, repository: str, authfile: str | None = None) -> Credentials | None:
    """Credentials for a repository: of its longest prefix in the first file that has one.

    Raises:
        StoreError: a file was named and cannot be read.
    """
    for path in _files(authfile):
        try:
            with open(path, "rb") as file:
                document = json.load(file)
        except FileNotFoundError:
            if authfile is not None:
                raise StoreError(f"{path}: no such file") from None
            continue
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: {getattr(error, 'strerror', '') or 'not JSON'}") from None
        if isinstance(document, dict):
            found = _look_up(document, host, repository)
            if found is not None:
                return found
    return None


def _keys(host: str, repository: str) -> Iterator[str]:
    """What the entry may be called, the most particular first."""
    for name in (host, *(_DOCKER_HUB if host in _DOCKER_HUB else ())):
        parts = repository.split("/")
        for count in range(len(parts), 0, -1):
            yield "/".join((name, *parts[:count]))
        yield name
    if host in _DOCKER_HUB:
        yield "index.docker.io/v1/"


def _look_up(document: dict[str, Any], host: str, repository: str) -> Credentials | None:
    helpers = document.get("credHelpers")
    auths = document.get("auths")
    plain: dict[str, Any] = {}
    if isinstance(auths, dict):
        for key, value in auths.items():
            plain[re.sub(r"^https?://", "", key)] = value
    for key in _keys(host, repository):
        helper = helpers.get(key) if isinstance(helpers, dict) else None
        if isinstance(helper, str):
            return _ask_helper(helper, key)
        entry = plain.get(key)
        if isinstance(entry, dict) and (found := _decode(entry)):
            return found
    store = document.get("credsStore")
    return _ask_helper(store, host) if isinstance(store, str) and host in plain else None


def _decode(entry: dict[str, Any]) -> Credentials | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials(token=token)
    text = entry.get("auth")
    if isinstance(text, str) and text:
        try:
            user, _, password = base64.b64decode(text).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise StoreError("the credentials file has an entry that is not base64") from None
        return Credentials(user, password.rstrip("\0"))
    return None


def _ask_helper(name: str, server: str) -> Credentials | None:
    """Run ``docker-credential-NAME get`` (docker's credential helper protocol)."""
    if not _HELPER.fullmatch(name):
        raise StoreError(f"{name!r}: not the name of a credential helper")
    try:
        done = subprocess.run(
            [f"docker-credential-{name}", "get"],
            input=server.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    user, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(user, str) or not isinstance(secret, str):
        return None
    return Credentials(token=secret) if user == "<token>" else Credentials(user, secret)
