"""Frozen, printable values between stages, at the price of no import.

``dataclasses`` costs 15 ms to import and half a millisecond a class, a quarter
of what a container start may take (docs/runtime.md, "Time"). A ``Record`` has
keyword fields from its annotations, defaults from class attributes, equality,
``repr`` and ``replace``; lists and dictionaries in it are not to be changed.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self, dataclass_transform
else:

    def dataclass_transform(**_options):
        """What typing offers to type checkers alone."""
        return lambda cls: cls


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """Base of all records; a subclass only declares fields."""

    _fields: tuple[str, ...] = ()

    if not TYPE_CHECKING:

        def __init_subclass__(cls) -> None:
            own = tuple(name for name in cls.__annotations__ if not name.startswith("_"))
            cls._fields = (*(name for name in cls._fields if name not in own), *own)

        def __init__(self, **values) -> None:
            state = self.__dict__
            for name in self._fields:
                if name in values:
                    state[name] = values.pop(name)
                elif not hasattr(type(self), name):
                    raise TypeError(f"{type(self).__name__}: {name} is missing")
                else:
                    state[name] = getattr(type(self), name)
            if values:
                raise TypeError(f"{type(self).__name__}: no field {min(values)}")

        def __setattr__(self, name, value):
            raise AttributeError(f"{type(self).__name__} is frozen")

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._fields)
        return f"{type(self).__name__}({inside})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(repr(self))

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self)(**{**self.__dict__, **changes})

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> Self:
        """A record of what ``to_data`` gave (lists become tuples); TypeError if it is none."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        return cls(**fields)

    def to_data(self) -> dict[str, Any]:
        """Plain dictionaries and lists, for printing."""
        return {name: _plain(getattr(self, name)) for name in self._fields}


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_data()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value
