"""The place of a name in its directory: a hash that is the same everywhere and for good."""

from __future__ import annotations

from cowstore.viewformat import COOKIE_MASK, FIRST_COOKIE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_digest: Callable[[bytes], int] | None = None


def cookie_of(name: bytes) -> int:
    """16 to 2**63; as ``unionfs.listing.cookie_of``, but not changing with the process."""
    return (_digest or load())(name) & COOKIE_MASK | FIRST_COOKIE


def load() -> Callable[[bytes], int]:
    """The hash of a whole name; not loaded before one is looked for: a mount is there without."""
    global _digest
    from xxhash import xxh3_64_intdigest

    _digest = xxh3_64_intdigest
    return xxh3_64_intdigest
