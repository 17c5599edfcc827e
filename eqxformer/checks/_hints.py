"""Annotations taken apart and compared, and annotations and values as short text."""

import itertools
import re
import types
import typing
from collections.abc import Mapping, Sequence, Set
from typing import Annotated, Any, Literal, Union

import jax
import numpy as np
from beartype import BeartypeConf
from beartype.door import is_bearable
from jaxtyping import AbstractArray

CONF = BeartypeConf(is_pep484_tower=True)  # an int serves where a float is asked for

_LONGEST = 40  # characters of a value's repr in a message
_MOST_ITEMS = 256  # of a container are looked at
_CONTAINERS = (Sequence, Mapping, Set)


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
    return any(
        fits(value, option) and all(holds(item, part) for _, part, item in elements(option, value))
        for option in alternatives(hint)
    )


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
