"""What all encoder-only architectures are used as: bare, with a head for tokens or for texts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from eqxformer.checkpoints.architecture import Architecture, Task
from eqxformer.checkpoints.rules import Rules, same, turned, under, unprefixed
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.activations import Activation
from eqxformer.layers.linear import Linear
from eqxformer.models.encoder import Encoder, EncoderWithHead
from eqxformer.models.heads import (
    LabelHead,
    LinearHead,
    MaskedLMHead,
    Pooling,
    SequenceHead,
    TiedHead,
)

Body = Callable[[Settings], Encoder.Config]
Rate = Callable[[Settings], float]


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
) -> Architecture:
    """An architecture whose classes share one body.

    Arguments:
        name: what the names of the classes begin with.
        body, rules: the encoder's config and where its arrays are, names of theirs with the prefix.
        heads: by how the names of the classes end that have them; the body by itself is `Model`.
        ignored: patterns of tensors without use, of other heads for example.
        describe: the settings of an encoder's config.
    """
    ignored = ("*.position_ids", "*.token_type_ids", *ignored)

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
            (*ignored, *head.ignored),
            None if head.saved_as is None else name + head.saved_as,
        )

    tasks = {name + "Model": Task(bare, lambda _: unprefixed(rules, prefix), prefix, ignored)}
    tasks |= {name + ending: task(head) for ending, head in heads.items()}
    described = None if describe is None else _describing(describe)
    return Architecture(model_type, tasks, described, body=name + "Model")


def masked(
    dense: str,
    norm: str,
    output: str,
    *,
    table: str,
    bias: str | None = None,
    activation: Callable[[Settings], Activation] = lambda _: "gelu",
) -> Head:
    """The head for masked tokens; its output is the token table unless the file has its own.

    Arguments:
        dense, norm, output: the names of its parts.
        table: the name of the token table's tensor.
        bias: the name of the bias of a tied output; it may be there again as that of `output`.
        activation: after `dense`.
    """
    own = f"{output}.bias"
    bias = bias or own

    def config(settings: Settings, tree: Encoder.Config) -> MaskedLMHead.Config:
        linear = Linear.Config(init=tree.embedding.tokens.init)
        tied = settings.tied(f"{output}.weight", table, default=True)
        if bias != own:
            _one_bias(settings, own, bias, tied=tied)
        return MaskedLMHead.Config(
            dense=linear,
            activation=activation(settings),
            norm=tree.embedding.norm,
            output=TiedHead.Config(bias=True) if tied else LinearHead.Config(linear),
        )

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
    *,
    rate: Rate,
    activation: Activation = "tanh",
    twice: bool = True,
) -> Head:
    """Labels of a text from its first token: `linear(dropout(act(dense(dropout(x)))))`.

    Arguments:
        dense, linear: the names of its parts.
        rate: of dropout; without `twice` there is none before `dense`.
    """

    def config(settings: Settings, tree: Encoder.Config) -> SequenceHead.Config:
        layer = Linear.Config(init=tree.embedding.tokens.init)
        dropped = rate(settings)
        before = dropped if twice else 0.0
        pooling = Pooling.Config("first", layer, activation, dropout=before)
        return SequenceHead.Config(settings.labels(), pooling, dropped, layer)

    return Head(config, (turned("head.pooling.dense", dense), turned("head.linear", linear)))


def classifier_dropout(settings: Settings) -> float:
    """The rate before a classifier: its own, or that of the body."""
    return settings.rate("classifier_dropout", settings.rate("hidden_dropout_prob", 0.1))


def tokens(linear: str = "classifier", *, rate: Rate = classifier_dropout) -> Head:
    """Labels of every token: `linear(dropout(x))`."""

    def config(settings: Settings, tree: Encoder.Config) -> LabelHead.Config:
        layer = Linear.Config(init=tree.embedding.tokens.init)
        return LabelHead.Config(settings.labels(), rate(settings), layer)

    return Head(config, (turned("head.linear", linear),))


def questions(*, rate: Rate = lambda _: 0.0) -> Head:
    """Where an answer starts and where it ends: two scores of every token."""

    def config(settings: Settings, tree: Encoder.Config) -> LabelHead.Config:
        return LabelHead.Config(2, rate(settings), Linear.Config(init=tree.embedding.tokens.init))

    return Head(config, (turned("head.linear", "qa_outputs"),))


def _describing(
    describe: Callable[[Encoder.Config], Mapping[str, Any]],
) -> Callable[[Any], Mapping[str, Any]]:
    """The settings of an encoder, with or without a head."""

    def found(tree: Any) -> Mapping[str, Any]:
        head = getattr(tree, "head", None)
        labels, more = getattr(head, "labels", None), {}
        if labels is not None:
            more["id2label"] = {str(i): f"LABEL_{i}" for i in range(labels)}
        if isinstance(head, MaskedLMHead.Config):
            more["tie_word_embeddings"] = isinstance(head.output, TiedHead.Config)
        return {**describe(getattr(tree, "encoder", tree)), **more}

    return found
