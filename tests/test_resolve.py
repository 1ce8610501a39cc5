"""The one rule: which layers make up a name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.resolve import Says, merge, resolve

A, W, F, D, O = Says.ABSENT, Says.WHITEOUT, Says.FILE, Says.DIR, Says.OPAQUE_DIR  # noqa: E741


@dataclass(frozen=True)
class Answer:
    """What a layer says; ``layer`` tells answers apart."""

    says: int
    layer: int


def layers_of(*answers: int) -> list[int]:
    """Indices of the layers that make up a name of which the layers say this."""
    found = resolve(Answer(says, layer) for layer, says in enumerate(answers))
    return [answer.layer for answer in found]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((), []),
        ((A,), []),
        ((A, A, F), [2]),
        ((F, F), [0]),
        ((F, D), [0]),
        ((D, D, D), [0, 1, 2]),
        ((D, A, D), [0, 2]),
        ((D, F, D), [0]),
        ((D, W, D), [0]),
        ((D, O, D), [0, 1]),
        ((O, D), [0]),
        ((W, F), []),
        ((W, D), []),
        ((A, W, D), []),
        ((F, W, F), [0]),
        ((D, A, W, D), [0]),
    ],
)
def test_the_rule(answers: tuple[int, ...], expected: list[int]) -> None:
    assert layers_of(*answers) == expected


@pytest.mark.parametrize("last", [W, F, O])
def test_nothing_is_asked_beneath_what_decides(last: int) -> None:
    asked = []

    def answers() -> Iterator[Answer]:
        for layer, says in enumerate((A, D, last, D)):
            asked.append(layer)
            yield Answer(says, layer)

    resolve(answers())
    assert asked == [0, 1, 2]


_layer = st.dictionaries(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from([W, F, D, O]))


def _naive(stack: list[dict[bytes, int]], name: bytes) -> list[int]:
    """The rule applied from the bottom up, as an image is unpacked."""
    made: list[int] = []
    for layer in reversed(range(len(stack))):
        says = stack[layer].get(name, A)
        if says is W:
            made = []
        elif says in (F, O):
            made = [layer]
        elif says is D:
            is_dir = bool(made) and stack[made[0]][name] in (D, O)
            made = [layer, *(made if is_dir else [])]
    return made


@given(st.lists(_layer, max_size=5))
def test_top_down_equals_bottom_up(stack: list[dict[bytes, int]]) -> None:
    for name in (b"a", b"b", b"c"):
        assert layers_of(*(layer.get(name, A) for layer in stack)) == _naive(stack, name)


@given(st.lists(_layer, max_size=5))
def test_a_merged_listing_agrees_with_looking_up_every_name(stack: list[dict[bytes, int]]) -> None:
    merged = merge(
        [(name, says, layer) for name, says in names.items()] for layer, names in enumerate(stack)
    )
    for name in (b"a", b"b", b"c"):
        found = layers_of(*(layer.get(name, A) for layer in stack))
        if name not in merged:
            assert not found
            assert all(name not in layer for layer in stack)
            continue
        says, layer = merged[name]
        if says is W:
            assert not found
        else:
            assert found[0] == layer
            assert stack[layer][name] is says
