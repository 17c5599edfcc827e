"""Annotations taken apart and compared, and annotations and values as short text."""

import contextlib
import functools
import inspect
import itertools
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Annotated, Any, Literal, Union

import jax
import numpy as np
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import AbstractArray, PyTree, jaxtyped

Test = Callable[[Any], bool]

CONF = BeartypeConf(is_pep484_tower=True)  # an int serves where a float is asked for

_LONGEST = 40  # characters of a value's repr in a message
_MOST_ITEMS = 256  # of a container are looked at
_CONTAINERS = (Sequence, Mapping, Set)
# The same for classes: the numbers that serve where one of these is asked for.
_TOWER: dict[Any, Any] = {float: (float, int), complex: (complex, float, int)}


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` satisfies `hint`, whose axis words are compared and bound in this scope.

    What cannot be decided fits: a protocol that is not for run time, a tree-path axis on its own.
    """
    try:
        return is_bearable(value, hint, conf=CONF)
    except Exception:
        return True


def holds(value: Any, hint: Any) -> bool:
    """As `fits`, over the items of a container, where `fits` looks at one of many, at random."""
    known = test(hint)
    try:
        return known is None or known(value)
    except Exception:
        return True


def test(hint: Any) -> Test | None:
    """What tells whether a value satisfies `hint` as `holds` does; None where every value does.

    Made once for each hint: to take one apart takes longer than to compare most values.
    """
    try:
        return _known_test(hint)
    except TypeError:  # a hint that has no hash
        return _new_test(hint)


@functools.lru_cache(maxsize=4096)
def _known_test(hint: Any) -> Test | None:
    return _new_test(hint)


def _new_test(hint: Any) -> Test | None:
    if hint in (Any, object, inspect.Parameter.empty):
        return None
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:  # which may ask for more than the type does
        tests = [_test_of_type(hint), test(args[0])]
        return _all([each for each in tests if each is not None])
    if origin is Literal:
        return lambda value: any(isinstance(value, type(arg)) and value == arg for arg in args)
    options = alternatives(hint)
    if len(options) > 1 or options[0] is not hint:
        options.sort(key=lambda option: len(arrays(option)))  # None is soon told
        tests = [test(option) for option in options]
        known = [each for each in tests if each is not None]
        return _any(known) if len(known) == len(tests) else None
    if isinstance(origin, type) and issubclass(origin, Sequence) and args:
        return _test_of_sequence(hint, origin, args)
    tests = [_test_of_type(hint), _test_of_items(hint)]
    return _all([each for each in tests if each is not None])


def _any(tests: Sequence[Test]) -> Test:
    def fits_one(value: Any) -> bool:
        for each in tests:  # noqa: SIM110  a loop costs less than `any`
            if each(value):
                return True
        return False

    return fits_one


def _all(tests: Sequence[Test]) -> Test | None:
    if len(tests) < 2:
        return tests[0] if tests else None
    return lambda value: all(each(value) for each in tests)


def _test_of_type(hint: Any) -> Test | None:
    """As `beartype` does; None for a hint that it cannot decide about."""
    with jaxtyped("context"):  # of the tries, nothing is kept
        if isinstance(hint, type):
            classes = _TOWER.get(hint, hint)
            with contextlib.suppress(TypeError):  # a dictionary of known keys, a protocol
                isinstance(None, classes)
                return lambda value: isinstance(value, classes)
        with contextlib.suppress(Exception):
            is_bearable(None, hint, conf=CONF)
            return lambda value: is_bearable(value, hint, conf=CONF)
    return None


def _test_of_sequence(hint: Any, origin: type, args: tuple[Any, ...]) -> Test:
    """As `beartype`, which looks at one item, and at the first ones by themselves."""
    fixed = len(args) if origin is tuple and args[-1] is not Ellipsis else None
    many, items = _test_of_type(hint), _test_of_items(hint)

    def holds_them(value: Any) -> bool:
        if not isinstance(value, origin) or fixed not in (None, len(value)):
            return False
        if len(value) > _MOST_ITEMS and many is not None and not many(value):
            return False
        return items is None or items(value)

    return holds_them


def _test_of_items(hint: Any) -> Test | None:
    """What tells of the items of a container; None for what has no items, or any."""
    parts = typing.get_args(hint) if has_items(hint) else ()
    if all(part is Ellipsis or test(part) is None for part in parts):
        return None

    def items_hold(value: Any) -> bool:
        found = ((test(part), item) for _, part, item in elements(hint, value))
        return all(known is None or known(item) for known, item in found)

    return items_hold


def arrays(hint: Any) -> list[Any]:
    """The annotations of arrays, and of trees that may have some, in `hint`."""
    if isinstance(hint, type):
        return [hint] if issubclass(hint, AbstractArray | PyTree) else []
    options = alternatives(hint)
    if len(options) > 1 or options[0] is not hint:
        return [array for option in options for array in arrays(option)]
    parts = [p for a in typing.get_args(hint) for p in (a if isinstance(a, list) else [a])]
    return [array for part in parts for array in arrays(part)]


def asks_for_arguments(array: Any) -> bool:
    """Whether an axis of an array, or of a tree's, is an expression with arguments in braces."""
    leaves = getattr(array, "leaftype", None)
    if leaves is None:
        return "{" in getattr(array, "dim_str", "")
    return any(map(asks_for_arguments, arrays(leaves)))


def is_array_hint(hint: Any) -> bool:
    """Whether `hint` is one such as `Float[Array, "batch dim"]`."""
    return isinstance(hint, type) and issubclass(hint, AbstractArray)


def is_array(value: Any) -> bool:
    """Whether `value` has a shape and a dtype, as arrays and descriptions of arrays do."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def alternatives(hint: Any) -> list[Any]:
    """The members of a union and of unions inside it, each without `Annotated` round it."""
    if isinstance(hint, type):
        return [hint]
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return alternatives(typing.get_args(hint)[0])
    if origin is Union or origin is types.UnionType:
        return [part for member in typing.get_args(hint) for part in alternatives(member)]
    if hasattr(hint, "__value__"):  # `type Tokens = ...` of Python 3.12
        return alternatives(hint.__value__)
    return [hint]


def elements(hint: Any, value: Any) -> list[tuple[str, Any, Any]]:
    """The items of a container as (index, hint, item), if `value` is the container `hint` means."""
    if isinstance(hint, type):
        return []
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    container = isinstance(origin, type) and issubclass(origin, _CONTAINERS)
    if not container or not args or not isinstance(value, origin):
        return []
    if origin is tuple and args[-1] is not Ellipsis:
        pairs = zip(args, value, strict=False)
        return [(f"[{i}]", part, item) for i, (part, item) in enumerate(pairs)]
    first = itertools.islice(value.items() if isinstance(value, Mapping) else value, _MOST_ITEMS)
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", args[-1], item) for key, item in first]
    return [(f"[{i}]", args[0], item) for i, item in enumerate(first)]


def has_items(hint: Any) -> bool:
    """Whether `hint` is, or may be, a container of annotated items."""
    origins = [typing.get_origin(option) for option in alternatives(hint)]
    return any(isinstance(origin, type) and issubclass(origin, _CONTAINERS) for origin in origins)


def bare(word: str) -> str:
    """An axis word without its modifiers and without the name in `name=4`."""
    return word.rpartition("=")[2].lstrip("#*?_")


def takes_many(word: str) -> bool:
    """Whether an axis word stands for any number of axes."""
    return word == "..." or "*" in _modifiers(word)


def broadcasts(word: str) -> bool:
    """Whether an axis word also allows a size of 1."""
    return "#" in _modifiers(word)


def _modifiers(word: str) -> str:
    return word[: len(word) - len(word.lstrip("#*?_"))]


def line_up(hint: Any, shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]] | None:
    """Each axis word of `hint` with its part of `shape`, or None where the rank does not fit."""
    words = hint.dim_str.split()
    many = next((i for i, word in enumerate(words) if takes_many(word)), None)
    extra = len(shape) - len(words)
    if extra < -1 or (extra and many is None):
        return None
    parts: list[tuple[str, tuple[int, ...]]] = []
    start = 0
    for i, word in enumerate(words):
        end = start + 1 + (extra if i == many else 0)
        parts.append((word, shape[start:end]))
        start = end
    return parts


def ranks(hint: Any) -> str:
    """The numbers of axes that an array annotation allows, as text."""
    words = hint.dim_str.split()
    if any(takes_many(word) for word in words):
        return f"at least {_axes(len(words) - 1)}"
    return _axes(len(words))


def _axes(count: int) -> str:
    return f"{count} {'axis' if count == 1 else 'axes'}"


def show(hint: Any) -> str:
    """An annotation as it stands in the source, without the names of modules."""
    if is_array_hint(hint):
        return f'{hint.dtype.__name__}[{array_type(hint)}, "{hint.dim_str}"]'
    members = alternatives(hint)
    if len(members) > 1:
        names = dict.fromkeys("PRNGKeyArray" if _is_key(m, members) else show(m) for m in members)
        return " | ".join(names)
    origin, args = typing.get_origin(members[0]), typing.get_args(members[0])
    if origin is Literal:
        words = [f'"{arg}"' if isinstance(arg, str) else repr(arg) for arg in args]
        return f"Literal[{', '.join(words)}]"
    if origin is not None and all(not isinstance(arg, list) for arg in args):
        inside = ", ".join("..." if arg is Ellipsis else show(arg) for arg in args)
        return f"{getattr(origin, '__name__', str(origin))}[{inside}]"
    if members[0] is type(None):
        return "None"
    if isinstance(members[0], type):
        return members[0].__qualname__.rpartition("<locals>.")[2]
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(members[0]))


def array_type(hint: Any) -> str:
    """The name of the type of array that an array annotation asks for."""
    return str(getattr(hint.array_type, "__name__", hint.array_type)).rpartition(".")[2]


def _is_key(hint: Any, members: list[Any]) -> bool:
    # jaxtyping spells PRNGKeyArray as a union of the typed key and the old raw ones.
    names = [member.dtype.__name__ for member in members if is_array_hint(member)]
    return is_array_hint(hint) and names[:2] == ["Key", "UInt32"] and set(names[2:]) <= {"UInt32"}


def describe(value: Any) -> str:
    """A value as short text: `float32[2,10]` for an array, `the str 'relu'` for plain values."""
    if is_array(value):
        kind = "" if isinstance(value, jax.Array) else f"{type(value).__module__.split('.')[0]} "
        kind = "ShapeDtypeStruct " if isinstance(value, jax.ShapeDtypeStruct) else kind
        return f"{kind}{value.dtype}[{','.join(str(size) for size in value.shape)}]"
    if value is None:
        return "None"
    if isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        text = repr(value)
        text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
        return f"the {type(value).__name__} {text}"
    if isinstance(value, type):
        return f"the class {value.__qualname__}"
    if isinstance(value, tuple | list | dict | set | frozenset):
        return f"a {type(value).__name__} of length {len(value)}"
    if callable(value) and hasattr(value, "__qualname__"):
        return f"the function {value.__qualname__}"
    name = type(value).__qualname__.rpartition("<locals>.")[2]
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
