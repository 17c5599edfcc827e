"""Every rate of dropout in a model drops something of its own, with a key and without none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.config import paths
from tests.helpers.models import VOCAB, block, decoder, filled, tokens

BERT = ef.families.bert(vocab=VOCAB, dim=8, layers=1, heads=2, hidden=8, context=8)
SIDE_BY_SIDE = ef.ParallelBlock.Config(ef.Attention.Config(heads=2), ef.MLP.Config(hidden=7))
GATED = block({}, feed_forward=ef.GatedMLP.Config(hidden=7))
MIXED = block({}, feed_forward=ef.Experts.Config(count=3, top=2, expert=ef.MLP.Config(hidden=5)))
HEARING = ef.AudioEncoder.Config(bins=5, dim=12, blocks=(block({}),))
READING = block({}, cross_attention=ef.Attention.Config(heads=2))
HEARD = ef.EncoderDecoder.Config(HEARING, decoder(READING))
LATENT = ef.LatentAttention.Config(2, latent=5, head_dim=6, rotary_dim=2)


def _acts(path, config):
    """Whether what is there is used: no wiring of cross-attention where there is none."""
    every, (inside, _, last) = paths(config), path.rpartition(".")
    if last == "cross_residual":
        return getattr(every[inside], "cross_attention", None) is not None
    return last != "pooling" or inside == "head"  # that of an encoder is for `embed`


CONFIGS = {
    "decoder": decoder(block({})),
    "gated": decoder(GATED),
    "side by side": decoder(SIDE_BY_SIDE),
    "experts": decoder(MIXED),
    "latent": decoder(ef.Block.Config(LATENT, ef.MLP.Config(hidden=7))),
    "encoder": BERT,
    "labels of texts": ef.EncoderWithHead.Config(BERT, ef.SequenceHead.Config(labels=3)),
    "labels of tokens": ef.EncoderWithHead.Config(BERT, ef.LabelHead.Config(labels=3)),
    "both sides": ef.families.transformer(
        vocab=VOCAB, dim=8, layers=1, heads=2, hidden=8, wiring=ef.pre_norm()
    ),
    "audio": HEARD,
}
RATES = [
    (kind, path, rate)
    for kind, config in CONFIGS.items()
    for path, part in paths(config).items()
    for rate in ("dropout", "drop_path")
    if hasattr(part, rate) and _acts(path, config)
]


def _inputs(kind):
    if kind == "audio":
        return jnp.ones((2, 8, 5)), tokens(2, 3)
    return (tokens(2, 6), tokens(2, 5, seed=1)) if kind == "both sides" else (tokens(2, 6),)


def _with_rates(config, rate):
    """The config with every rate of dropout in it set to this one."""
    for path, part in paths(config).items():
        rates = {name: rate for name in ("dropout", "drop_path") if hasattr(part, name)}
        config = config.edit(path, **rates) if rates else config
    return config


@functools.cache
def plain(kind):
    """A model in which nothing drops, and what it computes."""
    model = filled(_with_rates(CONFIGS[kind], 0.0))
    return model, np.asarray(model(*_inputs(kind), key=jax.random.key(1)))


@pytest.mark.parametrize(("kind", "path", "rate"), RATES)
def test_each_rate_drops_something(kind, path, rate):
    model, whole = plain(kind)
    dropping = ef.rebuild(model, model.config.edit(path, **{rate: 0.5}))
    found = [np.asarray(dropping(*_inputs(kind), key=jax.random.key(i))) for i in range(2)]
    assert any(np.abs(each - whole).max() > 1e-3 for each in found)
    assert rate == "drop_path" or not np.array_equal(*found)


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_rate_drops_anything_without_a_key(kind):
    model, whole = plain(kind)
    dropping = ef.rebuild(model, _with_rates(model.config, 0.5))
    assert not np.array_equal(dropping(*_inputs(kind), key=jax.random.key(0)), whole)
    np.testing.assert_array_equal(dropping(*_inputs(kind)), whole)
