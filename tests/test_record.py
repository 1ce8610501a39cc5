"""Records and rows: what dataclasses and named tuples are used for, without their import."""

from __future__ import annotations

import pickle

import pytest

from unionfs.monitor import Event
from unionfs.record import Record, Row


class Place(Row):
    """A row with a default."""

    x: int
    y: int
    name: str = "?"


class Base(Record):
    """A record with a default."""

    first: int
    names: tuple[str, ...] = ()


class Derived(Base):
    """One that has more."""

    inner: Base | None = None


def test_a_row_is_a_tuple_with_names() -> None:
    place = Place(1, y=2)
    assert place == (1, 2, "?")
    assert (place.x, place.y, place.name) == (1, 2, "?")
    assert place._replace(name="here") == Place(1, 2, "here")
    assert repr(place) == "Place(x=1, y=2, name='?')"
    assert place._asdict() == {"x": 1, "y": 2, "name": "?"}
    assert pickle.loads(pickle.dumps(place)) == place
    assert not hasattr(place, "__dict__")
    match place:
        case Place(x, y):
            assert (x, y) == (1, 2)


def test_a_row_wants_its_fields() -> None:
    for values, named in (((1,), {}), ((1, 2, "3", 4), {}), ((1, 2), {"z": 3}), ((), {"y": 1})):
        with pytest.raises(TypeError):
            Place(*values, **named)  # type: ignore[arg-type]


def test_a_record_inherits_fields_and_is_written_down() -> None:
    record = Derived(1, ("a",), inner=Base(first=2))
    assert repr(record) == ("Derived(first=1, names=('a',), inner=Base(first=2, names=()))")
    assert record.to_data() == {
        "first": 1,
        "names": ["a"],
        "inner": {"first": 2, "names": []},
    }
    assert Base.from_data({"first": 1, "names": ["a"]}) == Base(1, ("a",))
    assert record.replace(first=3).first == 3
    assert len({record, record.replace(first=1), Derived(5)}) == 2


def test_a_record_is_frozen_and_wants_its_fields() -> None:
    record = Base(1)
    with pytest.raises(AttributeError):
        record.first = 2  # type: ignore[misc]
    for values, named in (((), {}), ((1, (), 3), {}), ((1,), {"other": 3})):
        with pytest.raises(TypeError):
            Base(*values, **named)  # type: ignore[arg-type]


def test_an_event_is_waited_for() -> None:
    event = Event()
    assert not event.wait(0) and not event.is_set()
    event.set()
    event.set()
    assert event.wait(0) and event.wait() and event.is_set()
