"""rot13: an encoder-decoder learns to move every letter of a word by thirteen places."""

import codecs
import string
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from eqxformer.data.batches import Data, PairBatch
from eqxformer.data.characters import Characters
from eqxformer.generation import generate
from eqxformer.losses.tokens import SequenceToSequence
from eqxformer.models import EncoderDecoder, families
from eqxformer.optimizers.optimizer import AdamW, ClipByNorm
from eqxformer.optimizers.schedules import WarmupCosine
from eqxformer.training.experiment import Experiment, Recipe, Request, Task

END, START, LETTERS = 0, 1, 2  # ids: the end of a word and all behind it, the start, the letter a
UNSEEN, UNSEEN_SEED = 1000, 13  # words to test with

Words = Int[np.ndarray, "words letters"]


class RandomWords(Data):
    """Random words of 1 to `longest` letters and what rot13 makes of them, `batch` in a batch."""

    longest: int = 15
    batch: int = 64

    def check(self) -> None:
        for name, value, least in (("longest", self.longest, 3), ("batch", self.batch, 1)):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}; got {value}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Words, and the tokens predicted for each."""
        return self.batch, self.longest + 1

    def draw(self, random: np.random.Generator, count: int) -> Words:
        """Ids of words, as many of each length, all with at least one `END` behind them."""
        letters = random.integers(LETTERS, LETTERS + 26, (count, self.longest + 1))
        lengths = random.integers(1, self.longest + 1, (count, 1))
        return np.where(np.arange(self.longest + 1)[None] < lengths, letters, END).astype(np.int32)

    def unseen(self) -> Words:
        """Different words to test with, the same in every run; training never shows one of them."""
        random = np.random.default_rng(UNSEEN_SEED)
        words = np.unique(self.draw(random, 2 * UNSEEN), axis=0)
        return random.permutation(words)[:UNSEEN]

    def build(self, unseen: Words, *, seed: int = 0) -> Callable[[int], PairBatch]:
        """A function from the number of a step to a batch without any of the `unseen` words."""
        kept_back = _spelled(unseen)

        def batch(step: int) -> PairBatch:
            random = np.random.default_rng((seed, step))
            words = self.draw(random, self.batch)
            while (known := np.isin(_spelled(words), kept_back)).any():
                words[known] = self.draw(random, int(known.sum()))
            return pairs(words)

        return batch


def pairs(words: Words) -> PairBatch:
    """Words and their rot13 as a batch; the first `END` counts, what is behind it does not."""
    answers = np.where(words == END, END, (words - LETTERS + 13) % 26 + LETTERS)
    target = np.concatenate([np.full((len(words), 1), START), answers], axis=1).astype(np.int32)
    valid = _up_to_end(words)
    weights = np.concatenate([np.ones((len(words), 1), bool), valid], axis=1)
    return PairBatch(words, target, valid, weights)


def translate(model: Any, words: Words) -> Words:
    """What the model makes of words, the likeliest letter each time until `END`."""
    valid = jnp.asarray(_up_to_end(words))
    source, longest = jnp.asarray(words), words.shape[1]
    out = generate(model, source, valid=valid, start=START, stop=(END,), max_new_tokens=longest)
    return np.asarray(out)


class Rot13Experiment(Experiment):
    """An encoder-decoder and words."""

    model: EncoderDecoder.Config
    data: RandomWords
    loss: SequenceToSequence


class Rot13(Task[Rot13Experiment]):
    """The words, kept apart into those to learn from and a thousand to be asked for."""

    def __init__(self) -> None:
        self.tokenizer = Characters(string.ascii_lowercase)
        self.about = {"name": "random words"}
        self.experiment = Rot13Experiment(
            model=families.transformer(vocab=LETTERS + 26, dim=32, layers=1, heads=4, hidden=64),
            optimizer=AdamW(
                WarmupCosine(peak=5e-3, warmup=100), weight_decay=0.0, clip=ClipByNorm(1.0)
            ),
            data=RandomWords(),
            loss=SequenceToSequence(),
            steps=1500,
            validate_every=300,
            prompt="hey there ma dood",
        )

    def check(self, experiment: Rot13Experiment) -> None:
        """Raises `ValueError` where the sample has words that are none."""
        spell(experiment.prompt.split(), self.tokenizer, experiment.data.longest)

    def describe(self, experiment: Rot13Experiment) -> str:
        """Where the words come from."""
        longest = experiment.data.longest
        return (
            f"random words of 1 to {longest} letters and their rot13; "
            f"{UNSEEN:,} words are kept back to test with"
        )

    def batches(self, experiment: Rot13Experiment) -> Callable[[int], PairBatch]:
        """Batches of words that are not kept back."""
        return experiment.data.build(experiment.data.unseen(), seed=experiment.seed)

    def validation(self, experiment: Rot13Experiment) -> list[PairBatch]:
        """All words kept back, as one batch."""
        return [pairs(experiment.data.unseen())]

    def evaluate(self, model: Any, experiment: Rot13Experiment) -> dict[str, float]:
        """How many unseen words are translated without a single mistake."""
        words = experiment.data.unseen()
        right = (translate(model, words) == pairs(words).target[:, 1:]).all(axis=1)
        return {"exact_words": float(right.sum())}

    def conclude(self, values: dict[str, float], experiment: Rot13Experiment) -> str:
        """How many words of how many."""
        return (
            f"{values['exact_words']:,.0f} of {UNSEEN:,} unseen words are exact to the last letter."
        )

    def sample(self, model: Any, experiment: Rot13Experiment, step: int) -> str:
        """Some words, what the model makes of them, and what is right where it errs."""
        words = experiment.prompt.split()
        answers = answer(model, words, self.tokenizer, experiment.data.longest)
        right = [codecs.encode(word, "rot13") for word in words]
        return "\n".join(
            f"{word} -> {given}" + ("" if given == wanted else f"  (right: {wanted})")
            for word, given, wanted in zip(words, answers, right, strict=True)
        )


def answer(model: Any, words: Sequence[str], tokenizer: Characters, longest: int) -> list[str]:
    """The model's translations of words."""
    out = translate(model, spell(words, tokenizer, longest))
    letters = [row[: np.argmax(np.append(row, END) == END)] for row in out]
    return [
        "".join(tokenizer.alphabet[i - LETTERS] if i >= LETTERS else "?" for i in row)
        for row in letters
    ]


def spell(words: Sequence[str], tokenizer: Characters, longest: int) -> Words:
    """The ids of words, filled up with `END`. Raises `ValueError` for what is no such word."""
    if not words:
        raise ValueError('The prompt has no word; give one as in --prompt "hey there".')
    ids = np.full((len(words), longest + 1), END, np.int32)
    for row, word in zip(ids, words, strict=True):
        if len(word) > longest:
            raise ValueError(f"A word may have {longest} letters; {word!r} has {len(word)}.")
        row[: len(word)] = tokenizer.encode(word) + LETTERS
    return ids


def respond(
    model: Any, tokenizer: Characters, experiment: Rot13Experiment, request: Request
) -> Iterator[str]:
    """The translation of each word of the prompt; always the likeliest letters."""
    yield " ".join(answer(model, request.prompt.split(), tokenizer, experiment.data.longest))


def prepare(data: Path | None) -> Rot13:
    """The task; it makes its own data."""
    if data is not None:
        raise ValueError("`rot13` makes its own words and reads no file; leave --data away.")
    return Rot13()


def _up_to_end(words: Words) -> Bool[np.ndarray, "words letters"]:
    """True for the letters of each word and for the first `END` behind them."""
    return np.cumsum(words == END, axis=1) <= 1


def _spelled(words: Words) -> np.ndarray:
    return np.ascontiguousarray(words.astype(np.uint8)).view(f"S{words.shape[1]}")[:, 0]


recipe = Recipe(
    name="rot13",
    summary="An encoder-decoder that learns rot13 to the last letter, in half a minute.",
    prepare=prepare,
    respond=respond,
    draws=False,
)
