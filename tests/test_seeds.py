"""The systems this library grew from: their parameter counts, and one forward pass to the digit."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int, PRNGKeyArray

import eqxformer as ef
from tests.helpers.models import filled, tokens

# "Another annotated transformer" (A. Niskin, 2024): heads x size need not be the width.


def _annotated(head_dim, **changes):
    sizes = {"vocab": 28, "dim": 30, "layers": 3, "heads": 7, "hidden": 13, **changes}
    return ef.families.transformer(head_dim=head_dim, **sizes)


COUNTS = {
    "attention": (lambda: _Only(ef.Attention.Config(heads=2, head_dim=2), 3), 63),
    "encoder": (lambda: _annotated(17).encoder, 47_670),
    "decoder of a one-hot source": (lambda: _annotated(17).decoder.edit(source_dim=28), 91_291),
    "encoder-decoder": (lambda: _annotated(3), 31_903),
    "rot13": (lambda: _annotated(5, dim=8, layers=1, hidden=5), 4_665),
}


class _Only(ef.Config):
    """A part by itself, as a model."""

    part: ef.Config
    dim: int

    def build(self, *, key):
        return self.part.build(self.dim, key=key)


@pytest.mark.parametrize("name", COUNTS)
def test_the_annotated_transformer_has_its_number_of_parameters(name):
    config, expected = COUNTS[name]
    assert ef.count(ef.shapes(config())) == expected


def test_its_decoder_reads_a_source_of_another_width():
    built = filled(COUNTS["decoder of a one-hot source"][0]())
    source = jax.nn.one_hot(tokens(2, 5, vocab=28), 28)
    out = eqx.filter_jit(built)(tokens(2, 7, vocab=28), source)
    assert out.shape == (2, 7, 28)
    changed = eqx.filter_jit(built)(tokens(2, 7, vocab=28), source[:, ::-1] + 1.0)
    assert not np.allclose(out, changed)


# awf/functional-transformer; two parts that the library does not have stand where they are used.


class Standardize(ef.Norm):
    """`(x - mean) / (std + eps) * weight`: `eps` outside of the root."""

    class Config(ef.Norm.Config):
        """What is added to the deviation."""

        eps: float = 1e-5

        def build(self, dim: int) -> "Standardize":
            return Standardize(jnp.ones(dim), self.eps)

    weight: Float[Array, " dim"]
    eps: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        centred = x - x.mean(-1, keepdims=True)
        deviation = jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True))
        return centred / (deviation + self.eps) * jnp.broadcast_to(self.weight, x.shape)


class GainedPositions(ef.Positions):
    """`gain * weight[position]`."""

    class Config(ef.Positions.Config):
        """How many positions, and what multiplies them."""

        length: int
        gain: float = 1.0

        def build(self, dim: int, *, key: PRNGKeyArray) -> "GainedPositions":
            return GainedPositions(jax.random.normal(key, (self.length, dim)), self.gain)

    weight: Float[Array, "positions dim"]
    gain: float = eqx.field(static=True)

    def __call__(self, positions: Int[Array, "*batch seq"]) -> Float[Array, "*batch seq dim"]:
        return self.gain * self.weight[positions]


def functional(
    *, vocab, dim, layers, heads, d_k, d_v, d_ff, context, tau, lambda_e, lambda_pe
) -> ef.DecoderLM.Config:
    """The functional transformer; `d_v` is `dim`, or its share per head."""
    plain, wiring = ef.Linear.Config(bias=False), ef.pre_norm(Standardize.Config())
    attention = ef.Attention.Config(
        heads=heads,
        head_dim=d_k,
        value_dim=d_v,
        scale=tau,
        query=plain,
        key=plain,
        value=plain,
        out=ef.SumHeads(),
    )
    block = ef.Block.Config(
        attention,
        ef.MLP.Config(hidden=d_ff, activation="relu", up=plain, down=plain),
        attention_residual=wiring,
        feed_forward_residual=wiring,
    )
    return ef.DecoderLM.Config(
        vocab=vocab,
        dim=dim,
        embedding=ef.InputEmbedding.Config(
            scale=lambda_e, positions=GainedPositions.Config(length=context, gain=lambda_pe)
        ),
        blocks=(block,) * layers,
        norm=Standardize.Config(),
        head=ef.LinearHead.Config(),
    )


def _transcription(p, heads, d_v, tau, lambda_e, lambda_pe, ids, eps=1e-5):
    """The formula in NumPy, from the arrays by their names in a checkpoint."""

    def standardize(x, weight):
        deviation = np.sqrt(((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True))
        return (x - x.mean(-1, keepdims=True)) / (deviation + eps) * weight

    seq = len(ids)
    x = lambda_e * p["embedding.tokens.weight"][ids]
    x = x + lambda_pe * p["embedding.positions.weight"][:seq]
    layer = 0
    while f"blocks.{layer}.attention.query.weight" in p:
        q, k, v, g, g2, up, down = (p[f"blocks.{layer}.{name}.weight"] for name in _NAMES)
        t, parts = standardize(x, g), []
        for h in range(heads):
            d_k = q.shape[1] // heads
            query, key = t @ q[:, h * d_k : (h + 1) * d_k], t @ k[:, h * d_k : (h + 1) * d_k]
            powers = np.exp(tau * query @ key.T) * np.tril(np.ones((seq, seq)))
            value = t @ v[:, h * d_v : (h + 1) * d_v]
            parts.append(powers / powers.sum(1, keepdims=True) @ value)
        x = x + (sum(parts) if d_v == x.shape[1] else np.concatenate(parts, axis=1))
        x = x + np.maximum(standardize(x, g2) @ up, 0) @ down
        layer += 1
    return standardize(x, p["norm.weight"]) @ p["head.linear.weight"]


_NAMES = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention_residual.pre_norm",
    "feed_forward_residual.pre_norm",
    "feed_forward.up",
    "feed_forward.down",
)


@pytest.mark.parametrize(("dim", "d_v"), [(17, 17), (15, 5)], ids=["summed", "side by side"])
def test_the_functional_transformer_is_its_formula(dim, d_v):
    heads, tau, lambda_e, lambda_pe = 3, 0.31, 1.7, 0.6
    config = functional(
        vocab=13,
        dim=dim,
        layers=2,
        heads=heads,
        d_k=7,
        d_v=d_v,
        d_ff=11,
        context=19,
        tau=tau,
        lambda_e=lambda_e,
        lambda_pe=lambda_pe,
    )
    built, ids = filled(config), tokens(2, 5)
    named = {k: np.asarray(v, np.float64) for k, v in ef.named_arrays(built).items()}
    assert not [path for path in named if "bias" in path or "out" in path]
    got = eqx.filter_jit(built)(ids)
    for row in range(2):
        expected = _transcription(named, heads, d_v, tau, lambda_e, lambda_pe, np.asarray(ids[row]))
        np.testing.assert_allclose(got[row], expected, atol=1e-5, rtol=1e-5)
