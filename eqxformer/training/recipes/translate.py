"""translate: an encoder-decoder learns to translate from any two files of parallel text.

Sizes, dropout and label smoothing are those with which a tiny transformer reaches BLEU 41.02 on
Multi30k, English to German (Wu et al. 2021, Good for Misconceived Reasons). Unlike theirs it is
pre-norm, which learns faster from the start, its steps have a quarter as many tokens, and its
learning rate goes to zero in the last third of the steps.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eqxformer.blocks.residual import pre_norm
from eqxformer.data.batches import PairBatch
from eqxformer.data.cuts import BPEDropout, Merges
from eqxformer.data.pairs import Pairs, TokenPairs
from eqxformer.data.parallel import ParallelFiles, ParallelText, Splits
from eqxformer.data.subwords import END, PADDING, START, SubwordTraining, WordBPE
from eqxformer.data.tokenizer import Tokenizer
from eqxformer.losses.tokens import SequenceToSequence
from eqxformer.models import EncoderDecoder, TiedHead, families
from eqxformer.optimizers.optimizer import AdamW, ClipByNorm
from eqxformer.optimizers.schedules import InverseSquareRoot
from eqxformer.training.averaging import AverageLast
from eqxformer.training.bleu import bleu, scorer
from eqxformer.training.callbacks import Callback, Evaluate
from eqxformer.training.experiment import Experiment, Recipe, Request, Task
from eqxformer.training.translation import translate


class Translating(Experiment):
    """An encoder-decoder, parallel text, and how translations are made.

    Arguments:
        files: the languages and the names of the files.
        tokenizer: how the joint vocabulary of both languages is learned.
        cuts: how the texts to learn from are cut into tokens in several ways, such as
            `BPEDropout()`; None for the one way of the tokenizer.
        averaged: how many of the last models are averaged at the end.
        average_every: steps between two of them.
        beams, length_penalty, early_stopping: of the beam search; see `beam_search`.
        bleu_every: steps between two times that the validation texts are translated, and their
            BLEU published; None for never.
    """

    model: EncoderDecoder.Config
    data: Pairs
    loss: SequenceToSequence
    files: ParallelFiles = ParallelFiles()
    tokenizer: SubwordTraining = WordBPE(vocab=10_000)
    cuts: BPEDropout | None = None
    averaged: int = 10
    average_every: int = 250
    beams: int = 5
    length_penalty: float = 1.0
    early_stopping: bool = False
    bleu_every: int | None = None

    def identity(self) -> dict[str, Any]:
        left = ("bleu_every", "beams", "length_penalty", "early_stopping")  # of what steps made
        return {name: value for name, value in super().identity().items() if name not in left}

    def check(self) -> None:
        super().check()
        for name in ("averaged", "average_every", "beams", "bleu_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")


def tiny(vocab: int) -> EncoderDecoder.Config:
    """Transformer-Tiny: 4 and 4 layers of 4 heads, pre-norm, one table for everything."""
    wiring = pre_norm(dropout=0.3)
    model = families.transformer(
        vocab=vocab, dim=128, layers=4, heads=4, hidden=256, dropout=0.3, wiring=wiring
    )
    return model.edit("decoder", head=TiedHead.Config()).edit(tokens="shared")


def suggested() -> Translating:
    """The experiment, before the data is known."""
    return Translating(
        model=tiny(WordBPE(vocab=10_000).vocab),
        optimizer=AdamW(
            InverseSquareRoot(peak=4e-3, warmup=500, cooldown=4000),
            betas=(0.9, 0.98),
            weight_decay=0.0,
            clip=ClipByNorm(1.0),
        ),
        data=Pairs(),
        loss=SequenceToSequence(label_smoothing=0.1),
        steps=12_000,
        validate_every=250,
    )


class Translation(Task[Translating]):
    """Parallel text in `path`; it is read, and its vocabulary learned, once the settings are known.

    `splits`, `tokenizer` and `about` are there after `fitted`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about: dict[str, Any] = {}
        self.experiment = suggested()
        self._fitting: dict[tuple[Pairs, str], TokenPairs] = {}

    def take(self, tokenizer: Tokenizer) -> None:
        """Uses these tokens instead of learning some from the texts."""
        if None in (tokenizer.padding, tokenizer.start, tokenizer.end):
            raise ValueError(
                "The tokens of the model to begin from must have ids for padding, start and end, "
                f"named {PADDING}, {START} and {END}."
            )
        self.tokenizer = tokenizer

    def fitted(self, experiment: Translating) -> Translating:
        """The experiment for a vocabulary of as many tokens as there are, and with a prompt."""
        self.splits: Splits = experiment.files.read(self.path)
        self._fitting.clear()
        train = self.splits.train
        if not experiment.checkpoint:
            self.tokenizer = self.learned(experiment.tokenizer, [*train.source, *train.target])
        elif experiment.tokenizer != self.experiment.tokenizer:
            raise ValueError(
                "The tokens are those of the model to begin from; leave `tokenizer` as it is."
            )
        self.about = {
            **self.about,
            "name": self.path.absolute().name,
            **{f"{name} pairs": len(text.source) for name, text in self.splits._asdict().items()},
            "sha256": {name: text.fingerprint() for name, text in self.splits._asdict().items()},
            "tokenizer": hashlib.sha256(self.tokenizer.to_json().encode()).hexdigest(),
        }
        model = experiment.model
        sizes = {model.encoder.vocab, model.decoder.vocab}  # pyright: ignore[reportAttributeAccessIssue]
        known = {self.experiment.model.decoder.vocab, self.tokenizer.vocab}
        if not sizes <= known:
            raise ValueError(
                "The model's vocabulary is that of the tokenizer; leave `model.*.vocab` as it is "
                f"and set tokenizer.vocab. Got {sorted(sizes)}."
            )
        if not experiment.checkpoint:
            experiment = experiment.edit("model.*", vocab=self.tokenizer.vocab)
        return experiment.edit(prompt=experiment.prompt or self.splits.valid.source[0])

    def check(self, experiment: Translating) -> None:
        """Raises `ValueError` for pairs that do not fit, and for a tokenizer that cannot be cut;
        `ImportError` where there is nothing to measure BLEU with, which is asked for at the end."""
        _ = scorer()
        if experiment.cuts is not None:
            _ = Merges.of(self.tokenizer)
        self._pairs(experiment.data, "train")
        self._pairs(experiment.data, "valid")

    def describe(self, experiment: Translating) -> str:
        """The languages, how much there is of them, and what was left out."""
        files, counts = experiment.files, self.about
        kept = [len(self._pairs(experiment.data, name).lines) for name in ("train", "valid")]
        out = counts["train pairs"] + counts["valid pairs"] - sum(kept)
        return (
            f"{counts['name']}: {files.source} to {files.target}, {kept[0]:,} pairs to learn from, "
            f"{kept[1]:,} to validate and {counts['test pairs']:,} to test with, "
            f"{self.tokenizer.vocab:,} different tokens"
            + (f"; {out:,} pairs longer or empty are left out" if out else "")
        )

    def batches(self, experiment: Translating) -> Callable[[int], PairBatch]:
        """Pairs of like length, in a new order each epoch."""
        pairs = self._pairs(experiment.data, "train")
        if experiment.cuts is not None:
            pairs = self._cut(pairs, experiment.cuts, experiment)
        return experiment.data.build(pairs, seed=experiment.seed)

    def validation(self, experiment: Translating) -> list[PairBatch]:
        """All pairs to validate with."""
        return experiment.data.in_turn(self._pairs(experiment.data, "valid"))

    def callbacks(self, experiment: Translating, folder: Path) -> list[Callback]:
        """The last models are kept, to be averaged; BLEU on the way, where it is asked for."""
        count, every = experiment.averaged, experiment.average_every
        average = AverageLast(folder / "last", count=count, every=every)
        if experiment.bleu_every is None:
            return [average]

        def measure(model: Any) -> dict[str, float]:
            return {"validation_bleu": self._bleu(model, self.splits.valid, experiment)}

        return [average, Evaluate(measure, every=experiment.bleu_every)]

    def evaluate(self, model: Any, experiment: Translating) -> dict[str, float]:
        """BLEU of the translations of all texts to test with."""
        return {"test_bleu": self._bleu(model, self.splits.test, experiment)}

    def conclude(self, values: dict[str, float], experiment: Translating) -> str:
        """The BLEU, and of what."""
        count = len(self.splits.test.source)
        return (
            f"BLEU {values['test_bleu']:.2f} on {count:,} texts to test with, as they stand in "
            f"their file, with {experiment.beams} beams."
        )

    def sample(self, model: Any, experiment: Translating, step: int) -> str:
        """The prompt and its translation."""
        (answer,) = self._translated(model, (experiment.prompt,), experiment)
        return f"{experiment.prompt} -> {answer}"

    def _bleu(self, model: Any, text: ParallelText, experiment: Translating) -> float:
        return bleu(self._translated(model, text.source, experiment), text.target)

    def _translated(self, model: Any, texts: tuple[str, ...], experiment: Translating) -> list[str]:
        return translated(model, list(texts), self.tokenizer, experiment)

    def _cut(self, pairs: TokenPairs, cuts: BPEDropout, experiment: Translating) -> TokenPairs:
        """Pairs to learn from, cut in several ways; those ways that are too long are left out."""
        train, lines = self.splits.train, (pairs.lines - 1).tolist()
        sides = (tuple(side[line] for line in lines) for side in (train.source, train.target))
        several = cuts.pairs(ParallelText(*sides), self.tokenizer, seed=experiment.seed)
        return several.only(several.widths <= experiment.data.longest)

    def _pairs(self, data: Pairs, split: str) -> TokenPairs:
        """The pairs of a split that fit."""
        if (data, split) not in self._fitting:
            text: ParallelText = getattr(self.splits, split)
            try:
                fitting = data.fitting(TokenPairs.of(text, self.tokenizer))
            except ValueError as error:
                raise ValueError(f"In the texts of `{split}`: {error}") from None
            self._fitting[data, split] = fitting
        return self._fitting[data, split]


def translated(
    model: Any, texts: list[str], tokenizer: Tokenizer, experiment: Translating
) -> list[str]:
    """The translations of texts, as the experiment says."""
    return translate(
        model,
        texts,
        tokenizer,
        beams=experiment.beams,
        length_penalty=experiment.length_penalty,
        early_stopping=experiment.early_stopping,
    )


def respond(
    model: Any, tokenizer: Tokenizer, experiment: Translating, request: Request
) -> Iterator[str]:
    """The translation of every line of the prompt, by beam search."""
    lines = request.prompt.split("\n")
    if not all(line.strip() for line in lines):
        raise ValueError('Every line of the prompt must have text, as in --prompt "a man .".')
    yield "\n".join(translated(model, lines, tokenizer, experiment))


def prepare(data: Path | None) -> Translation:
    """The task of a directory of parallel text, or of one file."""
    if data is None:
        raise ValueError(
            "`translate` needs parallel text: --data DIRECTORY with train.en and train.de, "
            "valid.en and valid.de, test.en and test.de; or --data FILE.tsv, or FILE.jsonl. Other "
            "names and languages are settings: --set files.source=fr --set files.train=corpus"
        )
    return Translation(data)


recipe = Recipe(
    name="translate",
    summary="An encoder-decoder that translates, from parallel text: --data DIRECTORY.",
    prepare=prepare,
    respond=respond,
    draws=False,
)
