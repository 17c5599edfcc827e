"""An experiment: everything a run is made of besides its data, as one config tree."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
from jaxtyping import PRNGKeyArray

from eqxformer.config import Config
from eqxformer.data.batches import Data
from eqxformer.data.subwords import SubwordTraining
from eqxformer.data.tokenizer import Tokenizer
from eqxformer.generation.samplers import Sampler
from eqxformer.inspect.watch import Watch
from eqxformer.losses.objective import Objective
from eqxformer.models.origin import Origin
from eqxformer.optimizers.optimizer import Optimizer
from eqxformer.optimizers.schedules import Schedule
from eqxformer.optimizers.trainable import Trainable
from eqxformer.sharding.placement import Placement
from eqxformer.training.accumulation import check_microbatch, check_splits
from eqxformer.training.callbacks import Callback
from eqxformer.training.precision import Precision
from eqxformer.training.start import Start, first_weights


class Experiment(Config):
    """What a run is made of. `edit` changes any of it, as `--set path=value` does.

    Arguments:
        model: the model's config.
        optimizer: what changes its weights.
        data: how batches are made.
        loss: what is minimised.
        steps: how many steps the run takes, which is also where schedules end.
        validate_every: steps between two looks at the validation data.
        sample_every: steps between two samples; None for one at the end only.
        prompt: what a sample begins with.
        seed: what all random numbers of the run follow from.
        microbatch: rows of a batch whose gradient is made at once, for batches that are larger
            than memory; None for all.
        trains: which of the model's arrays are trained, such as `Except(paths=("embedding",))`.
        precision: the number types of a step, such as `Precision(compute="bfloat16")`.
        skips: how many steps in a row may have a loss that is not finite; they change nothing.
        watch: what says where numbers broke when they did, such as `Watch("float32")`.
        checkpoint_every: steps between two checkpoints; None for `validate_every`.
        checkpoint: the directory of the saved model that the first weights are from; empty for
            random ones. `Task.begin` sets it together with the model and the tokens.
        peak_flops: floating point operations per second that all devices together can do; with it,
            the share of it that is reached is measured.
        patience: how often the validation loss may fail to become better before training stops;
            None for no such end.
    """

    model: Config
    optimizer: Optimizer
    data: Data
    loss: Objective
    steps: int
    validate_every: int
    sample_every: int | None = None
    prompt: str = ""
    seed: int = 0
    microbatch: int | None = None
    trains: Trainable = Trainable()
    precision: Precision = Precision()
    skips: int = 0
    watch: Watch | None = None
    checkpoint_every: int | None = None
    patience: int | None = None
    peak_flops: float | None = None
    checkpoint: str = ""

    def check(self) -> None:
        least = {"steps": 1, "validate_every": 1, "sample_every": 1, "skips": 0}
        least |= {"checkpoint_every": 1, "patience": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"`{name}` must be at least {bound}; got {value}.")
        check_seed(self.seed)
        if self.peak_flops is not None and self.peak_flops <= 0:
            raise ValueError(f"`peak_flops` must be above 0; got {self.peak_flops}.")
        check_microbatch(self.microbatch)
        check_splits(self.loss, self.microbatch)

    def identity(self) -> dict[str, Any]:
        """What the bits of a step follow from, as plain JSON values.

        Not what is only shown, nor `patience`, which only says when there are no more of them. The
        number of steps is among it where a schedule ends with the last one.
        """
        left = ["validate_every", "sample_every", "prompt", "checkpoint_every", "peak_flops"]
        left += ["patience"]
        left += ["checkpoint"]  # what lies there is told with the data, wherever that is
        left += ["watch"] if _ends(self.optimizer) else ["watch", "steps"]
        values = {name: value for name, value in self.to_dict().items() if name not in left}
        return _anywhere(values)

    def init(self, placement: Placement | None = None) -> Any:
        """The model, freshly initialised or read, on the devices that it belongs to."""
        config: Any = self.model
        if self.checkpoint:
            return first_weights(self.checkpoint, config, placement)
        if placement is None:
            return config.build(key=self.key("model"))
        return placement.init(lambda key: config.build(key=key), self.key("model"))

    def key(self, use: str) -> PRNGKeyArray:
        """The root of one kind of randomness: "model", "steps" or "samples"."""
        return jax.random.fold_in(
            jax.random.key(self.seed), ("model", "steps", "samples").index(use)
        )


def _anywhere(value: Any) -> Any:
    """Plain JSON values without the directories that models were read from."""
    if isinstance(value, list):
        return [_anywhere(each) for each in value]
    if not isinstance(value, dict):
        return value
    left = {"directory"} if value.get("type") == Origin.type_name else set()
    return {name: _anywhere(each) for name, each in value.items() if name not in left}


def _ends(config: Config) -> bool:
    """Whether a schedule anywhere in a config depends on the number of steps."""
    values = [getattr(config, field.name) for field in dataclasses.fields(config)]
    if isinstance(config, Schedule) and config.ends:
        return True
    return any(isinstance(value, Config) and _ends(value) for value in values)


Made = TypeVar("Made", bound=Experiment)
_GENTLER = 0.1  # of the learning rate, where weights have learned already


class Task(abc.ABC, Generic[Made]):
    """Data to learn from, and what to ask of a model that learns it.

    Arguments:
        experiment: what the recipe suggests for this data. The methods take the experiment that
            is really made, which may have been edited.
        tokenizer: how text becomes ids: a `Tokenizer`.
        about: what the data is, as plain JSON values.
        known: the tokenizer of the run to go on with, so that none is learned once more.
    """

    experiment: Made
    tokenizer: Any
    about: dict[str, Any]
    known: Tokenizer | None = None

    def begin(self, start: Start) -> None:
        """Suggests to go on from a saved model, with its tokens and a tenth of the learning rate.

        Before `fitted`. Raises `ValueError` where the model is not of the kind that this task
        trains, or its tokens are not for it.
        """
        start.check(type(self.experiment.model))
        self.take(start.tokenizer)
        optimizer: Any = self.experiment.optimizer
        rate = optimizer.learning_rate
        gentler = rate.scaled(_GENTLER) if isinstance(rate, Schedule) else rate * _GENTLER
        self.experiment = self.experiment.edit("optimizer", learning_rate=gentler).edit(
            model=start.config, checkpoint=str(start.directory)
        )
        self.about = {**self.about, "from": start.fingerprint}

    def take(self, tokenizer: Tokenizer) -> None:
        """Uses these tokens from now on. Raises `ValueError` for any but its own, unless told."""
        if tokenizer.to_json() != self.tokenizer.to_json():
            raise ValueError(
                "The model to begin from was made for other tokens than those of this task."
            )

    def learned(self, training: SubwordTraining, texts: Iterable[str]) -> Tokenizer:
        """The vocabulary of these texts, or the one that the run has learned of them already.

        Raises `ValueError` where every process would learn another one.
        """
        if self.known is not None:
            return self.known
        if jax.process_count() > 1 and not training.exact:
            raise ValueError(
                f"Each process would learn another vocabulary with {training.type_name}; take "
                "another kind, or begin the run with one process and go on with several."
            )
        return training.train(texts)

    def fitted(self, experiment: Made) -> Made:
        """The experiment with what follows from the data; before any other method."""
        return experiment

    @abc.abstractmethod
    def check(self, experiment: Made) -> None:
        """Raises `ValueError` for an experiment that this data does not allow."""

    @abc.abstractmethod
    def describe(self, experiment: Made) -> str:
        """What the data is and how it is split."""

    @abc.abstractmethod
    def batches(self, experiment: Made) -> Callable[[int], Any]:
        """A function from the number of a step to its batch."""

    @abc.abstractmethod
    def validation(self, experiment: Made) -> list[Any]:
        """A few batches to validate with now and then."""

    def callbacks(self, experiment: Made, folder: Path) -> list[Callback]:
        """What happens besides the steps in this task alone; `folder` is the run's."""
        return []

    @abc.abstractmethod
    def evaluate(self, model: Any, experiment: Made) -> dict[str, float]:
        """What is measured at the end on all of the validation data, by name."""

    @abc.abstractmethod
    def conclude(self, values: dict[str, float], experiment: Made) -> str:
        """What `evaluate` found as a sentence."""

    @abc.abstractmethod
    def sample(self, model: Any, experiment: Made, step: int) -> str:
        """Text that shows what the model has learned."""


def check_seed(seed: int) -> None:
    """Raises `ValueError` for a seed that `jax.random.key` does not take, or a negative one."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"`seed` must be at least 0 and below 2**63; got {seed}.")


class Request(NamedTuple):
    """What is asked of a trained model, and how tokens are chosen."""

    prompt: str
    sampler: Sampler
    max_new_tokens: int = 400
    seed: int = 0

    def check(self) -> None:
        """Raises `ValueError` for numbers that make no sense."""
        if self.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1; got {self.max_new_tokens}.")
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A task by name: what `eqxformer train NAME` trains, and how `eqxformer generate` asks it.

    Arguments:
        name: what it is called on the command line.
        summary: what it does, in one line.
        prepare: makes the task of a data file, or of its own data when there is no file.
        respond: a trained model's answer in pieces as they come, given its tokenizer, its
            experiment and the request.
        draws: whether `respond` draws token after token as the request says; where it does not,
            asking for a sampler, a seed or a number of tokens is an error.
    """

    name: str
    summary: str
    prepare: Callable[[Path | None], Task[Any]]
    respond: Callable[[Any, Any, Any, Request], Iterator[str]]
    draws: bool = True
