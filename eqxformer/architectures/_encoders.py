"""What all encoder-only architectures are used as: bare, with a head for tokens or for texts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from eqxformer.checkpoints.architecture import Architecture, Task
from eqxformer.checkpoints.rules import Rules, same, turned, under, unprefixed
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.activations import Activation
from eqxformer.layers.linear import Linear
from eqxformer.models.encoder import Encoder, EncoderWithHead
from eqxformer.models.heads import LinearHead, MaskedLMHead, TiedHead
from eqxformer.models.label_heads import LabelHead, Pooling, SequenceHead

Body = Callable[[Settings], Encoder.Config]
Rate = Callable[[Settings], float]
Layer = Callable[[Settings, Encoder.Config], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Head:
    """A head: its config, given the settings and the encoder's tree, and where it is stored.

    `saved_as` is how the name of the class ends that models with it are saved as, where that is
    not the class itself; `ignored` are tensors without use.
    """

    config: Callable[[Settings, Encoder.Config], Any]
    rules: Rules
    saved_as: str | None = None
    ignored: tuple[str, ...] = ()


def encoder(
    model_type: str,
    name: str,
    body: Body,
    rules: Rules,
    heads: Mapping[str, Head],
    *,
    prefix: str,
    ignored: tuple[str, ...] = (),
    describe: Callable[[Encoder.Config], Mapping[str, Any]] | None = None,
    describe_head: Callable[[Any], Mapping[str, Any]] = lambda head: {},
) -> Architecture:
    """An architecture whose classes share one body.

    Arguments:
        name: what the names of the classes begin with.
        body, rules: the encoder's config and where its arrays are, names of theirs with the prefix.
        heads: by how the names of the classes end that have them; the body by itself is `Model`.
        ignored: patterns of tensors without use, of other heads for example.
        describe: the settings of an encoder's config.
        describe_head: those of a head, but for how many labels it has and whether it is tied.

    Example:
        >>> from eqxformer.architectures import bert, encoder_architecture
        >>> heads, rules = {"ForMaskedLM": bert.MASKED}, bert.rules("bert")
        >>> mine = encoder_architecture("mine", "Mine", bert.config, rules, heads, prefix="bert.")
        >>> list(mine.tasks)
        ['MineModel', 'MineForMaskedLM']
    """
    ignored = ("*.position_ids", "*.token_type_ids", *ignored)
    unasked = (f"{prefix}pooler.*", "pooler.*")  # where a head has a layer of its own

    def bare(settings: Settings) -> Encoder.Config:
        settings.skip("classifier_dropout", "tie_word_embeddings")  # of heads
        return body(settings)

    def task(head: Head) -> Task:
        def config(settings: Settings) -> EncoderWithHead.Config:
            tree = bare(settings)
            found = head.config(settings, tree)
            if settings.stored is None or isinstance(found, SequenceHead.Config):
                tree = tree.edit(pooling=Pooling.Config())  # heads pool by themselves, if at all
            return EncoderWithHead.Config(tree, found)

        return Task(
            config,
            lambda _: (*under("encoder", "", *rules), *head.rules),
            prefix,
            (*ignored, *unasked, *head.ignored),
            None if head.saved_as is None else name + head.saved_as,
        )

    tasks = {name + "Model": Task(bare, lambda _: unprefixed(rules, prefix), prefix, ignored)}
    tasks |= {name + ending: task(head) for ending, head in heads.items()}
    described = None if describe is None else _describing(describe, describe_head)
    return Architecture(model_type, tasks, described, body=name + "Model")


def body_dropout(settings: Settings) -> float:
    """The rate of the body."""
    return settings.rate("hidden_dropout_prob", 0.1)


def classifier_dropout(settings: Settings) -> float:
    """The rate before a classifier: its own, or that of the body."""
    return settings.rate("classifier_dropout", body_dropout(settings))


def layer(activation: Callable[[Settings], Activation] = lambda _: "gelu") -> Layer:
    """A layer that a head begins with, with a bias."""

    def found(settings: Settings, tree: Encoder.Config) -> dict[str, Any]:
        return {"dense": linear_of(tree), "activation": activation(settings)}

    return found


def linear_of(tree: Encoder.Config) -> Linear.Config:
    """A projection that begins as the tree's tables do."""
    return Linear.Config(init=tree.embedding.tokens.init)


def masked(
    dense: str,
    norm: str,
    output: str,
    *,
    table: str,
    bias: str | None = None,
    first: Layer = layer(),
    biased: Callable[[Settings], bool] = lambda _: True,
) -> Head:
    """The head for masked tokens; its output is the token table unless the file has its own.

    Arguments:
        dense, norm, output: the names of its parts.
        table: the name of the token table's tensor.
        bias: the name of a tied output's bias, if it is not that of `output`.
        first: the layer it begins with.
        biased: whether the output has a bias.
    """
    own = f"{output}.bias"
    bias = bias or own

    def config(settings: Settings, tree: Encoder.Config) -> MaskedLMHead.Config:
        tied = settings.tied(f"{output}.weight", table, default=True)
        if bias != own:
            _one_bias(settings, own, bias, tied=tied)
        linear = linear_of(tree).edit(bias=biased(settings))
        last = TiedHead.Config(bias=linear.bias) if tied else LinearHead.Config(linear)
        parts = first(settings, tree)
        return MaskedLMHead.Config(**parts, norm=tree.embedding.norm, output=last)

    rules = (
        turned("head.dense", dense),
        same("head.norm", norm),
        same("head.output.bias", bias),
        turned("head.output.linear", output),
    )
    # Beside an output with a bias of its own the other bias is not used.
    return Head(config, rules, ignored=(bias,))


def _one_bias(settings: Settings, own: str, bias: str, *, tied: bool) -> None:
    """Of two biases, a tied head has `bias`, which may be there twice, another has its `own`."""
    if tied:
        settings.repeats(own, bias)
    elif settings.stored is not None and not settings.holds(own):
        settings.stored.call(own, bias)


def pooled(
    dense: str,
    linear: str = "classifier",
    norm: str | None = None,
    *,
    rate: Rate = classifier_dropout,
    first: Layer = layer(lambda _: "tanh"),
    dropped: Literal["twice", "once"] = "once",
    take: Callable[[Settings], Any] = lambda _: "first",
) -> Head:
    """Labels of a text: `linear(dropout(norm(act(dense(dropout(take(x)))))))`.

    Arguments:
        dense, linear, norm: the names of its parts, of which the last may lack.
        rate: of dropout, which is there `twice` or before the labels alone.
        first: the layer it begins with.
        take: what of the tokens is taken.
    """

    def config(settings: Settings, tree: Encoder.Config) -> SequenceHead.Config:
        pooling = Pooling.Config(
            take(settings),
            **first(settings, tree),
            dropout=rate(settings) if dropped == "twice" else 0.0,
            norm=None if norm is None else tree.embedding.norm,
        )
        return SequenceHead.Config(settings.labels(), pooling, rate(settings), linear_of(tree))

    rules = _named("head.pooling", dense, norm)
    return Head(config, (*rules, turned("head.linear", linear)))


def tokens(
    linear: str = "classifier",
    dense: str | None = None,
    norm: str | None = None,
    *,
    rate: Rate = classifier_dropout,
    first: Layer = layer(),
    labels: Callable[[Settings], int] = Settings.labels,
) -> Head:
    """Labels of every token: `linear(dropout(norm(act(dense(x)))))`; arguments as in `pooled`."""

    def config(settings: Settings, tree: Encoder.Config) -> LabelHead.Config:
        return LabelHead.Config(
            labels(settings),
            rate(settings),
            linear_of(tree),
            **({} if dense is None else first(settings, tree)),
            norm=None if norm is None else tree.embedding.norm,
        )

    return Head(config, (*_named("head", dense, norm), turned("head.linear", linear)))


def _named(part: str, dense: str | None, norm: str | None) -> Rules:
    """Where the layer and the norm are that a head may begin with."""
    layers = () if dense is None else (turned(f"{part}.dense", dense),)
    return layers if norm is None else (*layers, same(f"{part}.norm", norm))


# Where an answer starts and where it ends.
QUESTIONS = tokens("qa_outputs", rate=lambda _: 0.0, labels=lambda _: 2)


def label_names(head: Any) -> dict[str, Any]:
    """The setting that says how many labels a head has; nothing for a head without labels."""
    labels = getattr(head, "labels", None)
    return {} if labels is None else {"id2label": {str(i): f"LABEL_{i}" for i in range(labels)}}


def _describing(
    describe: Callable[[Encoder.Config], Mapping[str, Any]],
    describe_head: Callable[[Any], Mapping[str, Any]],
) -> Callable[[Any], Mapping[str, Any]]:
    """The settings of an encoder, with or without a head."""

    def found(tree: Any) -> Mapping[str, Any]:
        head = getattr(tree, "head", None)
        more = {} if head is None else {**describe_head(head), **label_names(head)}
        if isinstance(head, MaskedLMHead.Config):
            more["tie_word_embeddings"] = isinstance(head.output, TiedHead.Config)
        return {**describe(getattr(tree, "encoder", tree)), **more}

    return found
