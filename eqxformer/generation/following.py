"""What processors and stops remember of each row from token to token.

Most of them need no memory: they look at the tokens so far. One that would have to read all of them
again at every step, such as an automaton, is a `Follower` that keeps a `Memory` instead:

    follower = follower.begin(rows)         nothing has been made yet
    follower = follower.after(tokens)       one more token in every row

Both give a new value; the old one stays as it is. A loop carries the memories alone (`parted`), and
a beam search takes those of the rows that live on (`take_rows`).
"""

from typing import Any, Self, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

Tree = TypeVar("Tree")


class Memory(eqx.Module):
    """An array, or a tree of arrays, whose first axis is that of the rows.

    Arguments:
        value: the array or the tree.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> from eqxformer.generation.following import take_rows
        >>> memory = ef.Memory(jnp.array([5, 6, 7]))
        >>> take_rows(memory, jnp.array([2, 0])).value
        Array([7, 5], dtype=int32)
    """

    value: Any


class Follower(eqx.Module):
    """A value that may remember something of each row; by default, nothing.

    Processors, samplers and stops are followers.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> class Sum(ef.Follower):
        ...     total: ef.Memory | None = None
        ...     def begin(self, rows):
        ...         return Sum(ef.Memory(jnp.zeros(rows, int)))
        ...     def after(self, tokens):
        ...         return Sum(ef.Memory(self.total.value + tokens))
        >>> Sum().begin(2).after(jnp.array([5, 7])).after(jnp.array([1, 1])).total.value
        Array([6, 8], dtype=int32)
    """

    def begin(self, rows: int) -> Self:
        """This follower before the first new token of so many rows."""
        return self

    def after(self, tokens: Int[Array, " rows"]) -> Self:
        """This follower after one more token in every row."""
        return self


def is_memory(node: Any) -> bool:
    """Whether this is a `Memory`."""
    return isinstance(node, Memory)


def parted(tree: Any) -> tuple[Any, Any]:
    """The memories in a tree, and the rest of it."""
    return eqx.partition(tree, is_memory, is_leaf=is_memory)


def joined(memories: Any, rest: Any) -> Any:
    """What `parted` has parted."""
    return eqx.combine(rest, memories)


def take_rows(tree: Tree, rows: Int[Array, " taken"]) -> Tree:
    """The tree with the memories of these rows."""
    return _each_memory(lambda memory: jax.tree.map(lambda x: x[rows], memory), tree)


def where_rows(chosen: Bool[Array, " rows"], then: Tree, otherwise: Tree) -> Tree:
    """The memories of `then` in the chosen rows, and those of `otherwise` in the others."""

    def pick(a: Array, b: Array) -> Array:
        rows = chosen.reshape(chosen.shape[0], *(1,) * (a.ndim - 1))
        return jnp.where(jnp.broadcast_to(rows, a.shape), a, b)

    return _each_memory(lambda a, b: jax.tree.map(pick, a, b), then, otherwise)


def _each_memory(function: Any, tree: Tree, *others: Tree) -> Tree:
    def each(node: Any, *rest: Any) -> Any:
        return function(node, *rest) if is_memory(node) else node

    return jax.tree.map(each, tree, *others, is_leaf=is_memory)
