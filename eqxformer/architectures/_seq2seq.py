"""What all encoder-decoders are used as: with a head that writes, bare, their encoder alone."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eqxformer.checkpoints.architecture import Architecture, Task
from eqxformer.checkpoints.rules import Rules, reshaped, turned, unprefixed, within
from eqxformer.checkpoints.settings import Settings
from eqxformer.checkpoints.stored import Computed
from eqxformer.layers.linear import Linear
from eqxformer.layers.positions import Sinusoids
from eqxformer.models.audio import AudioEncoder
from eqxformer.models.encoder import Encoder
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.models.heads import LinearHead, TiedHead, TokenHead

HEAD = (
    turned("decoder.head.linear.weight", "lm_head.weight"),
    reshaped("decoder.head.linear.bias", "final_logits_bias"),
    reshaped("decoder.head.bias", "final_logits_bias"),
)


def seq2seq(
    model_type: str,
    name: str,
    config: Callable[[Settings], EncoderDecoder.Config],
    rules: Rules | Callable[[EncoderDecoder.Config], Rules],
    *,
    prefix: str = "",
    writers: tuple[str, ...] = ("ForConditionalGeneration",),
    encoder: str | None = None,
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

    def computed_bare(settings: Settings) -> dict[str, Computed]:
        return {key.removeprefix(prefix): table for key, table in computed(settings).items()}

    tasks = {name + each: Task(config, of, prefix, ignored, computed=computed) for each in writers}
    tasks[name + "Model"] = Task(
        bare, lambda tree: unprefixed(of(tree), prefix), prefix, ignored, computed=computed_bare
    )
    if encoder is not None:

        def alone(settings: Settings) -> Encoder.Config | AudioEncoder.Config:
            return config(settings).encoder

        tasks[name + encoder] = Task(
            alone, lambda tree: within("encoder", of(tree)), prefix, ("decoder.*", *ignored)
        )
    return Architecture(model_type, tasks, describe)


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
