"""A checkpoint opened: everything known and checked, the numbers of its tensors still on disk."""

import collections
import fnmatch
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike

from eqxformer.architectures import architecture
from eqxformer.checkpoints.architecture import Architecture
from eqxformer.checkpoints.errors import CheckpointError, MissingFile
from eqxformer.checkpoints.names import name, unrolled
from eqxformer.checkpoints.placing import Where, by_name, place
from eqxformer.checkpoints.rebuild import expected, shapes, with_arrays
from eqxformer.checkpoints.rules import Binding, bind
from eqxformer.checkpoints.settings import Settings, nearest
from eqxformer.checkpoints.stored import Stored
from eqxformer.checkpoints.tensor_files import TensorFiles, read_json_text
from eqxformer.layers.wide import stays_wide
from eqxformer.models.encoder import Encoder
from eqxformer.models.origin import Origin
from eqxformer.pretrained.sentences import pooling_of

CONFIG = "config.json"
_LIMIT = 4 * 2**20  # bytes of a config.json; the largest known have some hundred kB


class Said:
    """What the settings in a checkpoint's directory say, which needs no tensors beside them.

    Arguments:
        directory: where `config.json` lies, and the files of a pooling if there is one.

    Raises `CheckpointError` for settings that are not there, or of a model that is not known.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory, self.where = directory, str(directory / CONFIG)
        self.text, self.values = read_settings(directory)
        self.architecture = architecture_of(self.values, self.where)
        self.pooling = pooling_of(directory)
        if self.pooling is not None:
            self._leave_out_head()
        self.class_name, self.task = self.architecture.task(Settings(self.values, where=self.where))

    def tree(self, stored: Stored | None) -> Any:
        """The config tree that is described; every key is accounted for, or a `CheckpointError`.

        Arguments:
            stored: the tensors, by which some settings are understood; None where none are there.
        """
        settings = Settings(self.values, stored=stored, where=self.where)
        config = read_tree(self.architecture, self.task.config, settings)
        return config if self.pooling is None else self._pooled(config)

    def _leave_out_head(self) -> None:
        """The states alone are what is pooled, whatever head is named."""
        body = self.architecture.body
        if body is not None and self.values.get("architectures") != [body]:
            self.values = {**self.values, "architectures": [body]}
            self.text = json.dumps(self.values, indent=2) + "\n"

    def _pooled(self, config: Any) -> Encoder.Config:
        """The encoder with the pooling that the directory names."""
        if not isinstance(config, Encoder.Config):
            raise CheckpointError(
                f"{self.directory}: {self.class_name} has no states of its own that can be pooled, "
                "as the modules beside it ask."
            )
        return config.edit(pooling=self.pooling)


class Checkpoint:
    """A checkpoint directory in the format of transformers, read but for the tensors' numbers.

    Arguments:
        directory: where `config.json` and the safetensors files lie.

    Raises `CheckpointError`, before any number is read, for everything that does not fit: files,
    settings, names and shapes of tensors.

    Example:
        >>> import eqxformer as ef, jax, tempfile
        >>> config = ef.families.llama(vocab=65, dim=16, layers=2, heads=2, hidden=32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ef.save_pretrained(config.build(key=jax.random.key(0)), f"{folder}/tiny")
        ...     checkpoint = ef.Checkpoint(f"{folder}/tiny")
        >>> checkpoint.class_name, checkpoint.config.dim, ef.count(checkpoint.skeleton)
        ('LlamaForCausalLM', 16, 7280)
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = pathlib.Path(directory)
        said = Said(self.directory)
        self.text, self.architecture, self.pooling = said.text, said.architecture, said.pooling
        self.class_name, self.task = said.class_name, said.task
        self.files = TensorFiles.open(self.directory)
        self.stored = Stored(self.files, self.task.prefix)
        config = said.tree(self.stored)
        self.config = config.edit(origin=Origin(self.text, str(self.directory.resolve())))
        self.skeleton = skeleton(self.config, said.where)
        self.bindings = bind(self.task.rules(self.config), expected(self.skeleton))
        self._account()

    def model(self, *, dtype: DTypeLike | None = None, sharding: Where = None) -> Any:
        """The model with its numbers, read tensor by tensor, the largest first.

        Arguments:
            dtype: the type of the weights; the file's own if None. What a module keeps in float32,
                such as the router of experts, is float32 where this is smaller.
            sharding: where every array goes: one sharding for all, a function of an array's path
                and shape, or a `Placement`.
        """
        where = by_name(sharding, self.skeleton)
        arrays: dict[str, Array] = {}
        small = dtype is not None and jnp.dtype(dtype).itemsize < 4
        wide = kept_wide(self.skeleton) if small else ()
        largest = sorted(self.bindings, key=lambda b: -sum(map(np.prod, b.shapes)))
        for binding in largest:
            # No name outlives its use here: what is read and what is moved would both stay.
            for path, numbers in self._numbers(binding):
                kind = "float32" if path in wide else dtype
                arrays[path] = place(typed(path, numbers, kind), where(path, numbers.shape))
        return with_arrays(self.skeleton, arrays)

    def _numbers(self, binding: Binding) -> list[tuple[str, np.ndarray]]:
        theirs = [self.stored.read(name) for name in binding.theirs]
        return list(zip(binding.ours, binding.move.read(theirs, binding.shapes), strict=True))

    def _account(self) -> None:
        """Raises `CheckpointError` with all tensors that are missing, left over or misshapen."""
        wanted = {name: s for b in self.bindings for name, s in b.their_shapes().items()}
        found = {name: self.stored.find(name) for name in (*wanted, *self.stored.repeats)}
        used = collections.Counter(name for name in found.values() if name is not None)
        ignored = self.task.ignored
        left = [
            name
            for name in sorted(self.stored.names - set(used))
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored)
            and not (self.pooling is not None and "pooler." in name)  # what it is instead of
        ]
        missing = [name for name in wanted if found[name] is None]
        lines = [f"missing: {name} {wanted[name]}{nearest(name, left)}" for name in missing]
        lines += [f"unexpected: {name} {self.files.shape(name)}" for name in left]
        lines += [
            f"shape: {name} is {self.stored.shape(name)}, expected {shape}"
            for name, shape in wanted.items()
            if found[name] is not None and self.stored.shape(name) != shape
        ]
        lines += [f"asked for {times} times: {name}" for name, times in used.items() if times > 1]
        lines += self._mixed(found)
        if lines:
            raise CheckpointError(
                f"{self.directory}: the tensors are not those of the {self.class_name} that "
                f"{CONFIG} describes:\n  " + "\n  ".join(lines)
            )

    def _mixed(self, found: Mapping[str, str | None]) -> Iterator[str]:
        """Tensors that make one array and are of several types, of which some have no fractions."""
        for binding in self.bindings:
            there = [found[each] for each in binding.theirs if len(binding.theirs) > 1]
            types = {self.files.dtype(each) for each in there if each is not None}
            if len(types) > 1 and not all(jnp.issubdtype(each, jnp.floating) for each in types):
                names = " and ".join(sorted(map(str, types)))
                yield f"types: {', '.join(binding.theirs[:3])} make one array and are {names}"


def read_settings(directory: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """The text of a directory's `config.json`, and what it says."""
    path = directory / CONFIG
    if not path.is_file():
        raise MissingFile(f"There is no {CONFIG} in {directory}; is it a checkpoint's directory?")
    return read_json_text(path, limit_bytes=_LIMIT)


def is_native(directory: pathlib.Path) -> bool:
    """Whether a directory is in our own format; `CheckpointError` where it has no settings."""
    _, values = read_settings(directory)
    return values.get("format") == "eqxformer"


def architecture_of(values: Mapping[str, Any], where: Any) -> Architecture:
    """The architecture that settings name."""
    if values.get("format") == "eqxformer":
        raise CheckpointError(f"{where} is in eqxformer's own format; read it with `load`.")
    named = values.get("model_type")
    if not isinstance(named, str):
        raise CheckpointError(f"{where} lacks `model_type`, which says what the checkpoint is.")
    try:
        return architecture(named)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from None


def read_tree(known: Architecture, config: Callable[[Settings], Any], settings: Settings) -> Any:
    """The config tree that settings describe, every one of their keys accounted for."""
    try:
        tree = config(settings)
    except CheckpointError:
        raise
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(f"{settings.where} describes no model: {error}") from error
    settings.check_all_read(known.model_type)
    return tree


def skeleton(config: Any, where: str) -> Any:
    """The shapes of a model; an impossible config is the checkpoint's error."""
    try:
        return shapes(config)
    except (ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{where} describes no model: {error}") from error


def kept_wide(skeleton: Any) -> set[str]:
    """The names of the arrays that stay in float32 where a model is in a smaller type."""
    model = unrolled(skeleton)
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return {name(path) for path, _ in leaves if stays_wide(model, path)}


def typed(path: str, numbers: np.ndarray, dtype: DTypeLike | None) -> np.ndarray:
    """The numbers of an array in its type."""
    if dtype is not None and jnp.issubdtype(numbers.dtype, jnp.floating):
        numbers = numbers.astype(jnp.dtype(dtype), copy=False)
    numbers = np.ascontiguousarray(numbers)
    if jax.dtypes.canonicalize_dtype(numbers.dtype) != numbers.dtype:
        raise CheckpointError(
            f"`{path}` is stored as {numbers.dtype}, which JAX keeps with `jax_enable_x64` only; "
            "pass `dtype='float32'`."
        )
    return numbers
