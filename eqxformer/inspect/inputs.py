"""What a model is called with, as shapes: tokens, a source and a target, frames of audio."""

from typing import Any

import jax
import jax.numpy as jnp

from eqxformer.models.audio import AudioEncoder
from eqxformer.models.encoder_decoder import EncoderDecoder

Shapes = tuple[jax.ShapeDtypeStruct, ...]


def input_shapes(model: Any, *, batch: int = 1, length: int | None = None) -> Shapes:
    """The shapes of the arguments with which a model is called.

    Arguments:
        model: a decoder, an encoder, an encoder-decoder, with a head of labels or not; its shapes
            suffice.
        batch: rows.
        length: tokens of a row, of both sides where there are two; 128, or as many as the model has
            positions for, if None. An encoder of audio hears as many frames as it has positions
            for.

    Raises `ValueError` for sizes below one.

    Example:
        >>> import eqxformer as ef
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> ef.inspect.input_shapes(ef.shapes(config), batch=4)
        (ShapeDtypeStruct(shape=(4, 8), dtype=int32),)
    """
    if batch < 1 or (length is not None and length < 1):
        raise ValueError(f"`batch` and `length` must be positive; got {batch} and {length}.")
    body = model.body if hasattr(model, "body") else model
    sides = [body.encoder, body.decoder] if hasattr(body, "decoder") else [body]
    tokens = jax.ShapeDtypeStruct((batch, length or _length(sides)), jnp.int32)
    if isinstance(body, AudioEncoder):
        return (_frames(body, batch),)
    if not isinstance(model, EncoderDecoder):
        return (tokens,)
    encoder = model.encoder
    return (_frames(encoder, batch) if isinstance(encoder, AudioEncoder) else tokens, tokens)


def _length(sides: list[Any]) -> int:
    """128, or as many as the shortest table of positions has."""
    tables = (_table_length(getattr(side, "encoder", side)) for side in sides)
    return min([128, *(length for length in tables if length is not None)])


def _table_length(side: Any) -> int | None:
    """The positions of a side, where it has a table of them; None otherwise."""
    positions = getattr(side.config.embedding, "positions", None)
    return getattr(positions, "length", None)


def _frames(side: AudioEncoder, batch: int) -> jax.ShapeDtypeStruct:
    """Frames for all positions; two frames become a place where one convolution skips every other.

    Without a table of positions, 200 of them.
    """
    embedding = side.config.embedding
    stride = embedding.first.stride * embedding.second.stride
    frames = (_table_length(side) or 100) * stride
    return jax.ShapeDtypeStruct((batch, frames, side.config.bins), jnp.float32)
