"""The directory of a run: what was asked for, what came out, and a model to load again.

run.json            the recipe, the experiment's config, the data's name, versions
tokenizer.json      how text becomes ids
config.json         the model's config tree,
model.safetensors   and its arrays: `ef.load` of the directory gives the model
metrics.jsonl       a line of numbers per step
loss.png            the loss curve
checkpoints/        what training goes on from
last/               the last few models, where a recipe averages them
best/               the model with the best validation loss: `ef.load` of it gives that
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eqxformer.checkpoints.native import RUN, TOKENIZER, load, save
from eqxformer.checkpoints.tensor_files import replaced_directory
from eqxformer.config import Config
from eqxformer.data.subwords import Subwords
from eqxformer.data.tokenizer import Tokenizer, tokenizer_of


class RunDirectory:
    """A directory that belongs to one run; `create` makes it, `open` reads it back."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, *, about: dict[str, Any], tokenizer: Tokenizer) -> "RunDirectory":
        """A new directory. Raises `ValueError`, having touched nothing, where something is there.

        Arguments:
            path: where; missing parents are made.
            about: what `run.json` says, as plain JSON values.
            tokenizer: what `tokenizer.json` says.
        """
        with cls.made(path, about=about, tokenizer=tokenizer):
            return cls(path)

    @classmethod
    @contextlib.contextmanager
    def made(
        cls, path: Path, *, about: dict[str, Any], tokenizer: Tokenizer
    ) -> Iterator["RunDirectory"]:
        """As `create`, under a hidden name at first, for what else is to be there from the start.

        Only then is the directory put at `path`; after an exception or a kill, nothing is there.
        """
        refuse_existing(path)
        with contextlib.ExitStack() as stack:
            try:
                hidden = stack.enter_context(replaced_directory(path))
            except OSError as error:
                raise ValueError(f"`{path}` cannot be made: {error.strerror or error}.") from None
            write_text(hidden / RUN, json.dumps(about, indent=2) + "\n")
            write_text(hidden / TOKENIZER, tokenizer.to_json() + "\n")
            yield cls(hidden)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """The directory of a run. Raises `ValueError` where there is none."""
        if not (path / RUN).is_file():
            what = f"has no {RUN}" if path.is_dir() else "is not a directory"
            raise ValueError(f"`{path}` {what}; name a directory that `eqxformer train` made.")
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints are."""
        return self.path / "checkpoints"

    def save_best(self, model: Any) -> None:
        """Puts `model` in the place of the best one so far."""
        save(model, self.path / "best")

    def save(self, model: Any) -> None:
        """Puts `model` in the place of the last one; no reader ever sees half of it."""
        save(model, self.path)

    def load(self) -> Any:
        """The model that was saved last."""
        return load(self.path)

    def about(self) -> dict[str, Any]:
        """What `run.json` says."""
        return _read_json(self.path / RUN)

    def experiment(self) -> Any:
        """The experiment that `run.json` tells of."""
        return Config.from_dict(self.about()["experiment"])

    def lengthen(self, steps: int) -> None:
        """Says in `run.json` that the run has so many steps."""
        about = self.about()
        if about["experiment"]["steps"] != steps:
            about["experiment"]["steps"] = steps
            write_text(self.path / RUN, json.dumps(about, indent=2) + "\n")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return read_tokenizer(self.path / TOKENIZER)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, a run's or one of the package tokenizers."""
    values = _read_json(path)
    if "type" in values:
        return tokenizer_of(values)
    return Subwords.from_json(path.read_text(encoding="utf-8").strip())  # to the letter


def refuse_existing(path: Path) -> None:
    """Raises `ValueError` if anything is at `path`, so that no run overwrites another."""
    if path.exists() or path.is_symlink():
        raise ValueError(f"`{path}` exists already; name a directory that does not, with --out.")


def write_text(path: Path, text: str) -> None:
    """Writes a file in one piece: under another name first, then renamed."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"`{path}` is missing; the run is not complete.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"`{path}` is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"`{path}` must hold a JSON object; got {type(values).__name__}.")
    return values
