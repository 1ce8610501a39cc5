"""Digests as the image specification writes them: ``sha256:`` and 64 lower-case hex digits.

Source: image-spec descriptor.md, "Digests". sha512 is registered there too, but no image
in use has it; it is refused like anything unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from cowstore.errors import Refused

_FORM = re.compile(r"sha256:[0-9a-f]{64}")


def is_digest(text: object) -> bool:
    """Whether ``text`` is a digest of ours."""
    return isinstance(text, str) and _FORM.fullmatch(text) is not None


def check(text: object, what: str) -> str:
    """``text`` if it is a digest.

    Raises:
        Refused: it is not, and must not become part of a path.
    """
    if not isinstance(text, str) or _FORM.fullmatch(text) is None:
        raise Refused(f"{what}: {text!r:.100} is not a sha256 digest")
    return text


def hex_of(digest: str) -> str:
    """The hex digits."""
    return digest[7:]


def of(data: bytes) -> str:
    """The digest of some bytes."""
    from hashlib import sha256

    return "sha256:" + sha256(data).hexdigest()


def chain_of(diff_ids: Sequence[str]) -> str:
    """What a chain is known by: its last chain id; of no layers, the digest of nothing."""
    return chain_ids(diff_ids)[-1] if diff_ids else of(b"")


def chain_ids(diff_ids: Iterable[str]) -> list[str]:
    """ChainID of every prefix of the layers, lowest first (config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
