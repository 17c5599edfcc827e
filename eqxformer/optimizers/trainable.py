"""Which arrays of a model are trained: all, some, or all but some, by their paths."""

from typing import Any

import equinox as eqx
import jax

from eqxformer.checkpoints.names import every_name, leads_to
from eqxformer.config import Config, nearest


class Trainable(Config):
    """Which arrays of a model are trained; an optimizer has no memory for the others.

    Arrays of integers never are. `Only` and `Except` name arrays by their paths in the parameter
    table, in which `*` stands for any one name or number and `**` for any number of names. A path
    that leads to a part means all that is in it.

    Example:
        >>> import eqxformer as ef, jax
        >>> class Biases(ef.Trainable):
        ...     def wanted(self, name):
        ...         return name.endswith("bias")
        >>> ef.count(Biases().of(ef.MLP(8, hidden=16, key=jax.random.key(0))))
        24
    """

    def wanted(self, name: str) -> bool:
        """Whether the array of this name is trained; every one is here."""
        return True

    def check_names(self, names: tuple[str, ...]) -> None:
        """Raises `ValueError` where the paths do not fit a model with arrays of these names."""

    def mask(self, model: Any) -> Any:
        """A tree like the model's with True in place of what is trained and False elsewhere.

        Raises `ValueError` for a path that leads nowhere, and for layers of which some are trained
        and some are not while they are stored as one array.
        """
        names = every_name(model)
        tuples = jax.tree.leaves(names, is_leaf=_is_names)
        self.check_names(tuple(name for each in tuples for name in each))
        return jax.tree.map(
            lambda leaf, each: self._of_leaf(leaf, each), model, names, is_leaf=lambda x: x is None
        )

    def of(self, model: Any) -> Any:
        """The arrays that are trained; everything else is None.

        Example:
            >>> import eqxformer as ef, jax
            >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
            >>> ef.count(ef.Only(paths=("up",)).of(mlp)), ef.count(ef.Trainable().of(mlp))
            (144, 280)
        """
        return eqx.filter(model, self.mask(model))

    def _of_leaf(self, leaf: Any, names: tuple[str, ...] | None) -> bool:
        if not names or not _learns(leaf):
            return False
        wanted = {self.wanted(name) for name in names}
        if len(wanted) > 1:
            raise ValueError(
                f"{names[0]} to {names[-1]} are stored as one array, of which the layers cannot be "
                f"trained in part; name all of them, or use the layout `Unrolled()`. Got {self}."
            )
        return wanted.pop()


class _Paths(Trainable):
    """Arrays by their paths."""

    paths: tuple[str, ...]

    def check(self) -> None:
        if not self.paths or not all(self.paths):
            raise ValueError(f"`paths` must name at least one path; got {self.paths}.")

    def check_names(self, names: tuple[str, ...]) -> None:
        for path in self.paths:
            if not any(leads_to(path, name) for name in names):
                raise ValueError(
                    f"`{path}` leads to no array of the model.{nearest(path, names)} "
                    "`print(ef.table(model))` shows them all."
                )

    def named(self, name: str) -> bool:
        """Whether one of the paths leads to the array of this name."""
        return any(leads_to(path, name) for path in self.paths)


class Only(_Paths):
    """Trains what is named and nothing else.

    Example:
        >>> import eqxformer as ef
        >>> trains = ef.Only(paths=("head", "blocks.11", "blocks.*.attention.query.weight"))
    """

    def wanted(self, name: str) -> bool:
        return self.named(name)


class Except(_Paths):
    """Trains all but what is named, which is frozen.

    Example:
        >>> import eqxformer as ef
        >>> trains = ef.Except(paths=("embedding", "**.bias"))
    """

    def wanted(self, name: str) -> bool:
        return not self.named(name)


def trainable(model: Any) -> Any:
    """The arrays that can be trained: those of a floating type, everything else None."""
    return eqx.filter(model, eqx.is_inexact_array)


def _learns(leaf: Any) -> bool:
    numbers = jax.numpy.inexact
    is_shape = isinstance(leaf, jax.ShapeDtypeStruct) and jax.numpy.issubdtype(leaf.dtype, numbers)
    return eqx.is_inexact_array(leaf) or is_shape


def _is_names(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(name, str) for name in node)
