"""A model with its tokenizer, from a run or a checkpoint, for commands that read texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from eqxformer.checkpoints.native import load
from eqxformer.data.subwords import Subwords
from eqxformer.pretrained.checkpoint import is_native
from eqxformer.pretrained.load import from_pretrained, load_tokenizer
from eqxformer.pretrained.locate import locate
from eqxformer.training.run_directory import RUN, RunDirectory

# From a text to the ids of its tokens, and the text of each.
Encode = Callable[[str], tuple[list[int], list[str]]]


def read_model(source: str, dtype: str | None = None) -> tuple[Any, Encode]:
    """The model of a run, a checkpoint or a model of the Hub, and how it reads a text."""
    if Path(source, RUN).is_file():
        if dtype is not None:
            raise ValueError("--dtype is for checkpoints; SOURCE is a run.")
        directory = RunDirectory.open(Path(source))
        own: Any = directory.tokenizer()
        if isinstance(own, Subwords):
            return directory.load(), lambda text: _encoded(own.tokenizer, text)
        return directory.load(), lambda text: (own.encode(text).tolist(), list(text))
    folder = locate(source)
    tokenizer = load_tokenizer(folder)
    tokenizer.no_truncation()
    model = load(folder) if is_native(folder) else from_pretrained(folder, dtype=dtype)
    return model, lambda text: _encoded(tokenizer, text)


def _encoded(tokenizer: Any, text: str) -> tuple[list[int], list[str]]:
    encoded = tokenizer.encode(text)
    spans = zip(encoded.offsets, encoded.tokens, strict=True)
    return encoded.ids, [text[a:b] or token for (a, b), token in spans]
