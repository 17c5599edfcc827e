"""What all encoder-decoders are used as: writing, bare, with labels, their encoder alone."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from eqxformer.architectures._decoders import QUESTIONS
from eqxformer.architectures._encoders import label_names
from eqxformer.checkpoints.architecture import Architecture, Task
from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.rules import Rules, reshaped, turned, under, unprefixed, within
from eqxformer.checkpoints.settings import Settings
from eqxformer.checkpoints.stored import Computed
from eqxformer.layers.linear import Linear
from eqxformer.layers.positions import Sinusoids
from eqxformer.models.audio import AudioEncoder
from eqxformer.models.encoder import Encoder, EncoderWithHead
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.models.encoder_decoder_with_head import EncoderDecoderWithHead
from eqxformer.models.heads import LinearHead, TiedHead, TokenHead
from eqxformer.models.label_heads import LabelHead, Pooling, SequenceHead

HEAD = (
    turned("decoder.head.linear.weight", "lm_head.weight"),
    reshaped("decoder.head.linear.bias", "final_logits_bias"),
    reshaped("decoder.head.bias", "final_logits_bias"),
)
CLASSIFIER = under(
    "head", "classification_head", turned("pooling.dense", "dense"), turned("linear", "out_proj")
)
OWN_HEAD = {"tie_word_embeddings": (False,)}  # as of `seq2seq`

Config = Callable[[Settings], EncoderDecoder.Config]
RulesOf = Callable[[Any], Rules]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Classes with a head of labels: of a text, of its tokens, of where an answer is.

    Arguments:
        start, end: what the decoder reads first, and the token at whose last place it knows the
            text; a number is what an absent setting means.
        prefix: what stands before the names of both sides' tensors in a classifier.
    """

    start: int | Literal["last"]
    end: int
    prefix: str

    def first(self, settings: Settings) -> int | Literal["last"]:
        """What the decoder reads first, by the settings."""
        if self.start == "last":
            return "last"
        return settings.size("decoder_start_token_id", self.start, least=0)


def seq2seq(
    model_type: str,
    name: str,
    config: Config,
    rules: Rules | RulesOf,
    *,
    prefix: str = "",
    writers: tuple[str, ...] = ("ForConditionalGeneration",),
    encoder: str | None = None,
    labelled: Labelled | None = None,
    own_head: Mapping[str, tuple[bool, ...]] = OWN_HEAD,
    ignored: tuple[str, ...] = (),
    describe: Callable[[Any], Mapping[str, Any]] | None = None,
    computed: Callable[[Settings], Mapping[str, Computed]] = lambda _: {},
) -> Architecture:
    """An architecture whose classes share two sides.

    Arguments:
        name: what the names of the classes begin with.
        config, rules: of both sides with their head; names of theirs with the prefix.
        writers: how the names of the classes end that have a head.
        encoder: how the name of the class ends that is the encoder alone, if there is one.
        labelled: the classes with a head of labels, if there are any.
        own_head: settings, and what they say where the head is, or may be, another thing than the
            token table.
        ignored: patterns of tensors without use.
        describe: the settings of both sides, or of an encoder alone.
        computed: tensors that transformers stores though they follow from the settings.
    """
    of = rules if callable(rules) else lambda _: rules

    def bare(settings: Settings) -> EncoderDecoder.Config:
        """Both sides with the token table as their head, which has nothing of its own to store."""
        tree = config(settings)
        scale: Any = getattr(tree.decoder.head, "scale", 1.0)
        return tree.edit("decoder", head=TiedHead.Config(scale=scale))

    def headless(settings: Settings) -> EncoderDecoder.Config:
        """What a file without a head holds, where that was the token table."""
        _refuse_lost(settings, own_head, name + "Model", name + writers[0])
        return bare(settings)

    def computed_bare(settings: Settings) -> dict[str, Computed]:
        return {key.removeprefix(prefix): table for key, table in computed(settings).items()}

    tasks = {name + each: Task(config, of, prefix, ignored, computed=computed) for each in writers}
    tasks[name + "Model"] = Task(
        headless, lambda tree: unprefixed(of(tree), prefix), prefix, ignored, computed=computed_bare
    )
    if encoder is not None:

        def alone(settings: Settings) -> Encoder.Config | AudioEncoder.Config:
            return config(settings).encoder

        tasks[name + encoder] = Task(
            alone, lambda tree: within("encoder", of(tree)), prefix, ("decoder.*", *ignored)
        )
        if labelled is not None:
            tasks[name + "ForTokenClassification"] = _tokens(alone, of, labelled, ignored)
    if labelled is not None:
        tasks[name + "ForSequenceClassification"] = _sequence(bare, of, prefix, labelled, ignored)
        tasks[name + "ForQuestionAnswering"] = _questions(bare, of, prefix, labelled, ignored)
    return Architecture(model_type, tasks, None if describe is None else _describing(describe))


def _refuse_lost(
    settings: Settings, own_head: Mapping[str, tuple[bool, ...]], bare: str, whole: str
) -> None:
    """Raises `CheckpointError` for a model that had a head of its own, which its class has not.

    Arguments:
        own_head: as of `seq2seq`.
        bare, whole: the names of the class without a head and of the one with it.
    """
    found = {key: settings.values.get(key) for key in own_head}
    said = [key for key in own_head if any(found[key] is each for each in own_head[key])]
    if said:
        words = " and ".join(f"`{key}` is {json.dumps(found[key])}" for key in said)
        so = "was" if any(found[key] is False for key in said) else "may have been"
        raise CheckpointError(
            f"{settings.where}: `architectures` names {bare}, which has no head, and {words}: the "
            f"model's head {so} another thing than its token table. Convert the model again as "
            f"{whole}, or name that in `architectures` where the file has the head; where the "
            f"states alone are wanted, remove {' and '.join(f'`{key}`' for key in said)}."
        )


def _sequence(
    bare: Config, of: RulesOf, prefix: str, labelled: Labelled, ignored: tuple[str, ...]
) -> Task:
    """The labels of a text, from the decoder's state at its last end."""

    def config(settings: Settings) -> EncoderDecoderWithHead.Config:
        rate = settings.rate("classifier_dropout")
        pooling = Pooling.Config("last", Linear.Config(), dropout=rate)
        head = SequenceHead.Config(settings.labels(), pooling, rate)
        end = settings.size("eos_token_id", labelled.end, least=0)
        return EncoderDecoderWithHead.Config(bare(settings), head, labelled.first(settings), end)

    def rules(tree: Any) -> Rules:
        body = unprefixed(of(tree.body), prefix)
        return (*under("body", labelled.prefix.removesuffix("."), *body), *CLASSIFIER)

    return Task(config, rules, labelled.prefix, ignored)


def _questions(
    bare: Config, of: RulesOf, prefix: str, labelled: Labelled, ignored: tuple[str, ...]
) -> Task:
    """Where an answer starts and ends, from the decoder's states."""

    def config(settings: Settings) -> EncoderDecoderWithHead.Config:
        head = LabelHead.Config(labels=2)
        return EncoderDecoderWithHead.Config(bare(settings), head, labelled.first(settings))

    return Task(
        config, lambda tree: (*under("body", "", *of(tree.body)), QUESTIONS), prefix, ignored
    )


def _tokens(
    alone: Callable[[Settings], Any], of: RulesOf, labelled: Labelled, ignored: tuple[str, ...]
) -> Task:
    """The labels of tokens, from the encoder's states."""

    def config(settings: Settings) -> EncoderWithHead.Config:
        head = LabelHead.Config(settings.labels(), settings.rate("classifier_dropout"))
        return EncoderWithHead.Config(alone(settings), head)

    def rules(tree: Any) -> Rules:
        encoder = under("", labelled.prefix.removesuffix("."), *of(tree.encoder))
        return (*encoder, turned("head.linear", "classifier"))

    return Task(config, rules, labelled.prefix, ignored)


def _describing(
    describe: Callable[[Any], Mapping[str, Any]],
) -> Callable[[Any], Mapping[str, Any]]:
    """The settings of both sides, or of the encoder alone, with or without a head of labels."""

    def found(tree: Any) -> Mapping[str, Any]:
        head = getattr(tree, "head", None)
        more = label_names(head)
        more |= {} if head is None else {"classifier_dropout": head.dropout}
        if isinstance(tree, EncoderDecoderWithHead.Config):
            more |= {} if tree.start == "last" else {"decoder_start_token_id": tree.start}
            more |= {} if tree.end is None else {"eos_token_id": tree.end}
        return {**describe(getattr(tree, "body", tree)), **more}

    return found


def one_table(
    settings: Settings,
    tree: EncoderDecoder.Config,
    linear: Linear.Config,
    *,
    prefix: str = "model.",
    bias: bool = True,
    narrowed: bool = False,
) -> EncoderDecoder.Config:
    """Both sides with one token table, and the head that goes with it; see `token_head`."""
    table = f"{prefix}shared.weight"
    names = (f"{prefix}{side}.embed_tokens.weight" for side in ("encoder", "decoder"))
    settings.copies(table, *names)
    width = tree.decoder.dim if narrowed else None
    head = token_head(settings, table, linear, bias=bias, narrowed=width)
    return tree.edit("decoder", head=head).edit(tokens="shared")


def token_head(
    settings: Settings,
    table: str,
    linear: Linear.Config,
    *,
    bias: bool = True,
    narrowed: int | None = None,
) -> TokenHead.Config:
    """The token table as output, or one of its own where the file has it.

    Version 5 shares the table of the two sides only where `tie_word_embeddings` is true, so that it
    is true of almost all of them; whether the head is tied as well is for the file to tell.

    Arguments:
        table: the tensor that is the decoder's token table.
        linear: how an output of its own starts.
        bias: whether the logits have a bias, unless the file goes without.
        narrowed: the width by whose root the logits are divided; None where they are not.
    """
    bias = bias and settings.holds("final_logits_bias")
    if settings.tied("lm_head.weight", table, default=True, trusted=False):
        return TiedHead.Config(1.0 if narrowed is None else "1/sqrt(dim)", bias=bias)
    scale = 1.0 if narrowed is None else narrowed**-0.5
    return LinearHead.Config(linear.edit(bias=bias), scale)


def sinusoids(settings: Settings) -> Sinusoids.Config:
    """Marian's positions: sines, then cosines. Some files hold them; any others are refused."""
    for name, table in waves(settings).items():
        settings.follows(name, table)
    return Sinusoids.Config(layout="halves")


def waves(settings: Settings) -> dict[str, Computed]:
    """The tensors that hold the sinusoids of both sides, for as many places as the settings say."""
    length, dim = settings.size("max_position_embeddings", 1024), settings.size("d_model")

    def numbers() -> np.ndarray:
        angles = np.arange(length)[:, None] / np.power(10_000.0, np.arange(0, dim, 2) / dim)
        halves = [np.sin(angles), np.cos(angles[:, : dim // 2])]
        return np.concatenate(halves, axis=1).astype(np.float32)

    sides = (f"model.{side}.embed_positions.weight" for side in ("encoder", "decoder"))
    return dict.fromkeys(sides, Computed((length, dim), numbers))
