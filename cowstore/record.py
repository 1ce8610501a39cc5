"""Frozen values with named fields, at the price of no import.

``dataclasses`` and ``typing`` are a quarter of what creating a snapshot may take; this is what
the store needs of them. Fields are a class's annotations, in order; defaults its attributes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self, dataclass_transform
else:

    def dataclass_transform(**_options):
        """What typing offers to type checkers alone."""
        return lambda cls: cls


@dataclass_transform(frozen_default=True)
class Record:
    """Base of all records; a subclass declares fields and properties."""

    _fields: tuple[str, ...] = ()

    if not TYPE_CHECKING:

        def __init_subclass__(cls) -> None:
            cls._fields = tuple(name for name in cls.__annotations__ if not name.startswith("_"))

        def __init__(self, *values, **named) -> None:
            state = self.__dict__
            if len(values) > len(self._fields):
                raise TypeError(f"{type(self).__name__}: too many values")
            state.update(zip(self._fields, values, strict=False))
            for name in self._fields[len(values) :]:
                if name in named:
                    state[name] = named.pop(name)
                elif hasattr(type(self), name):
                    state[name] = getattr(type(self), name)
                else:
                    raise TypeError(f"{type(self).__name__}: {name} is missing")
            if named:
                raise TypeError(f"{type(self).__name__}: no field {min(named)}")

        def __setattr__(self, name, value):
            raise AttributeError(f"{type(self).__name__} is frozen")

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({inside})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, name) for name in self._fields)))

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self)(**{**self.__dict__, **changes})

    def to_data(self) -> dict[str, Any]:
        """The fields by name."""
        return {name: getattr(self, name) for name in self._fields}
