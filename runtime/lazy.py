"""Putting imports off until a module is really used.

``importlib.util.LazyLoader`` does the same, but importing it takes longer than
what it saves here. Modules that the union's daemon needs on rare paths only
(error texts, statistics, ``fusermount3``) cost it half of its start otherwise.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any
else:
    ModuleType = type(sys)  # ``types`` makes one of each kind there is


class _Later(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)  # the import system looks, nobody uses it
        import importlib

        module = self.__name__
        if sys.modules.get(module) is self:
            del sys.modules[module]
        real = importlib.import_module(module)
        self.__dict__.update(real.__dict__)
        return getattr(real, name)


def put_off(*names: str) -> None:
    """Import these top-level modules when an attribute of theirs is first asked for."""
    for name in names:
        if name not in sys.modules:
            sys.modules[name] = _Later(name)
