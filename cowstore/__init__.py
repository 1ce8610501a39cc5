"""The copy-on-write store of layers, images and snapshots.

``Store`` is the way in, see docs/store.md, "From Python". Importing this
package loads nothing: names are looked up when they are first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowstore.errors import Damaged, NotFound, Refused, StoreError
    from cowstore.store import Store
    from cowstore.types import CommitOptions, Image, ImageRef, Layer, Lowers, Snapshot

__all__ = [
    "CommitOptions",
    "Damaged",
    "Image",
    "ImageRef",
    "Layer",
    "Lowers",
    "NotFound",
    "Refused",
    "Snapshot",
    "Store",
    "StoreError",
]

_ERRORS = ("Damaged", "NotFound", "Refused", "StoreError")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'cowstore' has no attribute {name!r}")
    from importlib import import_module

    module = "store" if name == "Store" else "errors" if name in _ERRORS else "types"
    return getattr(import_module(f"cowstore.{module}"), name)
