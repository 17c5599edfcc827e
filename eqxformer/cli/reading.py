"""A model with its tokenizer, from a run or a checkpoint, for commands that read texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from eqxformer.checkpoints.native import RUN, load
from eqxformer.data.subwords import Subwords
from eqxformer.pretrained.load import load_any, load_tokenizer
from eqxformer.pretrained.locate import home, locate
from eqxformer.training.run_directory import RunDirectory

# From a text to the ids of its tokens, and the text of each.
Encode = Callable[[str], tuple[list[int], list[str]]]


def run_with(path: Path) -> RunDirectory | None:
    """The run that `path` is, or that keeps the model there, such as its `best`; None if none."""
    at = home(path)
    return RunDirectory(at) if (at / RUN).is_file() else None


def read_model(source: str, dtype: str | None = None) -> tuple[Any, Encode]:
    """The model of a run or in one, of a checkpoint or the Hub, and how it reads a text."""
    run = run_with(Path(source))
    if run is not None:
        if dtype is not None:
            raise ValueError("--dtype is for checkpoints; SOURCE is a run.")
        own: Any = run.tokenizer()
        if isinstance(own, Subwords):
            return load(source), lambda text: _encoded(own.tokenizer, text, special=False)
        return load(source), lambda text: (own.encode(text).tolist(), list(text))
    folder = locate(source)
    tokenizer = load_tokenizer(folder)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return load_any(folder, dtype), lambda text: _encoded(tokenizer, text)


def trained_window(source: str) -> int | None:
    """How many tokens of a text a run learned from at once, with the last, which is only predicted.

    None for what is no run.
    """
    run = run_with(Path(source))
    return None if run is None else run.experiment().data.shape[1] + 1


def _encoded(tokenizer: Any, text: str, special: bool = True) -> tuple[list[int], list[str]]:
    """The ids of a text and the text of each; special ones round it only where training has them.

    A run learns from a text as it stands.
    """
    encoded = tokenizer.encode(text, add_special_tokens=special)
    spans = zip(encoded.offsets, encoded.tokens, strict=True)
    return encoded.ids, [text[a:b] or token for (a, b), token in spans]
