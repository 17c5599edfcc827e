"""finetune: a sentence encoder learns that "a quarter past nine in the evening" is 21:15.

It begins with a checkpoint of sentence-transformers, such as all-MiniLM-L6-v2, and what comes out
is one too. Sentences of one time belong together, and all others of a batch do not; times that are
kept back show what was learned beyond those seen.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from eqxformer.data.corruption import padded
from eqxformer.data.fingerprints import digest, digest_of_file
from eqxformer.data.sentences import ContrastiveBatch, Sentences
from eqxformer.data.subwords import Subwords
from eqxformer.losses.contrastive import Contrastive, embedded
from eqxformer.models import Encoder
from eqxformer.optimizers.optimizer import AdamW, ClipByNorm
from eqxformer.optimizers.schedules import WarmupLinear
from eqxformer.pretrained import Checkpoint, save_pretrained
from eqxformer.training.callbacks import Callback, evaluator
from eqxformer.training.experiment import Experiment, Recipe, Request, Task
from eqxformer.training.recipes.clock import ClockTimes, Pairs, digits
from eqxformer.training.start import Start

EXPORTED = "sentence-transformers"  # the directory in a run that other libraries load
_SHOWN = 3  # times that a sample names


class SentenceExperiment(Experiment):
    """A sentence encoder, and sentences that belong together."""

    model: Encoder.Config
    data: ClockTimes
    loss: Contrastive


class Finetuning(Task[SentenceExperiment]):
    """Times in words and in digits, and a sentence encoder to begin with."""

    def __init__(self, directory: Path) -> None:
        config = Checkpoint(directory).config
        if not isinstance(config, Encoder.Config):
            raise ValueError(
                f"`{directory}` holds a {config.type_name}; `finetune` needs a sentence encoder, "
                "such as a directory of sentence-transformers."
            )
        self.directory = directory
        self.tokenizer = Subwords.read(directory / "tokenizer.json")
        weights = sorted(directory.glob("*.safetensors"))
        self.about = {
            "name": "times of the day",
            "checkpoint": directory.absolute().name,
            "sha256": digest(*map(digest_of_file, weights), self.tokenizer.to_json()),
        }
        self.experiment = SentenceExperiment(
            model=config,
            optimizer=AdamW(
                WarmupLinear(peak=1e-4, warmup=10), weight_decay=0.01, clip=ClipByNorm(1.0)
            ),
            data=ClockTimes(),
            loss=Contrastive(directions="both"),
            steps=100,
            validate_every=20,
            prompt="The train leaves at a quarter past nine in the evening.",
            checkpoint=str(directory.resolve()),
        )

    def begin(self, start: Start) -> None:
        """Raises `ValueError`: there is one checkpoint already."""
        raise ValueError(
            "`finetune` begins with the checkpoint that --data names; leave --from away."
        )

    def check(self, experiment: SentenceExperiment) -> None:
        """Raises `ValueError` for a model that has no room for the tokenizer's ids."""
        if experiment.model.vocab < self.tokenizer.vocab:
            raise ValueError(
                f"`model.vocab` must be at least the tokenizer's {self.tokenizer.vocab}; "
                f"got {experiment.model.vocab}."
            )

    def describe(self, experiment: SentenceExperiment) -> str:
        """What belongs together, and how much of it is kept back."""
        return (
            "times of the day in words and in digits; "
            f"{experiment.data.kept_back} of the {24 * 60} are kept back to validate with"
        )

    def batches(self, experiment: SentenceExperiment) -> Callable[[int], ContrastiveBatch]:
        """Batches of times, none of which is kept back."""
        data = experiment.data
        widths = [ids_of(self.tokenizer, each).tokens.shape[1] for each in data.longest()]
        return lambda step: self._batch(data.to_learn(experiment.seed, step), widths)

    def validation(self, experiment: SentenceExperiment) -> list[ContrastiveBatch]:
        """All times kept back, as one batch."""
        return [self._batch(experiment.data.to_validate(), [0, 0])]

    def callbacks(self, experiment: SentenceExperiment, folder: Path) -> list[Callback]:
        """The model is written for other libraries at the end."""
        return [Export(folder / EXPORTED)]

    def evaluate(self, model: Any, experiment: SentenceExperiment) -> dict[str, float]:
        """The share of times kept back that is found among all of them, before and after."""
        measure, batches = evaluator(experiment.loss), self.validation(experiment)
        before, after = (measure(each, batches) for each in (experiment.init(), model))
        found = {"accuracy_before": before, "final_accuracy": after}
        return {name: float(loss.means()["accuracy"]) for name, loss in found.items()}

    def conclude(self, values: dict[str, float], experiment: SentenceExperiment) -> str:
        """How many times are found."""
        return (
            f"{values['final_accuracy']:.1%} of the {experiment.data.kept_back} times kept back "
            f"are found by their words among the digits of all; {values['accuracy_before']:.1%} "
            f"before. The directory {EXPORTED} of the run is for other libraries."
        )

    def sample(self, model: Any, experiment: SentenceExperiment, step: int) -> str:
        """The times nearest to a sentence."""
        return nearest(model, self.tokenizer, experiment.prompt)

    def _batch(self, pairs: Pairs, widths: list[int]) -> ContrastiveBatch:
        return ContrastiveBatch(
            *(
                ids_of(self.tokenizer, texts, at_least=n)
                for texts, n in zip(pairs, widths, strict=True)
            )
        )


class Export(Callback):
    """Writes the model that comes out as a checkpoint of its own kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def finished(self, trainer: Any) -> None:
        save_pretrained(trainer.outcome, self.folder, overwrite=True)


def ids_of(tokenizer: Subwords, texts: list[str], at_least: int = 0) -> Sentences:
    """Sentences as ids between the tokenizer's own tokens, padded to the longest or `at_least`."""
    encoded = tokenizer.tokenizer.encode_batch_fast(texts)
    rows = [np.asarray(each.ids, np.int32) for each in encoded]
    width = max(at_least, *map(len, rows))
    return Sentences(*padded(rows, width, tokenizer.padding or 0))


def nearest(model: Any, tokenizer: Subwords, prompt: str) -> str:
    """The times of the day whose digits lie nearest to a sentence, each with its cosine."""
    if not prompt.strip():
        raise ValueError('The prompt is empty; give a sentence, as in --prompt "It is noon."')
    minutes = [digits(*divmod(minute, 60)) for minute in range(24 * 60)]
    asked = _vectors(model, ids_of(tokenizer, [prompt]))[0]
    cosines = np.asarray(_vectors(model, ids_of(tokenizer, minutes)) @ asked)
    best = np.argsort(-cosines)[:_SHOWN]
    return f"{prompt} -> " + ", ".join(f"{minutes[i]} ({cosines[i]:.2f})" for i in best)


@eqx.filter_jit
def _vectors(model: Any, sentences: Sentences) -> Float[Array, "rows dim"]:
    return embedded(model, jax.tree.map(jnp.asarray, sentences))


def respond(
    model: Any, tokenizer: Subwords, experiment: SentenceExperiment, request: Request
) -> Iterator[str]:
    """The times nearest to the prompt."""
    yield nearest(model, tokenizer, request.prompt)


def prepare(data: Path | None) -> Finetuning:
    """The task of a checkpoint's directory."""
    if data is None:
        raise ValueError(
            "`finetune` begins with a checkpoint of sentence-transformers; name its directory, as "
            "in --data path/to/all-MiniLM-L6-v2."
        )
    return Finetuning(data)


recipe = Recipe(
    name="finetune",
    summary="A sentence encoder, in --data DIRECTORY, that learns to tell the time.",
    prepare=prepare,
    respond=respond,
    draws=False,
)
