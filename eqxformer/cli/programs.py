"""What `eqxformer inspect` looks at: a forward pass, its gradient, and a step of decoding."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.bench.ceilings import step_flops
from eqxformer.data.batches import PairBatch, TokenBatch
from eqxformer.inspect.compiler import Program, program
from eqxformer.inspect.inputs import input_shapes
from eqxformer.losses.tokens import next_token_loss, sequence_to_sequence_loss
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.encoder_decoder import EncoderDecoder


class Asked(NamedTuple):
    """A program, and how many operations its matrix products need by our own count.

    Arguments:
        name: `forward`, `gradient` or `decode`.
        about: what it is, in a line.
        program: as it is traced.
        flops: None where nobody counts them.
    """

    name: str
    about: str
    program: Program
    flops: float | None


def asked(skeleton: Any, batch: int, length: int | None) -> Iterator[Asked]:
    """The programs of a model's shapes for rows and tokens of these numbers."""
    inputs = input_shapes(skeleton, batch=batch, length=length)
    flops = _flops(skeleton, inputs)
    forward = program(lambda model, *inputs: model(*inputs), skeleton, *inputs)
    yield Asked("forward", "logits or hidden states of all tokens", forward, flops)
    about, loss = _loss(skeleton)
    gradient = program(_gradient(loss), skeleton, *inputs)
    yield Asked("gradient", about, gradient, None if flops is None else 3 * flops)
    if isinstance(skeleton, DecoderLM | EncoderDecoder):
        yield _decoding(skeleton, inputs)


def _gradient(loss: Callable[..., Any]) -> Callable[..., Any]:
    def gradient(model: Any, *inputs: Any) -> Any:
        return eqx.filter_value_and_grad(loss)(model, *inputs)

    return gradient


def _loss(skeleton: Any) -> tuple[str, Callable[..., Any]]:
    """What is differentiated: the loss that such a model is trained with, or else a stand-in."""
    if isinstance(skeleton, DecoderLM):
        # A row read as training reads it would be a token longer; of these all but the last are.
        about = "loss of the next tokens and its gradient for every weight"
        return about, lambda model, tokens: next_token_loss(model, TokenBatch(_longer(tokens)))
    if isinstance(skeleton, EncoderDecoder):
        about = "loss of the target and its gradient for every weight"
        return about, lambda model, source, target: sequence_to_sequence_loss(
            model, PairBatch(source, _longer(target))
        )
    about = "mean square of the outputs and its gradient for every weight"
    return about, lambda model, *inputs: jnp.square(model(*inputs).astype(jnp.float32)).mean()


def _longer(tokens: Any) -> Any:
    """The rows with one token more, so that as many are read as were there."""
    return jnp.concatenate([tokens, tokens[:, -1:]], axis=-1)


def _decoding(skeleton: Any, inputs: Any) -> Asked:
    """One more token for every row, behind a full cache."""
    *source, tokens = inputs
    rows, length = tokens.shape

    def empty(model: Any, *source: Any) -> Any:
        first = source if source else ((rows,),)
        return model.init_cache(*first, length)

    cache = eqx.filter_eval_shape(empty, skeleton, *source)
    token = jax.ShapeDtypeStruct((rows, 1), jnp.int32)
    found = program(lambda model, token, cache: model.extend(token, cache), skeleton, token, cache)
    return Asked(
        "decode",
        f"a token more, with a cache of {length:,} slots",
        found,
        _step_flops(skeleton, rows, length),
    )


def _step_flops(skeleton: Any, rows: int, length: int) -> float | None:
    """Operations of a step behind a full cache, from those of one token and of two.

    A row of `n` tokens takes `n` times those of a token by itself, and `n (n + 1) / 2` times those
    of a pair of a query and a key.
    """
    one, two = (_flops(skeleton, [jax.ShapeDtypeStruct((rows, n), jnp.int32)]) for n in (1, 2))
    if one is None or two is None or isinstance(skeleton, EncoderDecoder):
        return None
    pair = two - 2 * one
    return one + pair * (length - 1)


def _flops(skeleton: Any, inputs: Any) -> float | None:
    """Operations of a forward pass; None for models whose operations nobody counts."""
    tokens = inputs[-1].shape
    if inputs[0].ndim == 3:  # of frames of audio nobody counts
        return None
    source = inputs[0].shape[1] if len(inputs) > 1 and inputs[0].ndim == 2 else 0
    try:
        return step_flops(skeleton.config, *tokens, source=source) / 3
    except NotImplementedError:
        return None
