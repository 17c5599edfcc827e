"""Small models of every family, each made once, with every parameter off its neutral value."""

import functools
from typing import Any

import equinox as eqx
import jax
import numpy as np

import eqxformer as ef

VOCAB = 13


def filled(config: Any, seed: int = 0) -> Any:
    """The model of a config with every parameter far from where it would start.

    A gain left at one or a bias left at zero would hide that it is never used. No initialiser
    runs, which saves compiling them.
    """
    random = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        numbers = random.standard_normal(leaf.shape)
        numbers = 0.7 + 0.3 * numbers if leaf.ndim < 2 else numbers * leaf.shape[-2] ** -0.5
        return jax.device_put(np.asarray(numbers, leaf.dtype))

    return jax.tree.map(draw, ef.shapes(config))


def block(attention: dict[str, Any], **options: Any) -> ef.Block.Config:
    """A block of few numbers; sizes are primes where they may be, so that a mix-up is an error."""
    config = ef.Attention.Config(**{"heads": 3, **attention})
    return ef.Block.Config(config, options.pop("feed_forward", ef.MLP.Config(hidden=7)), **options)


def decoder(*blocks: ef.AbstractBlock.Config, dim: int = 12, **options: Any) -> ef.DecoderLM.Config:
    """A decoder of these blocks."""
    return ef.DecoderLM.Config(vocab=VOCAB, dim=dim, blocks=blocks, **options)


def _experts() -> ef.Experts.Config:
    return ef.Experts.Config(count=3, top=2, expert=ef.GatedMLP.Config(hidden=5))


def _gemma() -> ef.DecoderLM.Config:
    wiring = ef.sandwich_norm(ef.RMSNorm.Config(offset=1.0))
    options = {"attention_residual": wiring, "feed_forward_residual": wiring}
    local = {"kv_heads": 1, "head_dim": 4, "softcap": 5.0, "window": 3, "rotary": ef.Rotary()}
    return decoder(
        block(local, **options),
        block({**local, "window": None, "rotary": None}, **options),
        block(local, **options),
        embedding=ef.InputEmbedding.Config(scale="rounded sqrt(dim)"),
        norm=ef.RMSNorm.Config(offset=1.0),
        head=ef.TiedHead.Config(softcap=3.0),
    )


def _neox() -> ef.DecoderLM.Config:
    side_by_side = ef.ParallelBlock.Config(
        ef.Attention.Config(
            heads=3, head_dim=4, rotary=ef.Rotary(fraction=0.5), qk_norm=ef.RMSNorm.Config()
        ),
        ef.MLP.Config(hidden=7),
        feed_forward_norm=ef.LayerNorm.Config(),
    )
    return decoder(side_by_side, side_by_side, head=ef.LinearHead.Config(softcap=4.0))


def _sinks() -> ef.DecoderLM.Config:
    attention = {"head_dim": 4, "sinks": ef.Normal(1.0), "rotary": ef.Rotary()}
    latent = ef.LatentAttention.Config(3, latent=5, head_dim=6, rotary_dim=2, query_latent=7)
    return decoder(
        block({**attention, "window": 2}),
        block(attention, feed_forward=_experts()),
        block(attention, feed_forward=_experts()),
        ef.Block.Config(latent, ef.MLP.Config(hidden=7)),
    )


DECODERS: dict[str, ef.DecoderLM.Config] = {
    "gpt": ef.families.gpt(vocab=VOCAB, dim=12, layers=2, heads=3, context=24, hidden=7),
    "llama": ef.families.llama(
        vocab=VOCAB, dim=11, layers=2, heads=4, kv_heads=2, head_dim=6, hidden=7
    ),
    "gemma": _gemma(),
    "neox": _neox(),
    "experts and sinks": _sinks(),
    # Its token table is narrower than the model.
    "alibi": decoder(
        *[block({"bias": ef.ALiBi.Config(scale=0.5)})] * 2,
        embedding=ef.InputEmbedding.Config(width=5, projected="tokens"),
        head=ef.TiedHead.Config(project=ef.Linear.Config(bias=False)),
    ),
    "relative": decoder(
        *[block({})] * 2,
        bias=ef.RelativeBias.Config(buckets=6, max_distance=8, direction="causal"),
    ),
}

SEQ2SEQ: dict[str, ef.EncoderDecoder.Config] = {
    "transformer": ef.families.transformer(
        vocab=VOCAB, target_vocab=11, dim=8, layers=2, heads=3, head_dim=5, hidden=7
    ),
    "t5": ef.families.t5(vocab=VOCAB, dim=10, layers=2, heads=3, head_dim=4, hidden=7),
    "widths": ef.EncoderDecoder.Config(
        encoder=ef.Encoder.Config(vocab=VOCAB, dim=6, blocks=(block({}),)),
        decoder=decoder(block({"rotary": None}, cross_attention=ef.Attention.Config(heads=2))),
    ),
}


@functools.cache
def model(name: str, layout: ef.Layout | None = None) -> Any:
    """The model of this name, hot; with another layout, the same arrays."""
    if layout is not None:
        cold = model(name)
        inner = {"layout": layout}
        paths = ("encoder", "decoder") if name in SEQ2SEQ else ("",)
        config = cold.config
        for path in paths:
            config = config.edit(path, **inner)
        return ef.rebuild(cold, config)
    config = {**DECODERS, **SEQ2SEQ}[name]
    return filled(config)


@eqx.filter_jit
def logits(model: Any, *inputs: Any, **options: Any) -> jax.Array:
    """The model, compiled once per family and set of shapes."""
    return model(*inputs, **options)


@eqx.filter_jit
def extend(model: Any, tokens: Any, cache: Any, **options: Any) -> tuple[jax.Array, Any]:
    """`model.extend`, compiled."""
    return model.extend(tokens, cache, **options)


def tokens(*shape: int, seed: int = 0, vocab: int = VOCAB) -> jax.Array:
    """Random ids."""
    return jax.device_put(np.random.default_rng(seed).integers(0, vocab, shape).astype(np.int32))


def close(a: Any, b: Any, tolerance: float = 3e-5) -> None:
    """Asserts equality to rounding in float32, relative to the largest number."""
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max())))
