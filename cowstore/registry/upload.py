"""Sending one blob: mounted from another repository, or in chunks that can be taken up again.

Source: distribution-spec, "Pushing Blobs", "Pushing a blob in chunks", "Mounting a blob".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, urljoin

from urllib3 import BaseHTTPResponse

from cowstore.errors import Damaged, NotFound, StoreError
from cowstore.outgoing import Outgoing
from cowstore.registry.client import Answered, Lost, Registry, again
from cowstore.types import Progress

#: Bytes of one PATCH; some registries take no less than five million.
_CHUNK: Final = 16 << 20
_TRIES: Final = 5
_BOTH: Final = "pull,push"


def upload(
    registry: Registry, repository: str, out: Outgoing, source: str, progress: Progress | None
) -> None:
    """Send a blob; ``source`` is a repository of the same registry that may have it.

    Raises:
        StoreError: refused, or the connection broke too often.
        Damaged: our copy is not what its digest says.
    """
    digest = out.descriptor.digest
    location = ""
    if source:
        query = f"?mount={quote(digest)}&from={quote(source, safe='')}"
        with contextlib.suppress(Answered):  # that repository is not for us: as if it had nothing
            location, mounted = _begin(registry, repository, query)
            if mounted:
                return
    if not location:
        location, _ = _begin(registry, repository, "")
    offset = tries = 0
    pieces = _chunks(out.open(), 0)
    while True:
        try:
            for chunk in pieces:
                location = _patch(registry, repository, location, chunk, offset)
                offset += len(chunk)
                tries = 0
                if progress is not None:
                    progress(digest, offset, out.descriptor.size)
            break
        except Lost as error:
            tries += 1
            if tries >= _TRIES:
                raise StoreError(str(error), "try again later") from None
            location, offset = _ask(registry, repository, location)
            pieces = _chunks(out.open(), offset)
    if offset != out.descriptor.size:
        raise Damaged(f"blob {digest} is not as long as it was", "cowstore fsck --repair")
    mark = "&" if "?" in location else "?"
    try:
        again(
            lambda: registry.request(
                "PUT", f"{location}{mark}digest={quote(digest)}", repository, actions=_BOTH,
                headers={"Content-Length": "0"}, ok=(201,),
            ).drain_conn()
        )  # fmt: skip
    except NotFound:
        # Done, and only the answer was lost: the second PUT finds no upload any more.
        if not registry.has_blob(repository, digest):
            raise


def _begin(registry: Registry, repository: str, query: str) -> tuple[str, bool]:
    """(where to upload to, whether the blob was mounted instead)."""
    path = f"/v2/{repository}/blobs/uploads/{query}"
    response = again(
        lambda: registry.request(
            "POST", path, repository, actions=_BOTH, headers={"Content-Length": "0"},
            ok=(201, 202),
        )
    )  # fmt: skip
    response.drain_conn()
    return _location(response, registry), response.status == 201


def _location(response: BaseHTTPResponse, registry: Registry) -> str:
    return urljoin(registry.base(), response.headers.get("Location", ""))


def _patch(registry: Registry, repository: str, location: str, chunk: bytes, offset: int) -> str:
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Range": f"{offset}-{offset + len(chunk) - 1}",
        "Content-Length": str(len(chunk)),
    }
    response = registry.request(
        "PATCH", location, repository, actions=_BOTH, headers=headers, body=chunk, ok=(202,)
    )
    response.drain_conn()
    return _location(response, registry)


def _ask(registry: Registry, repository: str, location: str) -> tuple[str, int]:
    """(location, bytes that the registry has) of an upload that was interrupted."""
    response = again(
        lambda: registry.request("GET", location, repository, actions=_BOTH, ok=(204,))
    )
    response.drain_conn()
    last = str(response.headers.get("Range", "0-0")).rpartition("-")[2]
    end = int(last) if last.isdigit() else 0
    return _location(response, registry) or location, end + 1 if end else 0


def _chunks(pieces: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """Pieces joined to chunks, from an offset on."""
    pending: list[bytes] = []
    size = 0
    for piece in pieces:
        if skip:
            cut = min(skip, len(piece))
            skip -= cut
            piece = piece[cut:]
        pending.append(piece)
        size += len(piece)
        if size >= _CHUNK:
            yield b"".join(pending)
            pending, size = [], 0
    if size:
        yield b"".join(pending)
