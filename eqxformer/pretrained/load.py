"""Models from checkpoints of transformers: a directory or an id of the Hub."""

import os
import pathlib
from typing import Any

import equinox as eqx
import jax
from jaxtyping import DTypeLike

from eqxformer.checkpoints.errors import CheckpointError, MissingFile
from eqxformer.checkpoints.native import TOKENIZER, load
from eqxformer.checkpoints.placing import Where
from eqxformer.checkpoints.tensor_files import shown
from eqxformer.config import Config
from eqxformer.pretrained.checkpoint import Checkpoint, is_native
from eqxformer.pretrained.locate import home, locate
from eqxformer.pretrained.sentences import in_lower_case, longest_text
from eqxformer.pretrained.tokens import add_listed, instead
from eqxformer.strict_json import json_object

_TOKENIZER = ("*.json", "*.txt", "*.model", "*.spm")  # what is downloaded for a tokenizer alone


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    sharding: Where = None,
    revision: str | None = None,
) -> Any:
    """The model in a checkpoint of transformers, as a plain Equinox module.

    What kind of model it is follows from `architectures` in its `config.json`: a `DecoderLM`, an
    `Encoder`, an `EncoderDecoder`, or one of the latter two `WithHead`. Only safetensors files are
    read, tensor by tensor; every tensor and every setting is accounted for.

    Arguments:
        source: a directory, or an id of the Hugging Face Hub (with the extra `hub`), whose weights
            are downloaded once its settings are known to be supported.
        dtype: the type of the weights. If None, float32 on a CPU, which is slow with anything
            less, and the checkpoint's own elsewhere.
        sharding: where the arrays go, as they are read: a `Placement`, a `jax.sharding.Sharding`
            for all, or a function of an array's path and shape that returns one.
        revision: a branch, tag or commit on the Hub.

    Raises `CheckpointError` for everything that is wrong with a checkpoint, before numbers are
    read: files, settings it does not know, tensors that are missing, left over or misshapen.

    Example:
        >>> import eqxformer as ef, jax, tempfile
        >>> config = ef.families.llama(vocab=65, dim=16, layers=2, heads=2, hidden=32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ef.save_pretrained(config.build(key=jax.random.key(0)), f"{folder}/tiny")
        ...     model = ef.from_pretrained(f"{folder}/tiny")
        >>> model.config.origin is not None
        True
    """
    checkpoint = Checkpoint(locate(source, revision=revision))
    if dtype is None and jax.default_backend() == "cpu":
        dtype = "float32"
    return checkpoint.model(dtype=dtype, sharding=sharding)


def load_any(folder: pathlib.Path, dtype: DTypeLike | None = None) -> Any:
    """The model in a directory of our own format or of transformers.

    Arguments:
        folder: the directory.
        dtype: the type of the weights, as of `from_pretrained`; of our own format, as they are
            stored if None.
    """
    if not is_native(folder):
        return from_pretrained(folder, dtype=dtype)
    model = load(folder)
    if dtype is None:
        return model
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    return eqx.combine(jax.tree.map(lambda x: x.astype(dtype), arrays), rest)


def load_tokenizer(source: str | os.PathLike[str], *, revision: str | None = None) -> Any:
    """The `tokenizers.Tokenizer` of a checkpoint, from its `tokenizer.json` as it stands.

    That of a run over characters becomes one, and a model in a run, such as its `best`, has that of
    the run. Tokens that are only listed in files beside it, such as `tokenizer_config.json`, are
    added as in transformers. That of a directory of sentence-transformers cuts texts where
    `sentence_bert_config.json` says, and makes them lower case if it says so, as that library does.

    Needs the package tokenizers, which the extra `hub` brings. Raises `MissingFile` for a
    checkpoint without that file, which can mostly be converted once, and `CheckpointError` for one
    that is wrong or does not fit what is beside it.

    Arguments:
        source: a directory, or an id of the Hub.
        revision: a branch, tag or commit on the Hub.

    Example:
        >>> import eqxformer as ef, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ef.WordBPE(vocab=30).train(["a man"] * 9).save(f"{folder}/tokenizer.json")
        ...     tokenizer = ef.load_tokenizer(folder)
        >>> tokenizer.encode("a man").tokens
        ['▁a', '▁man']
    """
    folder = home(locate(source, revision=revision, patterns=_TOKENIZER))
    path = folder / TOKENIZER
    if not path.is_file():
        raise MissingFile(f"There is no {TOKENIZER} in {folder}. {instead(folder)}")
    try:
        from tokenizers import Tokenizer, normalizers
    except ImportError:
        raise ImportError(
            "`load_tokenizer` needs tokenizers: pip install 'eqxformer[hub]'."
        ) from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exceptions
        tokenizer = _our_own(path, Tokenizer)
        if tokenizer is None:
            raise CheckpointError(f"{path} is no tokenizer: {error}.") from None
    add_listed(tokenizer, folder)
    longest = longest_text(folder)
    if longest is not None:
        tokenizer.enable_truncation(**{**(tokenizer.truncation or {}), "max_length": longest})
    if in_lower_case(folder):
        own = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
    return tokenizer


def _our_own(path: pathlib.Path, kind: type) -> Any:
    """What a tokenizer in our own format is in that of the package tokenizers; None for others.

    `kind` is that package's class. Raises `CheckpointError` for one of ours that is none there.
    """
    try:
        values = json_object(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    if "type" not in values:
        return None
    try:
        made = getattr(Config.from_dict(values), "tokenizer", None)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is no tokenizer: {error}") from None
    if not isinstance(made, kind):
        kept = shown(values["type"])
        raise CheckpointError(f"{path} is of type {kept}, which the package tokenizers lacks.")
    return made
