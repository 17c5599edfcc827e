"""Models to directories that transformers loads."""

import functools
import json
import os
import pathlib
import shutil
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.names import named_arrays
from eqxformer.checkpoints.placing import gathered, one_writes
from eqxformer.checkpoints.rebuild import check_plain, differences, expected, shapes
from eqxformer.checkpoints.rules import Binding
from eqxformer.checkpoints.settings import Settings
from eqxformer.checkpoints.stored import Computed
from eqxformer.checkpoints.tensor_files import (
    contained,
    parse_size,
    replaced_directory,
    write_tensors,
)
from eqxformer.config import Config
from eqxformer.models.encoder import Encoder
from eqxformer.models.origin import Origin
from eqxformer.pretrained.checkpoint import CONFIG, kept_wide
from eqxformer.pretrained.express import Expression, expression
from eqxformer.pretrained.sentences import MODULES, describe_pooling

# Files beside the weights that belong to a checkpoint and say nothing about its numbers.
CARRIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "tokenizer.model",
    "tekken.json",
    "normalizer.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "target_vocab.json",
    "bpe.codes",
    "preprocessor_config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)

TEMPLATES = "additional_chat_templates"  # a directory of those beside chat_template.jinja
# What an older model's directory may say of how another one is used; transformers puts adapters
# that lie beside weights into these.
_OF_ANOTHER = (
    "modules.json",
    "generation_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
# All that says how an older model is used.
OLD = tuple(dict.fromkeys((*CARRIED, TEMPLATES, *_OF_ANOTHER)))


def save_pretrained(
    model: Any,
    directory: str | os.PathLike[str],
    *,
    model_type: str | None = None,
    shard_size: int | str = "5GB",
    overwrite: bool = False,
) -> None:
    """Writes a model as a checkpoint that transformers loads, with equal results.

    A model that was loaded is written in the words of its own checkpoint, with the tokenizer and
    the other files beside it. Any other model is written as the first architecture that can say
    what it is. The directory appears whole or not at all.

    Arguments:
        model: a model with a config.
        directory: where it goes.
        model_type: the architecture to write it as; None leaves the choice.
        shard_size: the most bytes of one file of weights, a number or a text such as `500MB`.
        overwrite: whether the model in a directory that is not empty is replaced: its weights,
            settings and adapters, and how it pools. Other files stay.

    Raises `CheckpointError` for a model that no architecture expresses (`save` stores any), and
    `FileExistsError` for a directory that is not empty.

    Example:
        >>> import eqxformer as ef, jax, os, tempfile
        >>> config = ef.families.llama(vocab=65, dim=16, layers=2, heads=2, hidden=32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ef.save_pretrained(config.build(key=jax.random.key(0)), f"{folder}/tiny")
        ...     sorted(os.listdir(f"{folder}/tiny"))
        ['config.json', 'model.safetensors']
    """
    write_pretrained(
        model, directory, model_type=model_type, shard_size=shard_size, overwrite=overwrite
    )


def write_pretrained(
    model: Any,
    directory: str | os.PathLike[str],
    *,
    model_type: str | None = None,
    shard_size: int | str = "5GB",
    overwrite: bool = False,
    but: Collection[str] = _OF_ANOTHER,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """As `save_pretrained`, without the files `but` of an older model, with those `beside`."""
    arrays, known = _checked(model), expected(model)
    written = expression(model.config, known, model_type)
    bindings = written.bindings(model.config, known)
    wide = kept_wide(shapes(model.config))
    usual = [array for path, array in arrays.items() if path not in wide]
    settings = {**written.settings, **_dtype(written.settings, usual)}
    shard_bytes, arrays = parse_size(shard_size), gathered(arrays)
    text = written.text if settings == written.settings else None
    text = json.dumps(settings, indent=2) + "\n" if text is None else text
    with one_writes() as writes:
        if not writes:
            return
        with replaced_directory(directory, overwrite=overwrite, but=but) as folder:
            carry(model.config, folder)
            for name, data in beside.items():
                (folder / name).write_bytes(data)
            (folder / CONFIG).write_text(text, encoding="utf-8")
            write_tensors(
                folder,
                sorted((*_tensors(bindings, arrays), *_computed(written, arrays)), key=_name),
                shard_bytes=shard_bytes,
            )


def _checked(model: Any) -> dict[str, Any]:
    """The arrays of a model by their paths, if they are those of its config."""
    config = getattr(model, "config", None)
    if not isinstance(config, Config) or not hasattr(config, "origin"):
        raise CheckpointError(f"{type(model).__name__} is no whole model, which has a config.")
    try:
        check_plain(model)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    arrays = named_arrays(model)
    found = {path: tuple(array.shape) for path, array in arrays.items()}
    wrong = differences(found, expected(shapes(config)))
    if wrong:
        raise CheckpointError("The model is not the one of its config:\n  " + "\n  ".join(wrong))
    return arrays


def _dtype(settings: Mapping[str, Any], arrays: Iterable[Any]) -> dict[str, str]:
    """The key that says the type of the weights, in the words of the settings' version."""
    types = {jnp.dtype(a.dtype).name for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)}
    key = "torch_dtype" if "torch_dtype" in settings else "dtype"
    return {key: types.pop()} if len(types) == 1 else {}


def _tensors(bindings: list[Binding], arrays: Mapping[str, Any]) -> Iterable[Any]:
    """Every tensor to write: its name, a function that gives it, its shape and type."""

    def moved(binding: Binding) -> list[np.ndarray]:
        ours = [np.asarray(jax.device_get(arrays[path])) for path in binding.ours]
        return [n.astype(dtype_of(binding), copy=False) for n in binding.move.write(ours)]

    def dtype_of(binding: Binding) -> np.dtype:
        """The widest type of those of ours that become one tensor, some of which may be trained."""
        return max((np.dtype(arrays[path].dtype) for path in binding.ours), key=_itemsize)

    # Experts are written one by one; their stacks are not to leave the device for each of them.
    several = functools.lru_cache(maxsize=4)(moved)
    for binding in bindings:
        dtype = dtype_of(binding)
        written = moved if len(binding.theirs) == 1 else several
        for i, (name, shape) in enumerate(binding.their_shapes().items()):

            def numbers(written: Any = written, binding: Binding = binding, i: int = i) -> Any:
                return np.ascontiguousarray(written(binding)[i])

            yield name, numbers, shape, dtype


def _itemsize(dtype: np.dtype) -> int:
    return dtype.itemsize


def _computed(written: Expression, arrays: Mapping[str, Any]) -> Iterable[Any]:
    """The same for tensors that files of this class hold though they follow from the settings."""
    dtype = np.dtype(next(iter(arrays.values())).dtype)
    for name, tensor in written.task.computed(Settings(written.settings)).items():

        def numbers(tensor: Computed = tensor) -> np.ndarray:
            return tensor.numbers().astype(dtype)

        yield name, numbers, tensor.shape, dtype


def _name(tensor: tuple[str, Any, Any, Any]) -> str:
    return tensor[0]


def carry(config: Config, folder: pathlib.Path) -> None:
    """The files of the checkpoint that the model is from, and what says how an encoder pools."""
    carry_files(config, folder)
    if isinstance(config, Encoder.Config) and _said_in_files(config):
        for name, values in describe_pooling(config.pooling, config.dim).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def carry_files(config: Config, folder: pathlib.Path, *, but: Collection[str] = ()) -> None:
    """The files beside the weights of the checkpoint that the model is from, but for some."""
    origin = getattr(config, "origin", None)
    if isinstance(origin, Origin) and origin.directory is not None:
        for name in CARRIED:
            file = contained(pathlib.Path(origin.directory), name)
            if file.is_file() and name not in but:
                shutil.copyfile(file, folder / name)
        for file in sorted(pathlib.Path(origin.directory).glob(f"{TEMPLATES}/*.jinja")):
            (folder / TEMPLATES).mkdir(exist_ok=True)
            name = f"{TEMPLATES}/{file.name}"
            shutil.copyfile(contained(pathlib.Path(origin.directory), name), folder / name)


def _said_in_files(config: Encoder.Config) -> bool:
    """Whether an encoder's pooling is written as a sentence-transformers directory says it.

    It is where it came from such a directory, and where a checkpoint without those files would be
    read with another pooling.
    """
    pooling = config.pooling
    source = None if config.origin is None else config.origin.directory
    if source is not None and (pathlib.Path(source) / MODULES).is_file():
        return True
    usual = "last" if config.direction == "causal" else "mean"
    return pooling.dense is None and (pooling.take != usual or pooling.unit_length)
