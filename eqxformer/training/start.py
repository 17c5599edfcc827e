"""What a run begins from instead of random weights: another run, a saved model, a checkpoint."""

import functools
from pathlib import Path
from typing import Any

from eqxformer.checkpoints.native import TOKENIZER, load, load_config
from eqxformer.checkpoints.rebuild import differences, expected, rebuild, shapes
from eqxformer.config import Config
from eqxformer.data.fingerprints import digest, digest_of_file
from eqxformer.data.tokenizer import Tokenizer
from eqxformer.pretrained.checkpoint import Checkpoint, is_native
from eqxformer.pretrained.load import from_pretrained
from eqxformer.pretrained.locate import home
from eqxformer.sharding.placement import Placement
from eqxformer.training.run_directory import read_tokenizer

_SHOWN = 3  # arrays that an error names


class Start:
    """A saved model to begin from, with its tokenizer; no number is read before `model`.

    Arguments:
        directory: of a run, of a model in one such as `best`, of what `ef.save` wrote, or of a
            checkpoint in the format of transformers.

    Raises `CheckpointError`, a `ValueError`, for a directory that is none of these.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self._native = is_native(self.directory)
        self.config: Any = (
            load_config(self.directory) if self._native else Checkpoint(self.directory).config
        )

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """How the model's texts became ids: the file beside the model, or that of its run."""
        path = home(self.directory) / TOKENIZER
        if path.is_file():
            return read_tokenizer(path)
        raise ValueError(
            f"There is no {TOKENIZER} in `{self.directory}`, nor a run around it; the model's ids "
            "mean nothing without it. Put the tokenizer's file there."
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of its content, by which two runs show that they began from the same."""
        weights = sorted(self.directory.glob("*.safetensors"))
        return digest(*map(digest_of_file, weights), self.tokenizer.to_json())

    def check(self, kind: type[Config]) -> None:
        """Raises `ValueError` where the model is not one of this kind."""
        if not isinstance(self.config, kind):
            raise ValueError(
                f"`{self.directory}` holds a model of another kind: expected "
                f"{kind.__qualname__}, got {type(self.config).__qualname__}."
            )


def check_fits(directory: str | Path, skeleton: Any) -> None:
    """Raises `ValueError` where the arrays in `directory` are not those of a model.

    Arguments:
        directory: as of `Start`.
        skeleton: the model's shapes.
    """
    found = expected(shapes(Start(Path(directory)).config))
    wrong = differences(found, expected(skeleton))
    if wrong:
        more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ValueError(
            f"The arrays of the model in `{directory}` do not fit this experiment: "
            f"{'; '.join(wrong[:_SHOWN])}{more}. Leave the sizes of `model` as they are."
        )


def first_weights(directory: str | Path, config: Any, placement: Placement | None = None) -> Any:
    """The saved model in `directory`, with what its config was changed to.

    Arguments:
        directory: as of `Start`.
        config: the config of a model with arrays of the same names and shapes.
        placement: the devices that the arrays belong to.
    """
    if is_native(Path(directory)):
        return rebuild(load(directory, sharding=placement), config)
    model = from_pretrained(directory, sharding=placement)
    # What lies beside the weights is there, wherever it was when the run began.
    return rebuild(model, config.edit(origin=model.config.origin))
