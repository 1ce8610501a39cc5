"""Frozen values with named fields, at the price of no import.

``dataclasses`` and ``typing`` cost 20 ms to import and half a millisecond a class: half of what a
mount or a container start may take. This is what we need of them. Fields are a class's
annotations, in order; defaults are its attributes.

``Row`` is a tuple (to type checkers: ``typing.NamedTuple``), for what is made by the thousand;
``Record`` an object that can be printed, compared and written down. ``Protocol`` costs nothing.
"""

from __future__ import annotations

__all__ = ["OrderedDict", "Protocol", "Record", "Row"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import OrderedDict
    from collections.abc import Iterable
    from typing import Any, Protocol, Self, dataclass_transform
    from typing import NamedTuple as Row
else:
    # ``collections`` loads five modules around these two.
    from _collections import OrderedDict
    from _collections import _tuplegetter as _field

    class Protocol:
        """What typing checks alone."""

    def dataclass_transform(**_options):
        """What typing offers to type checkers alone."""
        return lambda cls: cls

    _new = tuple.__new__

    class _RowType(type):
        def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            """A tuple's subclass with a getter for each annotation."""
            fields = tuple(body.get("__annotations__", ()))
            body["_defaults"] = tuple(body[field] for field in fields if field in body)
            body["_fields"] = body["__match_args__"] = fields
            body["_count"] = len(fields)
            body["__slots__"] = ()
            for place, field in enumerate(fields):
                body[field] = _field(place, None)
            return super().__new__(mcs, name, bases, body)

    class Row(tuple, metaclass=_RowType):
        """A tuple with named fields; ``TypeError`` if one is missing or too many."""

        def __new__(cls, *values: Any, **named: Any) -> Self:
            count = cls._count
            if not named and len(values) == count:
                return _new(cls, values)
            if named:
                values += tuple(
                    named.pop(field) if field in named else cls._default(place)
                    for place, field in enumerate(cls._fields)
                    if place >= len(values)
                )
            elif len(values) < count:
                values += tuple(cls._default(place) for place in range(len(values), count))
            if named or len(values) != count:
                raise TypeError(f"{cls.__name__}: takes {', '.join(cls._fields)}")
            return _new(cls, values)

        @classmethod
        def _default(cls, place: int) -> Any:
            back = place - len(cls._fields)
            if -back > len(cls._defaults):
                raise TypeError(f"{cls.__name__}: {cls._fields[place]} is missing")
            return cls._defaults[back]

        @classmethod
        def _make(cls, values: Iterable[Any]) -> Self:
            return tuple.__new__(cls, values)

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changes: Any) -> Self:
            return type(self)(**{**self._asdict(), **changes})

        def __getnewargs__(self) -> tuple[Any, ...]:
            return tuple(self)

        def __repr__(self) -> str:
            inside = ", ".join(f"{name}={value!r}" for name, value in self._asdict().items())
            return f"{type(self).__name__}({inside})"


@dataclass_transform(frozen_default=True)
class Record:
    """Base of records; a subclass declares fields, defaults and methods.

    Lists and dictionaries in a record are not to be changed. A record is as hashable as its
    fields.
    """

    _fields: tuple[str, ...] = ()

    if not TYPE_CHECKING:

        def __init_subclass__(cls) -> None:
            names = vars(cls).get("__annotations__", ())
            own = tuple(name for name in names if not name.startswith("_"))
            cls._fields = (*(name for name in cls._fields if name not in own), *own)

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
