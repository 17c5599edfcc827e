"""Where a checkpoint is: a directory, or the Hub's, downloaded."""

import os
import pathlib
import re
from collections.abc import Sequence

from eqxformer.checkpoints.errors import MissingFile

# What is downloaded: never a pickle, nothing that is code.
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.spm", "*.codes", "*.jinja")


def locate(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    patterns: Sequence[str] = PATTERNS,
) -> pathlib.Path:
    """The directory of a checkpoint: `source` itself, or where the Hub's of this id now lies.

    Arguments:
        source: a directory, or an id such as `google/flan-t5-small`; a directory of that name
            goes first. Ids need huggingface-hub, the extra `hub`.
        revision: a branch, tag or commit on the Hub.
        patterns: which files of a checkpoint on the Hub are downloaded.

    Raises `MissingFile` where there is neither.
    """
    path = pathlib.Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise MissingFile(f"{path} is a file; a checkpoint is the directory it lies in.")
    if not isinstance(source, str) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        raise MissingFile(f"There is no directory {path}.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingFile(
            f"There is no directory {path}. If it is an id of the Hugging Face Hub, install what "
            "downloads it: pip install 'eqxformer[hub]'."
        ) from None
    try:
        found = snapshot_download(source, revision=revision, allow_patterns=list(patterns))
    except Exception as error:  # also what is below: requests' errors, httpx's or others
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MissingFile(
            f"There is no directory {path}, and the Hub did not give `{source}`: {first}"
        ) from None
    return pathlib.Path(found)
