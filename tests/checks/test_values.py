"""Which values fit an annotation: items of containers, numbers, unions, and what has no answer."""

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import pytest
from beartype.vale import Is
from jaxtyping import Array, Float, Int, PyTree, jaxtyped

from eqxformer.checks import ShapeError, _hints
from eqxformer.checks._contract import checked


class Known(typing.TypedDict):
    x: int


class Shape(typing.Protocol):
    size: int


Even = Annotated[int, Is[lambda value: value % 2 == 0]]
ROW = Float[Array, "n"]
FITS = [
    (int, True, True),
    (int, 2.5, False),
    (float, 2, True),
    (complex, 2.5, True),
    (float, "2", False),
    (None, None, True),
    (None, 0, False),
    (int | None, None, True),
    (int | None, "x", False),
    (int | Any, "x", True),
    (Literal["a", "b"], "b", True),
    (Literal["a", "b"], "c", False),
    (Literal[1], "1", False),
    (tuple[int, ...], (), True),
    (tuple[int, ...], (1, 2, "x"), False),
    (tuple[int, ...], [1, 2], False),
    (tuple[int, str], (1, "x"), True),
    (tuple[int, str], (1,), False),
    (tuple[int, str], (1, 2), False),
    (tuple[()], (), True),
    (tuple[()], (1,), False),
    (tuple[int, ...], ("x",) * 300, False),
    (tuple[tuple[float, ...], ...], ((1, 2.5), (1, "x")), False),
    (list[int] | None, [1, None], False),
    (Sequence[str], ["a", "b"], True),
    (Sequence[Any], 3, False),
    (Mapping[str, int], {"a": 1, "b": 2}, True),
    (Mapping[str, int], {"a": 1, "b": "x"}, False),
    (dict[str, Any], {"a": object()}, True),
    (dict[str, Any], {1: 1}, False),
    (set[int], {1, "x"}, False),
    (Callable[[int], int], len, True),
    (Callable[[int], int], 3, False),
    (type[int], bool, True),
    (type[int], str, False),
    (Even, 4, True),
    (Even, 3, False),
    (Even | None, 3, True),
    (Known, {"x": 1}, True),
    (Known, [1], False),
    (Shape, 3, True),
    (typing.Self, 3, True),
    (ROW, jnp.ones(2), True),
    (ROW, jnp.ones((2, 2)), False),
    (ROW | Int[Array, "n n"], jnp.ones((2, 2), int), True),
    (ROW | Int[Array, "n n"], jnp.ones((2, 3), int), False),
    (tuple[ROW, ROW], (jnp.ones(2), jnp.ones(3)), False),
    (tuple[ROW, ROW], (jnp.ones(2), jnp.ones(2)), True),
    (PyTree[ROW, "T"], {"x": jnp.ones(2)}, True),
    (PyTree[ROW], {"x": jnp.ones(2), "y": 3}, False),
]


@pytest.mark.parametrize(("hint", "value", "fits"), FITS)
def test_a_value_fits_or_does_not(hint, value, fits):
    with jaxtyped("context"):
        assert _hints.holds(value, hint) is fits
    with jaxtyped("context"):  # and again, by what was made for the hint the first time
        assert _hints.holds(value, hint) is fits


def test_a_hint_that_has_no_hash_is_compared():
    hint = Annotated[int, []]
    assert _hints.holds(1, hint)
    assert not _hints.holds("x", hint)


def test_what_is_made_for_a_hint_sets_no_axis_and_no_tree_of_the_call_it_is_made_in():
    with jaxtyped("context"):
        _hints.test(PyTree[Float[Array, "late"], "Late"])
        assert isinstance({"x": jnp.ones(2)}, PyTree[Float[Array, "late"], "Late"])


@checked
def called(first: int, /, second: int = 2, *rest: str, third: float = 1.0, **others: bytes) -> int:
    return first + second


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        (("x",), {}, "`first` of called: must be int; got the str 'x'"),
        ((1, "x"), {}, "`second` of called"),
        ((1,), {"second": "x"}, "`second` of called"),
        ((1, 2, "a", 3), {}, r"`rest\[1\]` of called: must be str"),
        ((1,), {"third": "x"}, "`third` of called: must be float"),
        ((1,), {"fourth": 4}, "`fourth` of called: must be bytes"),
        ((1,), {"first": 1}, "`first` of called: must be bytes"),
        ((1,), {"rest": 1}, "`rest` of called: must be bytes"),
        ((1,), {"second": 2.5, "third": "x"}, "`second` of called"),
        ((1,), {"third": "x", "second": 2.5}, "`second` of called"),
    ],
)
def test_an_argument_of_every_kind_is_compared_in_the_order_of_the_signature(args, kwargs, said):
    with pytest.raises(ShapeError, match=said):
        called(*args, **kwargs)


def test_arguments_of_every_kind_pass():
    assert called(1, 2, "a", "b", third=2, first=b"1", fourth=b"4") == 3


@pytest.mark.parametrize("given", [{}, {"second": "x"}])
def test_a_call_without_what_it_needs_gets_pythons_own_message_whatever_else_is_wrong(given):
    with pytest.raises(TypeError, match=r"called\(\) missing 1 required positional argument"):
        called(**given)


@checked
def repeated(x: Float[Array, " n"], times: int = 2) -> Float[Array, " {times}*n"]:
    return jnp.tile(x, 2)


def test_an_axis_that_is_made_of_arguments_is_compared():
    assert repeated(jnp.ones(3)).shape == (6,)
    with pytest.raises(ShapeError, match=r"result of repeated: axis `\{times\}\*n` must be 9"):
        repeated(jnp.ones(3), times=3)
    with pytest.raises(TypeError, match="repeated.. missing 1 required positional argument: 'x'"):
        repeated(times=3)
