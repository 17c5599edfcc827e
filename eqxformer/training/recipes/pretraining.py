"""Models that restore a corrupted text: what the recipes `mlm` and `denoise` have in common."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from eqxformer.data.characters import Characters
from eqxformer.data.corpus import Corpus, read_corpus
from eqxformer.data.corruption import CorruptedWindows
from eqxformer.data.tokenizer import Tokenizer
from eqxformer.generation import Greedy
from eqxformer.losses.scores import measured
from eqxformer.losses.tokens import TokenLoss
from eqxformer.training.callbacks import evaluator, perplexity
from eqxformer.training.experiment import Experiment, Recipe, Request, Task

HOLE = "_"  # in a prompt, what is to be filled in
_VALIDATION_BATCHES = 4  # now and then; all of them at the end


class PretrainingExperiment(Experiment):
    """A model, and corrupted windows of a text that it restores."""

    data: CorruptedWindows
    loss: TokenLoss


Suggest = Callable[[Characters], PretrainingExperiment]
Fill = Callable[[Any, Characters, Any, Request], str]


class Pretraining(Task[PretrainingExperiment]):
    """A text, its last tenth kept back, and a model that restores what was taken out of it.

    Arguments:
        corpus: the text.
        suggest: makes the experiment, given the alphabet.
        special: how many ids there are behind those of the characters.
        fill: a prompt with its holes filled by a model.
    """

    def __init__(self, corpus: Corpus, suggest: Suggest, special: int, fill: Fill) -> None:
        self.corpus, self.suggest, self.special, self.fill = corpus, suggest, special, fill
        self.about = {
            "name": corpus.name,
            "characters": len(corpus.text),
            "sha256": corpus.fingerprint(),
        }
        self.take(Characters.of(corpus.text))

    def take(self, tokenizer: Tokenizer) -> None:
        """Uses these characters, and suggests what suits them."""
        if not isinstance(tokenizer, Characters):
            raise ValueError(
                "This recipe restores characters; the tokens of the model to begin from are others."
            )
        self.tokenizer = tokenizer
        self.training, self.kept_back = (tokenizer.encode(part) for part in self.corpus.split())
        self.experiment = self.suggest(tokenizer)
        if not set(self.experiment.prompt) <= {HOLE, *tokenizer.alphabet}:
            self.experiment = self.experiment.edit(prompt=self.corpus.text[:20] + HOLE)

    def check(self, experiment: PretrainingExperiment) -> None:
        """Raises `ValueError` where text, windows, model and sample do not go together."""
        model: Any = experiment.model
        length, encoder = experiment.data.length, model.encoder
        if min(len(self.kept_back), len(self.training) - 1) < length:
            raise ValueError(
                f"The text has {len(self.corpus.text):,} characters, of which the last tenth, "
                f"{len(self.kept_back):,}, is for validation; both parts need the {length} of a "
                "window. Give a longer text or a smaller --set data.length."
            )
        vocab = self.tokenizer.vocab + self.special
        if encoder.vocab != vocab:
            raise ValueError(
                f"The model's vocabulary must be {vocab}: {self.tokenizer.vocab} different "
                f"characters and {self.special} ids for what is missing; got {encoder.vocab}."
            )
        check_prompt(experiment.prompt, self.tokenizer, length)
        batch = self.batches(experiment)(0)  # says what is wrong with the noise now
        largest = max(int(x.max()) for x in jax.tree.leaves(batch) if x.dtype.kind == "i")
        if largest >= vocab:
            raise ValueError(
                f"`data.corruption` must make ids below the model's {vocab}; it made {largest}."
            )

    def describe(self, experiment: PretrainingExperiment) -> str:
        """The text and its split."""
        return (
            f"{self.corpus.name}: {len(self.corpus.text):,} characters, "
            f"{self.tokenizer.vocab} different; {len(self.training):,} to learn from, "
            f"the last {len(self.kept_back):,} to validate with"
        )

    def batches(self, experiment: PretrainingExperiment) -> Callable[[int], Any]:
        """Corrupted windows of the first nine tenths."""
        return experiment.data.build(self.training, seed=experiment.seed)

    def validation(
        self, experiment: PretrainingExperiment, most: int | None = _VALIDATION_BATCHES
    ) -> list[Any]:
        """Corrupted windows spread over the last tenth."""
        return experiment.data.spread(self.kept_back, most=most)

    def evaluate(self, model: Any, experiment: PretrainingExperiment) -> dict[str, float]:
        """The mean loss over the last tenth, in nats per token that is asked for."""
        loss = evaluator(measured(experiment.loss))(model, self.validation(experiment, most=None))
        return {"final_validation_loss": float(loss.mean)}

    def conclude(self, values: dict[str, float], experiment: PretrainingExperiment) -> str:
        """The loss, and how many characters it leaves open to guess between."""
        loss = values["final_validation_loss"]
        return (
            f"Validation loss {loss:.4f} nats per missing character, over the last tenth: as "
            f"uncertain as between {perplexity(loss):.1f} equally likely characters."
        )

    def sample(self, model: Any, experiment: PretrainingExperiment, step: int) -> str:
        """The prompt with its holes filled."""
        asked = Request(experiment.prompt, Greedy(), seed=step)
        return self.fill(model, self.tokenizer, experiment, asked)


def check_prompt(prompt: str, tokenizer: Characters, length: int) -> None:
    """Raises `ValueError` for a prompt without a hole, too long, or with unknown characters."""
    if HOLE not in prompt:
        raise ValueError(
            f"The prompt must have a hole to fill, written `{HOLE}`, as in "
            f'--prompt "the {HOLE * 4} statement"; got {prompt!r}.'
        )
    if len(prompt) > length:
        raise ValueError(
            f"The prompt may have the {length} characters that the model was trained on; "
            f"got {len(prompt)}."
        )
    tokenizer.encode(prompt.replace(HOLE, ""))


def pretraining(
    name: str, summary: str, suggest: Suggest, special: int, fill: Fill, *, draws: bool
) -> Recipe:
    """The recipe of a model that restores text; arguments as of `Pretraining` and `Recipe`."""

    def prepare(data: Path | None) -> Pretraining:
        return Pretraining(read_corpus(data), suggest, special, fill)

    def respond(
        model: Any, tokenizer: Characters, experiment: PretrainingExperiment, request: Request
    ) -> Iterator[str]:
        check_prompt(request.prompt, tokenizer, experiment.data.length)
        yield fill(model, tokenizer, experiment, request)

    return Recipe(name, summary, prepare, respond, draws=draws)
