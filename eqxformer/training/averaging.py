"""The mean of several models: of checkpoints of one run, it is better than each of them.

Vaswani et al. 2017 average the last checkpoints; with a rate that does not go to zero, that takes
away much of the noise in the weights.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.checkpoints.native import load, save
from eqxformer.checkpoints.placing import one_writes
from eqxformer.layers.norms import widen
from eqxformer.training.callbacks import Callback

if TYPE_CHECKING:
    from eqxformer.training.trainer import Trainer

_NAME = "step-"


def average(models: Iterable[Any]) -> Any:
    """The model whose every weight is the mean of theirs, summed in float32.

    Arguments:
        models: like models, such as `map(ef.load, directories)`. They are taken one after the
            other: of those to come, none is in memory.

    Arrays of whole numbers and everything else are the first model's. Raises `ValueError` for no
    model, and for models that are not alike.

    Example:
        >>> import eqxformer as ef, jax
        >>> first, second = (ef.Linear(2, 3, key=jax.random.key(i)) for i in (0, 1))
        >>> mean = ef.average([first, second])
        >>> bool((abs(mean.weight - (first.weight + second.weight) / 2) < 1e-6).all())
        True
    """
    first, total, count = None, [], 0
    for model in models:
        arrays, _ = eqx.partition(model, eqx.is_inexact_array)
        if first is None:
            first = model
            total = [_wide(a) for a in jax.tree.leaves(arrays)]
        else:
            _check_alike(first, model)  # in their arrays: they may be from several directories
            total = [a + _wide(b) for a, b in zip(total, jax.tree.leaves(arrays), strict=True)]
        count += 1
    if first is None:
        raise ValueError("`average` needs at least one model; got none.")
    arrays, rest = eqx.partition(first, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(arrays)
    mean = [
        (a / jnp.asarray(count, a.dtype)).astype(b.dtype)
        for a, b in zip(total, leaves, strict=True)
    ]
    return eqx.combine(jax.tree.unflatten(structure, mean), rest)


class AverageLast(Callback):
    """Keeps the last few models in a directory; at the end, their mean is the model that comes out.

    `trainer.outcome` is the mean then, which `Evaluate` and `Save` take; the state keeps the
    weights of the last step. Nothing is averaged after Ctrl-C. Training that goes on from a
    checkpoint goes on with the models of the steps before it.

    Arguments:
        folder: where the models are kept, as `step-100` and so on. What an earlier training left
            there is removed at the start.
        count: how many models.
        every: steps between two of them.

    Example:
        >>> import eqxformer as ef, pathlib
        >>> average = ef.AverageLast(pathlib.Path("run/last"), count=5, every=1000)
        >>> average.count, average.every
        (5, 1000)
    """

    def __init__(self, folder: Path, *, count: int, every: int) -> None:
        for name, value in {"count": count, "every": every}.items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        self.folder, self.count, self.every = folder, count, every

    def started(self, trainer: "Trainer") -> None:
        self._remove(lambda step: step > trainer.step or trainer.step == 0)

    def reached(self, trainer: "Trainer") -> None:
        save(trainer.state.averaged, self.folder / f"{_NAME}{trainer.step}")
        self._remove(lambda step: step in sorted(self._kept())[: -self.count])

    def finished(self, trainer: "Trainer") -> None:
        kept = self._kept()
        if kept and not trainer.interrupted:
            folders = [kept[step] for step in sorted(kept)]
            trainer.outcome = average(load(each, sharding=trainer.placement) for each in folders)

    def _remove(self, goes: Callable[[int], bool]) -> None:
        """Removes the models of some steps; the first of several processes does it for all."""
        with one_writes() as removes:
            if removes:
                for path in [path for step, path in self._kept().items() if goes(step)]:
                    shutil.rmtree(path)

    def _kept(self) -> dict[int, Path]:
        """The models that are there, by their steps."""
        found = self.folder.glob(f"{_NAME}*") if self.folder.is_dir() else ()
        names = {path: path.name.removeprefix(_NAME) for path in found}
        return {int(name): path for path, name in names.items() if name.isdigit()}


def _wide(x: Any) -> jax.Array:
    return widen(jnp.asarray(x))


def _check_alike(first: Any, other: Any) -> None:
    """Raises `ValueError` for models of different arrays."""
    one, two = (
        {
            jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(model, eqx.is_array))
        }
        for model in (first, other)
    )
    wrong = [name for name in {**one, **two} if one.get(name) != two.get(name)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"Models to average must be alike; `{name}` has the shape {one.get(name)} in the first "
            f"and {two.get(name)} in another."
        )
