"""The library's own format: `config.json`, the config tree, and `model.safetensors`.

Names in the file are the paths of the model's arrays. Nothing a file names is ever imported or
executed; a tensor too many, too few or of another shape is an error that lists all of them.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from eqxformer.checkpoints._replacing import hidden_directory, sync
from eqxformer.checkpoints._writing import write_file
from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.names import named_arrays
from eqxformer.checkpoints.placing import Where, by_name, gathered, one_writes, place
from eqxformer.checkpoints.rebuild import (
    check_plain,
    differences,
    expected,
    shapes,
    with_arrays,
)
from eqxformer.checkpoints.tensor_files import WEIGHTS, TensorFiles, read_json
from eqxformer.config import Config

CONFIG = "config.json"
RUN, TOKENIZER = "run.json", "tokenizer.json"  # what a run has beside its model
_FORMAT = "eqxformer"
_MAX_CONFIG = 4 * 2**20  # bytes; a block of many options has some 3,000
_MAX_BLOCKS = 2048


def save(model: eqx.Module, directory: str | os.PathLike[str]) -> None:
    """Writes a model to a directory, which is made if it is not there.

    Each file is written in a hidden directory and then renamed, so that a reader never sees half of
    it; after an exception both are what they were, and what a killed process left there is removed.
    Where the config is the one that is there already, only the weights are replaced, in one step.
    Otherwise the old config goes first and the new one comes last: a process killed in between
    leaves no config, and never weights beside the config of another model.

    A model may lie on many devices, also of several processes: all of these call this, the first
    of them writes, and none goes on before that is done.

    Arguments:
        model: any model with a `config` that builds it.
        directory: where `config.json` and `model.safetensors` go. Other files stay as they are.

    Raises `ValueError` for what `load` could not read: parts and arrays that the config would not
    make, adapters, int8 weights and patches among them, and more than 2,048 blocks.

    Example:
        >>> import eqxformer as ef, jax, os, tempfile
        >>> config = ef.families.gpt(vocab=5, dim=4, layers=1, heads=2, context=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ef.save(config.build(key=jax.random.key(0)), folder)
        ...     sorted(os.listdir(folder))
        ['config.json', 'model.safetensors']
    """
    config = getattr(model, "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"`save` needs a model with a `config`; {type(model).__name__} has none.")
    check_plain(model)
    arrays = named_arrays(model)
    wrong = differences({k: v.shape for k, v in arrays.items()}, expected(shapes(config)))
    if wrong:
        raise ValueError("The model is not the one of its config:\n  " + "\n  ".join(wrong))
    values = {"format": _FORMAT, "model": config.to_dict()}
    text = (json.dumps(values, indent=2) + "\n").encode()
    if len(text) > _MAX_CONFIG or _listed(values) > _MAX_BLOCKS:
        raise ValueError(f"The format has room for {_MAX_BLOCKS:,} blocks; the model has more.")
    arrays = gathered(arrays)
    with one_writes() as writes:
        if writes:
            _write_all(pathlib.Path(directory), arrays, text)


def _write_all(folder: pathlib.Path, arrays: Mapping[str, Any], text: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with hidden_directory(folder / WEIGHTS) as hidden:
        new = {name: hidden / name for name in (WEIGHTS, CONFIG)}
        write_file(new[WEIGHTS], _tensors(arrays), {"format": _FORMAT})
        _write(new[CONFIG], text)
        _put(folder, new, text)


def load(directory: str | os.PathLike[str], *, sharding: Where = None) -> Any:
    """The model that `save` wrote to a directory.

    Arguments:
        directory: where `config.json` and `model.safetensors` lie.
        sharding: where the arrays go, as they are read: a `Placement`, a `jax.sharding.Sharding`
            for all, or a function of an array's path and shape that returns one.

    Raises `CheckpointError`, a `ValueError`, for files that are not what they should be: every
    missing, unexpected or wrongly shaped tensor is listed. Where a file is not there the error is a
    `FileNotFoundError` too. All of it is found before any number is read.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax, tempfile
        >>> model = ef.families.gpt(vocab=5, dim=4, layers=1, heads=2, context=8).build(
        ...     key=jax.random.key(0)
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ef.save(model, folder)
        ...     bool(eqx.tree_equal(ef.load(folder), model))
        True
    """
    skeleton, files = open_saved(directory)
    for name in files.names:
        _check_kept(pathlib.Path(directory) / WEIGHTS, name, files.dtype(name))
    where, arrays = by_name(sharding, skeleton), {}
    for name in files.names:
        numbers = files.read(name)
        arrays[name] = place(numbers, where(name, numbers.shape))
    return with_arrays(skeleton, arrays)


def open_saved(directory: str | os.PathLike[str]) -> tuple[Any, TensorFiles]:
    """The shapes of the model in a directory that `save` wrote, and its tensors, none of them read.

    Errors as for `load`.
    """
    folder = pathlib.Path(directory)
    values, files = _described(folder / CONFIG), TensorFiles.open(folder)
    blocks = _listed(values)
    if blocks > 64 + len(files):  # a block without arrays is rare, and making one takes time
        raise CheckpointError(
            f"{folder / CONFIG} describes {blocks:,} blocks; {len(files)} tensors are there."
        )
    skeleton = _skeleton(_config(values, folder / CONFIG), folder / CONFIG)
    found = {name: files.shape(name) for name in files.names}
    wrong = differences(found, expected(skeleton))
    if wrong:
        lines = "\n  ".join(wrong)
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its {CONFIG}:\n  {lines}")
    return skeleton, files


def load_config(directory: str | os.PathLike[str]) -> Config:
    """The config tree in a directory that `save` wrote; errors as for `load`.

    Example:
        >>> import eqxformer as ef, jax, tempfile
        >>> config = ef.families.gpt(vocab=5, dim=4, layers=1, heads=2, context=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ef.save(config.build(key=jax.random.key(0)), folder)
        ...     ef.load_config(folder) == config
        True
    """
    path = pathlib.Path(directory) / CONFIG
    return _config(_described(path), path)


def _described(path: pathlib.Path) -> dict[str, Any]:
    """What a `config.json` of `save` says about the model, as plain values."""
    values = read_json(path, limit_bytes=_MAX_CONFIG)
    if values.get("format") != _FORMAT or not isinstance(values.get("model"), dict):
        raise CheckpointError(f"{path} was not written by eqxformer's `save`.")
    if _listed(values) > _MAX_BLOCKS:
        raise CheckpointError(f"{path} may describe {_MAX_BLOCKS:,} blocks; it describes more.")
    return values["model"]


def _config(values: dict[str, Any], where: pathlib.Path) -> Config:
    try:
        return Config.from_dict(values)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{where}: {error}") from None


def _skeleton(config: Config, where: pathlib.Path) -> Any:
    """The shapes of the model; an impossible config is the file's error."""
    try:
        return shapes(config)
    except (ValueError, TypeError, OverflowError) as error:
        first, *_ = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(f"{where} describes no model: {first}") from error


def _listed(values: Any) -> int:
    """How many objects of a JSON value are items of a list: the blocks of a config."""
    count, left = 0, [values]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list):
            count += sum(isinstance(item, dict) for item in value)
            left.extend(value)
    return count


def _check_kept(path: pathlib.Path, name: str, dtype: np.dtype[Any]) -> None:
    """Raises for float64, which JAX would turn into float32 without a word."""
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise CheckpointError(
            f"{path}: {name} is {dtype}, which JAX only keeps with `jax_enable_x64` on."
        )


def _tensors(
    arrays: Mapping[str, Any],
) -> Iterator[tuple[str, Callable[[], np.ndarray], tuple[int, ...], Any]]:
    for name, array in arrays.items():
        yield name, lambda array=array: np.asarray(array), array.shape, array.dtype


def _write(path: pathlib.Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _put(folder: pathlib.Path, new: Mapping[str, pathlib.Path], config: bytes) -> None:
    """Renames the new files to their names; the old ones are put back if anything fails."""
    names = [WEIGHTS] if _same(folder / CONFIG, config) else [CONFIG, WEIGHTS]
    with contextlib.ExitStack() as undo:
        # The rename alone replaces a file; two files need the old ones out of the way before.
        for name in names[1:] and names:
            _aside(folder / name, new[name].with_name(f"{name}.old"), undo)
        for name in reversed(names):
            os.replace(new[name], folder / name)
        undo.pop_all()
    sync(folder)


def _aside(path: pathlib.Path, aside: pathlib.Path, undo: contextlib.ExitStack) -> None:
    """Moves a file, if it is there, to another path; `undo` makes all as it was."""
    there = path.exists()

    def put_back() -> None:
        if aside.exists():
            os.replace(aside, path)
        elif not there:
            path.unlink(missing_ok=True)

    undo.callback(put_back)
    if there:
        os.replace(path, aside)


def _same(path: pathlib.Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
