"""Trees of modules put together from their arrays, again and again, for little.

`jax.tree.unflatten` asks Equinox for every module, and makes every part of a tree anew, also those
without an array. Here it is worked out once what is made of what: two thirds of the time, which a
training step spends on a small model while the device waits.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax

_new, _put = object.__new__, object.__setattr__  # as modules are frozen


class Assembly:
    """Puts trees of one structure together: inner parts first, each of what is made before it.

    Arguments:
        structure: that of the trees, as JAX describes it.
        fixed: their leaves, and None in the place of each array.

    Raises `TypeError` for a tree with other nodes than tuples and modules round its arrays.

    Example:
        >>> import jax
        >>> structure = jax.tree.structure((1, (2, "kept")))
        >>> Assembly(structure, (None, None, "kept"))(["first", "second"])
        ('first', ('second', 'kept'))
    """

    def __init__(self, structure: Any, fixed: Sequence[Any]):
        slots, others = ([object() for leaf in fixed if leaf is None] for _ in range(2))
        tree = jax.tree.unflatten(structure, filled(fixed, slots))
        self._numbers = {id(slot): number for number, slot in enumerate(slots)}
        self._parts: list[tuple[type, bool, Any, list[tuple[Any, int]]]] = []
        whole = self._number(tree)
        leaves, found = jax.tree.flatten(None if whole is None else self(others))
        same = zip(leaves, filled(fixed, others), strict=False)
        if found != structure or not all(a is b for a, b in same):
            raise TypeError(f"A tree of tuples and modules was expected; got {structure}.")

    def __call__(self, arrays: Sequence[Any]) -> Any:
        """The tree with these arrays, in the order of its leaves."""
        values = list(arrays)
        for kind, is_module, kept, made_before in self._parts:
            if is_module:
                made = _new(kind)
                for name, value in kept:
                    _put(made, name, value)
                for name, number in made_before:
                    _put(made, name, values[number])
            else:
                items = list(kept)
                for place, number in made_before:
                    items[place] = values[number]
                made = tuple.__new__(kind, items)
            values.append(made)
        return values[-1]

    def _number(self, tree: Any) -> int | None:
        """The number of an array, or of a part with arrays; None for one that has none."""
        if id(tree) in self._numbers:
            return self._numbers[id(tree)]
        is_module = isinstance(tree, eqx.Module)
        if not is_module and not isinstance(tree, tuple):
            return None
        inside = list(vars(tree).items() if is_module else enumerate(tree))
        numbers = [self._number(part) for _, part in inside]
        pairs = zip(inside, numbers, strict=True)
        made_before = [(name, number) for (name, _), number in pairs if number is not None]
        if not made_before:
            return None
        kept = [each for each, number in zip(inside, numbers, strict=True) if number is None]
        self._parts.append((type(tree), is_module, kept if is_module else tree, made_before))
        return len(self._numbers) + len(self._parts) - 1


def filled(fixed: Sequence[Any], arrays: Sequence[Any]) -> list[Any]:
    """The leaves of a tree: arrays in the places of None, in their order."""
    left = iter(arrays)
    return [next(left) if leaf is None else leaf for leaf in fixed]
