"""Slow twins of blocks and of whole models in NumPy, one sequence at a time.

They stand on the twins of the parts in `reference`, read parameters and configs, and nothing of
the library's code.
"""

import equinox as eqx
import jax
import numpy as np

from tests.helpers import reference


def plain(tree):
    """The same with float64 NumPy arrays in place of arrays of numbers."""
    return jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64) if eqx.is_inexact_array(leaf) else leaf, tree
    )


def residual(part, x, branch):
    """`out_norm(x + scale * post_norm(f(pre_norm(x))))`."""
    y = branch(reference.norm(part.pre_norm, x)) if len(x) else x
    y = reference.norm(part.post_norm, y)
    return reference.norm(part.out_norm, x + part.config.scale * y)


def block(part, x, source=None, *, source_allowed=None, **options):
    """A `Block` or a `ParallelBlock`; options go to self-attention."""
    if type(part).__name__ == "ParallelBlock":
        second = part.feed_forward_norm or part.norm
        attended = _attention(part.attention, reference.norm(part.norm, x), **options)
        return x + attended + _feed_forward(part.feed_forward, reference.norm(second, x))
    x = residual(part.attention_residual, x, lambda h: _attention(part.attention, h, **options))
    if part.cross_attention is not None:
        x = residual(
            part.cross_residual,
            x,
            lambda h: reference.attention(part.cross_attention, h, source, allowed=source_allowed),
        )
    return residual(part.feed_forward_residual, x, lambda h: _feed_forward(part.feed_forward, h))


def decoder(model, tokens, source=None, *, table=None, allowed=None, positions=None):
    """The logits of a `DecoderLM` for one sequence of real tokens."""
    seq, config = len(tokens), model.config
    table = np.asarray((model.embedding.tokens or table).weight)
    causal = np.tril(np.ones((seq, seq), bool))
    x = _run(model, tokens, table, source, causal if allowed is None else allowed, positions)
    head = model.head
    if type(head).__name__ == "TiedHead":
        x = x if head.project is None else reference.linear(head.project, x)
        logits = head.scale * x @ table.T + (0.0 if head.bias is None else head.bias)
    else:
        logits = head.config.scale * reference.linear(head.linear, x)
    cap = config.head.softcap
    return logits if cap is None else cap * np.tanh(logits / cap)


def encoder(model, tokens, *, allowed=None, types=None):
    """The hidden states of an `Encoder` for one sequence of real tokens."""
    return _run(
        model, tokens, np.asarray(model.embedding.tokens.weight), None, allowed, None, types
    )


def encoder_decoder(model, source, target):
    """The logits of an `EncoderDecoder` for one pair of sequences of real tokens."""
    encoded = encoder(model.encoder, source)
    return decoder(model.decoder, target, encoded, table=model.encoder.embedding.tokens)


def _run(model, tokens, table, source, allowed, positions, types=None):
    part, dim = model.embedding, model.config.dim
    at = np.arange(len(tokens)) if positions is None else positions
    factors = {"sqrt(dim)": dim**0.5, "rounded sqrt(dim)": dim**0.5, "1/sqrt(dim)": dim**-0.5}
    x = factors.get(part.config.scale, part.config.scale) * table[np.asarray(tokens)]
    x = _projected(part, "tokens", x)
    if type(part.positions).__name__ == "LearnedPositions":
        x = x + np.asarray(part.positions.weight)[at]
    elif part.positions is not None:
        x = x + _sinusoids(at, dim)
    if part.types is not None:
        x = x + np.asarray(part.types.weight)[np.zeros(len(x), int) if types is None else types]
    x = _projected(part, "sum", reference.norm(part.norm, x))
    bias = _shared_bias(model, len(x))
    for each in model.blocks:
        x = block(each, x, source, allowed=allowed, positions=at, bias=bias)
    return reference.norm(model.norm, x)


def _projected(part, what, x):
    if part.project is None or part.config.projected != what:
        return x
    return reference.linear(part.project, x)


def _sinusoids(positions, dim):
    waves = np.zeros((len(positions), dim))
    for row, position in enumerate(positions):
        for column in range(dim):
            angle = position / 10_000 ** ((column - column % 2) / dim)
            waves[row, column] = np.cos(angle) if column % 2 else np.sin(angle)
    return waves


def _shared_bias(model, seq):
    if model.bias is None:
        return None
    heads = model.config.blocks[0].attention.heads
    return np.array(
        [
            [[reference.position_bias(model.bias, h, i, j) for j in range(seq)] for i in range(seq)]
            for h in range(heads)
        ]
    )


def _attention(part, x, **options):
    if type(part).__name__ == "LatentAttention":
        return reference.latent_attention(part, x, **options)
    return reference.attention(part, x, **options)


def _feed_forward(part, x):
    if type(part).__name__ == "Experts":
        return reference.experts(part, x)[0]
    return reference.feed_forward(part, x)
