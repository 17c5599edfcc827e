"""Where a checkpoint is: a directory, or the Hub's, downloaded."""

import glob
import os
import pathlib
import re
from collections.abc import Sequence

from eqxformer.checkpoints.errors import MissingFile
from eqxformer.checkpoints.native import RUN, TOKENIZER
from eqxformer.checkpoints.tensor_files import CONVERSION, INDEX, WEIGHTS, shard_names
from eqxformer.pretrained.checkpoint import CONFIG, Said, is_native

# What is downloaded: never a pickle, nothing that is code. Weights are asked for by their names,
# since many a repository has them several times, in several types and for several programs.
_SETTINGS = ("*.json",)
_BESIDE = ("*.txt", "*.model", "*.spm", "*.codes", "*.jinja")
_OF_ADAPTERS = "adapter_config.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def locate(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
) -> pathlib.Path:
    """The directory of a checkpoint: `source` itself, or where the Hub's of this id now lies.

    Arguments:
        source: a directory, or an id such as `google/flan-t5-small`; a directory of that name
            goes first. Ids need huggingface-hub, the extra `hub`.
        revision: a branch, tag or commit on the Hub.
        patterns: which files of a checkpoint on the Hub are downloaded. If None, first its
            settings and, where these are of a model that is known, the weights and what else
            belongs to it.

    Raises `MissingFile` where there is neither, or no safetensors beside the settings, and
    `CheckpointError` for settings that are refused.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise MissingFile(f"{path} is a file; a checkpoint is the directory it lies in.")
    if not isinstance(source, str) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        raise MissingFile(f"There is no directory {path}.")
    if patterns is None:
        return _whole(source, revision)
    return _downloaded(source, revision, patterns)


def home(folder: pathlib.Path) -> pathlib.Path:
    """Where a model's tokenizer lies: of one that a run keeps, such as its `best`, in the run.

    A model with a tokenizer of its own belongs to nobody.
    """
    own = any((folder / name).is_file() for name in (RUN, TOKENIZER))
    if own or not (folder / CONFIG).is_file() or not is_native(folder):
        return folder
    around = folder.resolve().parents[:2]
    return next((each for each in around if (each / RUN).is_file()), folder)


def _whole(source: str, revision: str | None) -> pathlib.Path:
    """A checkpoint on the Hub with all that is read of it."""
    folder = _downloaded(source, revision, _SETTINGS)
    if not os.path.lexists(folder / CONFIG):
        return folder  # whoever reads it says what it needs
    if not is_native(folder):
        Said(folder).tree(None)
    if _COMMIT.fullmatch(folder.name):
        revision = folder.name  # a branch may move meanwhile
    folder = _downloaded(source, revision, (*_SETTINGS, *_BESIDE, WEIGHTS))
    if os.path.lexists(folder / WEIGHTS):
        return folder
    if os.path.lexists(folder / INDEX):
        return _downloaded(source, revision, [glob.escape(name) for name in shard_names(folder)])
    raise MissingFile(_without_weights(source, folder))


def _without_weights(source: str, folder: pathlib.Path) -> str:
    """What may be done about a checkpoint of which there are settings alone."""
    lacks = (
        f"`{source}` has no {WEIGHTS}, nor {INDEX}, in {folder}: what the Hub gave, or its cache "
        "where the Hub could not be reached. "
    )
    if os.path.lexists(folder / _OF_ADAPTERS):
        return lacks + "It has adapters, which `load_adapters` puts into their base model."
    return lacks + (
        "If the Hub has them, ask again once it can be reached. If it has pickles alone, which are "
        f"never downloaded, convert it once {CONVERSION}. Or name a revision that has them, such "
        'as that of the Hub\'s own conversion: revision="refs/pr/N".'
    )


def _downloaded(source: str, revision: str | None, patterns: Sequence[str]) -> pathlib.Path:
    """Where files of a repository of the Hub now lie."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingFile(
            f"There is no directory {source}. If it is an id of the Hugging Face Hub, install what "
            "downloads it: pip install 'eqxformer[hub]'."
        ) from None
    try:
        found = snapshot_download(source, revision=revision, allow_patterns=list(patterns))
    except Exception as error:  # also what is below: requests' errors, httpx's or others
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingFile(
            f"There is no directory {source}, and the Hub did not give `{source}`: {first}"
        ) from None
    return pathlib.Path(found)
