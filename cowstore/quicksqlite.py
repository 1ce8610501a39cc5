"""SQLite's module without what takes longer to load than it does: a container waits for it.

``sqlite3`` adds converters of dates, which nothing here uses, to ``_sqlite3``; and that wants a
single name of ``functools``, for its cache of statements, which loads ``collections`` as well.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3 as sqlite3
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

__all__ = ["sqlite3"]


def _load() -> ModuleType:
    # Programs with threads have loaded it (``threading`` does): none can meet ours in between.
    if "functools" in sys.modules:
        import _sqlite3

        return _sqlite3
    from _functools import _lru_cache_wrapper  # type: ignore[import-not-found]

    def lru_cache(size: int) -> Callable[[Any], Any]:
        return lambda function: _lru_cache_wrapper(function, size, False, tuple)

    double = type(sys)("functools")
    double.__dict__["lru_cache"] = lru_cache
    sys.modules["functools"] = double
    try:
        import _sqlite3
    finally:
        del sys.modules["functools"]
    return _sqlite3


if not TYPE_CHECKING:
    try:
        sqlite3 = _load()
    except (ImportError, AttributeError):  # another Python than CPython, or of another make
        import sqlite3
