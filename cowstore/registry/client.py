"""HTTP with one registry: requests, authentication, and what its answers mean.

Source: distribution-spec; Docker's "Token Authentication Specification". Certificates
are checked and nothing goes over plain HTTP unless ``insecure`` was asked for.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from cowstore import digest as digests
from cowstore import oci
from cowstore.errors import NotFound, Refused, StoreError
from cowstore.registry.auth import Credentials, find
from unionfs import __version__
from unionfs.errors import printable

_ACCEPT: Final = ", ".join((*oci.MANIFESTS, *oci.INDEXES))
_TRIES: Final = 4
_PIECE: Final = 1 << 18
_CHALLENGE = re.compile(r'([a-zA-Z_]+)="([^"]*)"')
_CERTIFICATES: Final = ("/etc/containers/certs.d", "/etc/docker/certs.d")


class Lost(Exception):
    """The connection broke, or the registry is overloaded: worth another try."""


class Answered(StoreError):
    """The registry says no; ``status`` is HTTP's."""

    def __init__(self, status: int, text: str, hint: str = "") -> None:
        super().__init__(text, hint)
        self.status = status


class Registry:
    """One host; good for many threads."""

    def __init__(self, host: str, *, insecure: bool = False, authfile: str | None = None) -> None:
        self.host = host
        self.insecure = insecure
        self.authfile = authfile
        server = "registry-1.docker.io" if host == "docker.io" else host
        self._server = server
        self._scheme = ""
        self._given: Credentials | None = None
        self._tokens: dict[str, str] = {}
        self._basic: dict[str, str] = {}
        self._lock = threading.Lock()
        self._tls = self._context()
        self._pool = urllib3.PoolManager(
            maxsize=16,
            retries=False,
            timeout=urllib3.Timeout(connect=20, read=60),
            headers={"User-Agent": f"cowstore/{__version__}"},
            ssl_context=self._tls,
        )

    def close(self) -> None:
        """Close the connections; urllib3 itself leaves that to the garbage collector."""
        pools = self._pool.pools
        for key in pools.keys():  # noqa: SIM118  (no plain mapping: it cannot be iterated)
            pools[key].close()
        self._pool.clear()

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for directory in _CERTIFICATES:
            path = os.path.join(directory, self._server, "ca.crt")
            if os.path.exists(path):
                context.load_verify_locations(path)
        return context

    # -- requests ------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        repository: str,
        *,
        actions: str = "pull",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        ok: tuple[int, ...] = (200,),
    ) -> urllib3.BaseHTTPResponse:
        """One request, with authentication and redirects; the body of the answer is not read yet.

        Raises:
            StoreError: refused, or not to be reached.
            NotFound: 404.
            Lost: worth another try from where the caller stands.
        """
        url = path if "://" in path else f"{self.base()}{path}"
        for attempt in range(3):
            response, place = self._send(method, url, repository, actions, headers, body)
            if response.status != 401 or attempt:
                break
            if _origin(place) != _origin(self.base()):
                # Credentials are the registry's: wherever it has sent us gets none of them.
                response.close()
                where = printable(urlsplit(place).netloc)
                raise Answered(401, f"registry {self.host} leads to {where}, which wants a login")
            challenge = response.headers.get("WWW-Authenticate", "")
            response.drain_conn()
            self._authenticate(challenge, repository, actions)
        if response.status in ok:
            return response
        raise self._error(response, method, repository)

    def base(self) -> str:
        """``SCHEME://HOST``, found out by knocking once.

        Raises:
            StoreError: nobody there, or no TLS and plain HTTP is not allowed.
        """
        with self._lock:
            if not self._scheme:
                problem = self._knock()
                if problem and not self.insecure:
                    hint = "--insecure allows plain HTTP and unknown certificates"
                    raise StoreError(f"registry {self.host}: {problem}", hint)
                self._scheme = "http" if problem else "https"
            return f"{self._scheme}://{self._server}"

    def _knock(self) -> str:
        """Why the other side does not speak TLS that we trust; empty: it does."""
        place = urlsplit(f"//{self._server}")
        try:
            where = (place.hostname or "", place.port or 443)
            with socket.create_connection(where, 20) as plain:
                try:
                    self._tls.wrap_socket(plain, server_hostname=place.hostname).close()
                except (ssl.SSLError, ConnectionError) as error:
                    return getattr(error, "verify_message", "") or str(error.strerror or error)
                return ""
        except OSError as error:
            if self.insecure and place.port is None:
                return str(error.strerror or error)  # perhaps at port 80
            raise StoreError(f"registry {self.host}: {error.strerror or error}") from None

    def _send(
        self,
        method: str,
        url: str,
        repository: str,
        actions: str,
        headers: Mapping[str, str] | None,
        body: bytes | None,
    ) -> tuple[urllib3.BaseHTTPResponse, str]:
        """(the answer, the URL that gave it)."""
        sent = dict(headers or {})
        for _ in range(6):
            parts = urlsplit(url)
            if parts.scheme != "https" and not self.insecure:
                raise StoreError(f"registry {self.host} leads to plain HTTP: {url}")
            if _origin(url) == _origin(self.base()):
                authorization = self._authorization(repository, actions)
                if authorization:
                    sent["Authorization"] = authorization
            else:
                sent.pop("Authorization", None)  # of no concern to where we are sent on
            try:
                response = self._pool.request(
                    method,
                    url,
                    headers={**self._pool.headers, **sent},
                    body=body,
                    redirect=False,
                    preload_content=False,
                )
            except HTTPError as error:
                raise Lost(f"registry {self.host}: {_short(error)}") from None
            if response.status not in (301, 302, 303, 307, 308):
                return response, url
            target = response.headers.get("Location", "")
            response.drain_conn()
            url = urljoin(url, target)
        raise StoreError(f"registry {self.host}: redirected too often")

    def _error(self, response: urllib3.BaseHTTPResponse, method: str, repository: str) -> Exception:
        told = ""
        try:
            document = json.loads(response.read(65536, decode_content=True))
            told = "; ".join(_messages(document))
        except (ValueError, RecursionError, HTTPError):
            pass
        finally:
            response.close()
            response.release_conn()
        parts = (f"registry {self.host}", repository, told or response.reason or "")
        text = printable(": ".join(part for part in parts if part)[:500])
        if response.status in (408, 429) or response.status >= 500:
            return Lost(f"{text} ({response.status})")
        if response.status == 404:
            return NotFound(text if told else f"{text} not found")
        if response.status in (401, 403):
            hint = f"cowstore login {self.host}, or --authfile"
            return Answered(response.status, f"{text} ({response.status})", hint)
        return Answered(response.status, f"{text} ({method}: {response.status})")

    # -- authentication -------------------------------------------------------------------

    def _authorization(self, repository: str, actions: str) -> str:
        with self._lock:
            token = self._tokens.get(f"{repository} {actions}")
            return f"Bearer {token}" if token else self._basic.get(repository, "")

    def check_credentials(self, credentials: Credentials) -> None:
        """Whether the registry takes them (distribution-spec, "Determining Support": ``/v2/``).

        Raises:
            StoreError: it does not, or cannot be reached.
        """
        self._given = credentials
        again(lambda: self.request("GET", "/v2/", "", ok=(200,)).drain_conn())

    def _authenticate(self, challenge: str, repository: str, actions: str) -> None:
        scheme, _, rest = challenge.partition(" ")
        credentials = self._given or find(self.host, repository, self.authfile)
        if scheme.lower() == "basic":
            if credentials is not None and credentials.user:
                with self._lock:
                    self._basic[repository] = credentials.basic()
            return
        if scheme.lower() != "bearer":
            return
        fields = dict(_CHALLENGE.findall(rest))
        token = self._fetch_token(fields, repository, actions, credentials)
        with self._lock:
            self._tokens[f"{repository} {actions}"] = token

    def _fetch_token(
        self,
        fields: dict[str, str],
        repository: str,
        actions: str,
        credentials: Credentials | None,
    ) -> str:
        realm = fields.get("realm", "")
        if urlsplit(realm).scheme != "https" and not self.insecure:
            raise StoreError(f"registry {self.host} wants credentials over plain HTTP: {realm}")
        query = {"service": fields.get("service", "")}
        if scope := fields.get("scope") or (repository and f"repository:{repository}:{actions}"):
            query["scope"] = scope
        try:
            if credentials is not None and credentials.token:
                form = {
                    **query,
                    "grant_type": "refresh_token",
                    "refresh_token": credentials.token,
                    "client_id": "cowstore",
                }
                answer = self._pool.request("POST", realm, fields=form, encode_multipart=False)
            else:
                sent = {"Authorization": credentials.basic()} if credentials else {}
                answer = self._pool.request(
                    "GET",
                    f"{realm}?{urlencode(query)}",
                    headers={**self._pool.headers, **sent},
                    redirect=False,
                )
            document = json.loads(answer.data)
        except (HTTPError, ValueError, RecursionError) as error:
            raise StoreError(f"registry {self.host}: no token: {_short(error)}") from None
        token = None
        if isinstance(document, dict):
            token = document.get("token") or document.get("access_token")
        if answer.status != 200 or not isinstance(token, str):
            raise StoreError(
                f"registry {self.host}: no token for {repository or self.host} ({answer.status})",
                f"cowstore login {self.host}, or --authfile",
            )
        return token

    # -- what a pull needs ------------------------------------------------------------------

    def manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """(bytes, media type) of a manifest or index.

        Raises:
            NotFound: none of that tag or digest.
            Refused: not what the digest says.
        """
        path = f"/v2/{repository}/manifests/{reference}"
        response = again(lambda: self.request("GET", path, repository, headers={"Accept": _ACCEPT}))
        try:
            data = b""
            while piece := response.read(_PIECE):
                data += piece
                oci.check_size(len(data), "a manifest")
        except HTTPError as error:
            raise StoreError(f"registry {self.host}: {_short(error)}") from None
        finally:
            response.release_conn()
        if digests.is_digest(reference) and digests.of(data) != reference:
            raise Refused(f"registry {self.host}: {reference} is not what its digest says")
        return data, response.headers.get("Content-Type", "").partition(";")[0]

    def blob(self, repository: str, digest: str, offset: int = 0) -> tuple[int, Iterator[bytes]]:
        """(where it starts, bytes) of a blob; it starts at 0 if the registry knows no ranges.

        Raises:
            Lost: also while the bytes are read.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        path = f"/v2/{repository}/blobs/{digest}"
        response = self.request("GET", path, repository, headers=headers, ok=(200, 206))
        start = offset if response.status == 206 else 0
        return start, _pieces(response, self.host)

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether a blob is there."""
        path = f"/v2/{repository}/blobs/{digest}"
        try:
            response = again(lambda: self.request("HEAD", path, repository, actions="pull,push"))
        except NotFound:
            return False
        response.drain_conn()
        return True


def _messages(document: Any) -> list[str]:
    """What an error's document says (distribution-spec, "Error Codes"); nothing if it is none."""
    errors = document.get("errors") if isinstance(document, dict) else None
    listed = errors if isinstance(errors, list) else []
    return [str(e.get("message") or e.get("code")) for e in listed if isinstance(e, dict)]


def _origin(url: str) -> tuple[str, str | None, int]:
    """Who is asked: scheme, host and port (RFC 6454)."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _pieces(response: urllib3.BaseHTTPResponse, host: str) -> Iterator[bytes]:
    # As sent: a proxy that compresses on its own would change what the digest is of.
    try:
        yield from response.stream(_PIECE, decode_content=False)
    except HTTPError as error:
        raise Lost(f"registry {host}: {_short(error)}") from None
    finally:
        response.close()


def again(action: Any) -> Any:
    """Call something that may be ``Lost``, a few times.

    Raises:
        StoreError: it was lost each time.
    """
    for attempt in range(_TRIES):
        try:
            return action()
        except Lost as error:
            if attempt == _TRIES - 1:
                raise StoreError(str(error), "try again later") from None
            time.sleep(0.2 * 4**attempt)
    raise AssertionError


def _short(error: Exception) -> str:
    """What went wrong, without the library's wrapping."""
    reason = getattr(error, "reason", None)
    text = str(reason if isinstance(reason, Exception) else error)
    text = re.sub(r"<[^>]*>: ?", "", text)
    return re.sub(r"^.*?: (?=\[Errno|Failed)", "", text)[:300]
