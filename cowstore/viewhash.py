"""The place of a name in its directory: a hash that is the same everywhere and for good."""

from __future__ import annotations

import xxhash

from cowstore.viewformat import COOKIE_MASK, FIRST_COOKIE


def cookie_of(name: bytes) -> int:
    """16 to 2**63; as ``unionfs.listing.cookie_of``, but not changing with the process."""
    number: int = xxhash.xxh3_64_intdigest(name)
    return number & COOKIE_MASK | FIRST_COOKIE
