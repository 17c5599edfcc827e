"""The library's own format: `config.json`, the config tree, and `model.safetensors`.

Names in the file are the paths of the model's arrays. Nothing a file names is ever imported or
executed; a tensor too many, too few or of another shape is an error that lists all of them.
"""

import json
import os
import pathlib
import tempfile
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from eqxformer.checkpoints.names import named_arrays
from eqxformer.checkpoints.rebuild import differences, expected, shapes, with_arrays
from eqxformer.config import Config, json_object

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_FORMAT = "eqxformer"


def save(model: eqx.Module, directory: str | os.PathLike[str]) -> None:
    """Writes a model to a directory, which is made if it is not there.

    Each file is written beside its place and then renamed, so that a reader never sees half of it.

    Arguments:
        model: any model with a `config` that builds it.
        directory: where `config.json` and `model.safetensors` go.

    Raises `ValueError` for arrays that the config would not make, since `load` could not read them.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"`save` needs a model with a `config`; {type(model).__name__} has none.")
    arrays = {key: np.asarray(value) for key, value in named_arrays(model).items()}
    wrong = differences({k: v.shape for k, v in arrays.items()}, expected(shapes(config)))
    if wrong:
        raise ValueError("The model is not the one of its config:\n  " + "\n  ".join(wrong))
    text = json.dumps({"format": _FORMAT, "model": config.to_dict()}, indent=2)
    folder = pathlib.Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / WEIGHTS, lambda path: save_file(arrays, path, metadata={"format": _FORMAT}))
    _replace(folder / CONFIG, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def load(directory: str | os.PathLike[str]) -> Any:
    """The model that `save` wrote to a directory.

    Raises `FileNotFoundError` for a file that is not there, and `ValueError` for one that is not
    what it should be: every missing, unexpected or wrongly shaped tensor is listed.

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
    folder = pathlib.Path(directory)
    skeleton = shapes(load_config(folder))
    return with_arrays(skeleton, _read(folder / WEIGHTS, expected(skeleton)))


def load_config(directory: str | os.PathLike[str]) -> Config:
    """The config tree in a directory that `save` wrote; errors as for `load`."""
    path = pathlib.Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"No {CONFIG} in {path.parent}; is this a saved model?")
    try:
        values = json_object(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if values.get("format") != _FORMAT or not isinstance(values.get("model"), dict):
        raise ValueError(f"{path} was not written by eqxformer's `save`.")
    return Config.from_dict(values["model"])


def _read(path: pathlib.Path, wanted: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    if not path.is_file():
        raise FileNotFoundError(f"No {WEIGHTS} in {path.parent}; is this a saved model?")
    try:
        with safe_open(path, framework="numpy") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            wrong = differences(found, wanted)
            if wrong:
                raise ValueError(f"{path} does not fit its {CONFIG}:\n  " + "\n  ".join(wrong))
            return {key: _on_device(path, key, file.get_tensor(key)) for key in found}
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}.") from None


def _on_device(path: pathlib.Path, key: str, array: np.ndarray) -> Array:
    """The array for JAX, which would turn float64 into float32 without a word."""
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise ValueError(
            f"{path}: {key} is {array.dtype}, which JAX only keeps with `jax_enable_x64` on."
        )
    return jax.numpy.asarray(array)


def _replace(path: pathlib.Path, write: Any) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(pathlib.Path(temporary))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
