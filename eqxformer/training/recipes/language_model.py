"""Language models of one text: what the recipes `text`, `vpj` and `nanogpt` have in common.

Tokens are the characters of the text, pieces of words learned from it, or those of the model that
a run begins from.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from eqxformer.data.batches import TokenBatch
from eqxformer.data.characters import Characters
from eqxformer.data.corpus import Corpus, read_corpus
from eqxformer.data.subwords import Subwords, SubwordTraining
from eqxformer.data.tokenizer import Tokenizer
from eqxformer.data.windows import Windows, consecutive
from eqxformer.generation import Sample, Sampler, generate
from eqxformer.losses.scores import measured
from eqxformer.losses.tokens import NextToken
from eqxformer.models import DecoderLM
from eqxformer.text.pieces import TextPieces
from eqxformer.training.callbacks import evaluator, perplexity
from eqxformer.training.experiment import Experiment, Recipe, Request, Task

SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 400, 0.8
_VALIDATION_TOKENS = 4096  # in a batch
_VALIDATION_BATCHES = 4  # now and then; all of them at the end


class TextExperiment(Experiment):
    """A decoder-only model and windows of a text.

    Arguments:
        tokenizer: how a vocabulary of pieces of words is learned from the text, such as
            `ByteLevelBPE(2000)`; None for its characters.
    """

    model: DecoderLM.Config
    data: Windows
    loss: NextToken
    tokenizer: SubwordTraining | None = None


Suggest = Callable[[Tokenizer, np.ndarray], TextExperiment]
_COUNTED = ("steps", "validate_every", "sample_every")  # what may follow from how many tokens


class TextLM(Task[TextExperiment]):
    """A text, its last tenth kept back, and a model that writes on in its manner."""

    def __init__(self, corpus: Corpus, suggest: Suggest) -> None:
        self.corpus, self.suggest = corpus, suggest
        self.about = {
            "name": corpus.name,
            "characters": len(corpus.text),
            "sha256": corpus.fingerprint(),
        }
        self.take(Characters.of(corpus.text))

    def take(self, tokenizer: Tokenizer) -> None:
        """Reads the text with these tokens, and suggests what suits them."""
        self.tokenizer = tokenizer
        self.training, self.kept_back = (tokenizer.encode(part) for part in self.corpus.split())
        self.experiment = self.suggest(tokenizer, self.training)
        if not set(self.experiment.prompt) <= set(self.corpus.text):
            self.experiment = self.experiment.edit(prompt=_first_letter(self.corpus.text))

    @property
    def token(self) -> str:
        """What a token is called."""
        return "character" if isinstance(self.tokenizer, Characters) else "token"

    def fitted(self, experiment: TextExperiment) -> TextExperiment:
        """The experiment with the vocabulary that it wants to be learned."""
        if experiment.tokenizer is None:
            return experiment
        if experiment.checkpoint:
            raise ValueError(
                "The tokens are those of the model to begin from; leave `tokenizer` away."
            )
        before = self.experiment
        self.take(self.learned(experiment.tokenizer, [self.corpus.split()[0]]))
        learned = hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest()
        self.about = {**self.about, "tokenizer": learned}
        if experiment.model.vocab == before.model.vocab:
            experiment = experiment.edit("model", vocab=self.tokenizer.vocab)
        untouched = [n for n in _COUNTED if getattr(experiment, n) == getattr(before, n)]
        return experiment.edit(**{name: getattr(self.experiment, name) for name in untouched})

    def check(self, experiment: TextExperiment) -> None:
        """Raises `ValueError` where text, windows, model and sample do not go together."""
        length, model, vocab = experiment.data.length, experiment.model, self.tokenizer.vocab
        if len(self.kept_back) <= length or len(self.training) <= length:
            whole = len(self.training) + len(self.kept_back)
            raise ValueError(
                f"The text has {whole:,} {self.token}s, of which the last tenth, "
                f"{len(self.kept_back):,}, is for validation; both parts need more than the "
                f"{length} of a window. Give a longer text or a smaller --set data.length."
            )
        if experiment.checkpoint:  # its table may have more rows, and its tokenizer ids of no text
            vocab = max(model.vocab, int(max(self.training.max(), self.kept_back.max())) + 1)
        if model.vocab != vocab:
            raise ValueError(
                f"`model.vocab` must be the number of different {self.token}s in the text, "
                f"{vocab}; got {model.vocab}."
            )
        room = getattr(model.embedding.positions, "length", length)
        if room < length:
            raise ValueError(
                f"`data.length` may be at most the model's {room} positions; got {length}. "
                f"Set model.embedding.positions.length={length} too."
            )
        if not len(self.tokenizer.encode(experiment.prompt)):
            raise ValueError("`prompt` must have at least one character; got none.")

    def describe(self, experiment: TextExperiment) -> str:
        """The text and its split."""
        whole = len(self.training) + len(self.kept_back)
        tokens = "" if self.token == "character" else f" as {whole:,} tokens"
        return (
            f"{self.corpus.name}: {len(self.corpus.text):,} characters{tokens}, "
            f"{self.tokenizer.vocab:,} different; {len(self.training):,} to learn from, "
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
        """The mean loss over the whole last tenth, in nats per token."""
        loss = evaluator(measured(experiment.loss))(model, self.validation(experiment, most=None))
        return {"final_validation_loss": float(loss.mean)}

    def conclude(self, values: dict[str, float], experiment: TextExperiment) -> str:
        """The loss, and how many tokens it leaves open to guess between."""
        loss = values["final_validation_loss"]
        return (
            f"Validation loss {loss:.4f} nats per {self.token}, over the whole last tenth: as "
            f"uncertain as between {perplexity(loss):.1f} equally likely {self.token}s."
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
    tokenizer: Tokenizer,
    prompt: str,
    *,
    count: int,
    context: int,
    sampler: Sampler,
    key: PRNGKeyArray,
) -> Iterator[str]:
    """The prompt and `count` tokens more, however long that gets, in pieces.

    The model sees the last `context` tokens at most, which is what it was trained on. It
    writes in pieces of a quarter of that; behind each, what it saw longest ago is forgotten.
    """
    ids = tokenizer.encode(prompt).tolist()
    read_out, rest = _decoding(tokenizer, ids)
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
        yield read_out(new)
        ids = [*ids, *new]
    yield rest()


def _decoding(
    tokenizer: Tokenizer, prompt: list[int]
) -> tuple[Callable[[list[int]], str], Callable[[], str]]:
    """What gives the text of the next ids, and what gives the text that was held back.

    A token of `Subwords` may be half a character, and has a space before it or not as what stands
    before it says.
    """
    if not isinstance(tokenizer, Subwords):
        return tokenizer.decode, str
    pieces = TextPieces(tokenizer.tokenizer, prompt=prompt)
    return pieces.feed, pieces.finish


def respond(
    model: Any, tokenizer: Tokenizer, experiment: TextExperiment, request: Request
) -> Iterator[str]:
    """The prompt and what the model writes behind it."""
    if not len(tokenizer.encode(request.prompt)):
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
    """The recipe of an experiment over a text.

    Arguments:
        suggest: makes the experiment, given the tokenizer and the tokens to learn from.
    """

    def prepare(data: Path | None) -> TextLM:
        return TextLM(read_corpus(data), suggest)

    return Recipe(name, summary, prepare, respond)
