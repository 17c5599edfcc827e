"""Language models over characters: what the recipes `text`, `vpj` and `nanogpt` have in common."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from eqxformer.data.batches import TokenBatch
from eqxformer.data.characters import Characters
from eqxformer.data.corpus import Corpus, read_corpus
from eqxformer.data.windows import Windows, consecutive
from eqxformer.generation import Sample, Sampler, generate
from eqxformer.losses.tokens import NextToken
from eqxformer.models import DecoderLM
from eqxformer.training.callbacks import evaluator
from eqxformer.training.experiment import Experiment, Recipe, Request, Task

SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 400, 0.8
_VALIDATION_TOKENS = 4096  # in a batch
_VALIDATION_BATCHES = 4  # now and then; all of them at the end


class TextExperiment(Experiment):
    """A decoder-only model and windows of a text."""

    model: DecoderLM.Config
    data: Windows
    loss: NextToken


Suggest = Callable[[Characters, np.ndarray], TextExperiment]


class CharacterLM(Task[TextExperiment]):
    """A text, its last tenth kept back, and a model that writes on in its manner."""

    def __init__(self, corpus: Corpus, suggest: Suggest) -> None:
        self.corpus = corpus
        self.tokenizer = Characters.of(corpus.text)
        self.training, self.kept_back = (self.tokenizer.encode(part) for part in corpus.split())
        self.about = {
            "name": corpus.name,
            "characters": len(corpus.text),
            "sha256": corpus.fingerprint(),
        }
        self.experiment = suggest(self.tokenizer, self.training)
        if not set(self.experiment.prompt) <= set(self.tokenizer.alphabet):
            self.experiment = self.experiment.edit(prompt=_first_letter(corpus.text))

    def check(self, experiment: TextExperiment) -> None:
        """Raises `ValueError` where text, windows, model and sample do not go together."""
        length, model = experiment.data.length, experiment.model
        if len(self.kept_back) <= length or len(self.training) <= length:
            raise ValueError(
                f"The text has {len(self.corpus.text):,} characters, of which the last tenth, "
                f"{len(self.kept_back):,}, is for validation; both parts need more than the "
                f"{length} of a window. Give a longer text or a smaller --set data.length."
            )
        if model.vocab != self.tokenizer.vocab:
            raise ValueError(
                f"`model.vocab` must be the number of different characters in the text, "
                f"{self.tokenizer.vocab}; got {model.vocab}."
            )
        room = getattr(model.embedding.positions, "length", length)
        if room < length:
            raise ValueError(
                f"`data.length` may be at most the model's {room} positions; got {length}. "
                f"Set model.embedding.positions.length={length} too."
            )
        if not experiment.prompt:
            raise ValueError("`prompt` must have at least one character; got none.")
        self.tokenizer.encode(experiment.prompt)

    def describe(self, experiment: TextExperiment) -> str:
        """The text and its split."""
        return (
            f"{self.corpus.name}: {len(self.corpus.text):,} characters, "
            f"{self.tokenizer.vocab} different; {len(self.training):,} to learn from, "
            f"the last {len(self.kept_back):,} to validate with"
        )

    def batches(self, experiment: TextExperiment) -> Callable[[int], TokenBatch]:
        """Windows of the first nine tenths."""
        return experiment.data.build(self.training, seed=experiment.seed)

    def validation(
        self, experiment: TextExperiment, most: int | None = _VALIDATION_BATCHES
    ) -> list[TokenBatch]:
        """Windows spread over the last tenth."""
        length = experiment.data.length
        batch = max(1, _VALIDATION_TOKENS // length)
        return consecutive(self.kept_back, length=length, batch=batch, most=most)

    def evaluate(self, model: Any, experiment: TextExperiment) -> dict[str, float]:
        """The mean loss over the whole last tenth, in nats per character."""
        loss = evaluator(NextToken())(model, self.validation(experiment, most=None))
        return {"final_validation_loss": float(loss.mean)}

    def conclude(self, values: dict[str, float], experiment: TextExperiment) -> str:
        """The loss, and how many characters it leaves open to guess between."""
        loss = values["final_validation_loss"]
        return (
            f"Validation loss {loss:.4f} nats per character, over the whole last tenth: as "
            f"uncertain as between {math.exp(loss):.1f} equally likely characters."
        )

    def sample(self, model: Any, experiment: TextExperiment, step: int) -> str:
        """The prompt and how the model goes on."""
        key = jax.random.fold_in(experiment.key("samples"), step)
        pieces = continued(
            model,
            self.tokenizer,
            experiment.prompt,
            count=SAMPLE_TOKENS,
            context=experiment.data.length,
            sampler=Sample(SAMPLE_TEMPERATURE),
            key=key,
        )
        return "".join(pieces)


def _first_letter(text: str) -> str:
    """What a sample of a text in another script can begin with."""
    return next((letter for letter in text if letter.isalpha()), text[0])


def continued(
    model: Any,
    tokenizer: Characters,
    prompt: str,
    *,
    count: int,
    context: int,
    sampler: Sampler,
    key: PRNGKeyArray,
) -> Iterator[str]:
    """The prompt and `count` characters more, however long that gets, in pieces.

    The model sees the last `context` characters at most, which is what it was trained on. It
    writes in pieces of a quarter of that; behind each, what it saw longest ago is forgotten.
    """
    ids = tokenizer.encode(prompt).tolist()
    yield prompt
    piece = max(1, context // 4)
    read = max(1, context - piece)
    for begin in range(0, count, piece):
        number = jax.random.fold_in(key, begin // piece)
        # One number of slots and of tokens a pass, so that few programs serve every piece.
        (new,) = generate(
            model,
            [ids[-read:]],
            max_new_tokens=min(piece, count - begin),
            slots=context,
            chunk=read,
            sampler=sampler,
            key=number,
        )
        yield tokenizer.decode(new)
        ids = [*ids, *new]


def respond(
    model: Any, tokenizer: Characters, experiment: TextExperiment, request: Request
) -> Iterator[str]:
    """The prompt and what the model writes behind it."""
    if not request.prompt:
        raise ValueError('The prompt must have at least one character, as in --prompt "The ".')
    return continued(
        model,
        tokenizer,
        request.prompt,
        count=request.max_new_tokens,
        context=experiment.data.length,
        sampler=request.sampler,
        key=jax.random.key(request.seed),
    )


def language_model(name: str, summary: str, suggest: Suggest) -> Recipe:
    """The recipe of an experiment over characters.

    Arguments:
        suggest: makes the experiment, given the tokenizer and the tokens to learn from.
    """

    def prepare(data: Path | None) -> CharacterLM:
        return CharacterLM(read_corpus(data), suggest)

    return Recipe(name, summary, prepare, respond)
