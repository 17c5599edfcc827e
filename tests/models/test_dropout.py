"""Every rate of dropout in a model drops something of its own, with a key and without none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.config import paths
from tests.helpers.models import VOCAB, decoder, filled, tokens

# One shape wherever it may be, so that what one test has compiled serves the next.
SIZES = {"vocab": VOCAB, "dim": 8, "layers": 1, "heads": 2, "hidden": 8}
BERT = ef.families.bert(**SIZES, context=8)
BOTH = ef.families.transformer(**SIZES, wiring=ef.pre_norm())
ATTENTION, FEED_FORWARD = ef.Attention.Config(heads=2), ef.MLP.Config(hidden=8)
LATENT = ef.LatentAttention.Config(2, latent=5, head_dim=6, rotary_dim=2)
MIXED = ef.Experts.Config(count=3, top=2, expert=FEED_FORWARD)
HEARING = ef.AudioEncoder.Config(bins=5, dim=8, blocks=(ef.Block.Config(ATTENTION, FEED_FORWARD),))


def _decoder(attention, feed_forward, kind=ef.Block):
    return decoder(kind.Config(attention, feed_forward), dim=8)


def _acts(path, config):
    """Whether what is there is used: no wiring of cross-attention where there is none."""
    every, (inside, _, last) = paths(config), path.rpartition(".")
    if last == "cross_residual":
        return getattr(every[inside], "cross_attention", None) is not None
    return last != "pooling" or inside == "head"  # that of an encoder is for `embed`


CONFIGS = {
    "decoder": _decoder(ATTENTION, FEED_FORWARD),
    "gated": _decoder(ATTENTION, ef.GatedMLP.Config(hidden=8)),
    "side by side": _decoder(ATTENTION, FEED_FORWARD, ef.ParallelBlock),
    "experts": _decoder(ATTENTION, MIXED),
    "latent": _decoder(LATENT, FEED_FORWARD),
    "encoder": BERT,
    "labels of texts": ef.EncoderWithHead.Config(BERT, ef.SequenceHead.Config(labels=3)),
    "labels of tokens": ef.EncoderWithHead.Config(BERT, ef.LabelHead.Config(labels=3)),
    "both sides": BOTH,
    "audio": BOTH.edit(encoder=HEARING),
}


def _rates():
    """Each rate that acts; of equal parts at one place within parts of equal kinds, the first's."""
    found = {}
    for kind, config in CONFIGS.items():
        every = paths(config)
        for path, part in every.items():
            around = [type(p) for at, p in every.items() if not at or path.startswith(f"{at}.")]
            for rate in ("dropout", "drop_path"):
                if hasattr(part, rate) and _acts(path, config):
                    found.setdefault((path, part, rate, *around), (kind, path, rate))
    return list(found.values())


def _inputs(kind):
    if kind == "audio":
        return jnp.ones((2, 12, 5)), tokens(2, 6)
    return (tokens(2, 6), tokens(2, 6, seed=1)) if kind == "both sides" else (tokens(2, 6),)


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


@pytest.mark.parametrize(("kind", "path", "rate"), _rates())
def test_each_rate_drops_something(kind, path, rate):
    model, whole = plain(kind)
    dropping = ef.rebuild(model, model.config.edit(path, **{rate: 0.5}))
    found = (np.asarray(dropping(*_inputs(kind), key=jax.random.key(i))) for i in range(2))
    if rate == "drop_path":  # of both rows or none, with one key or the other
        assert any(np.abs(each - whole).max() > 1e-3 for each in found)
    else:
        first, second = found
        assert np.abs(first - whole).max() > 1e-3
        assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_rate_drops_anything_without_a_key(kind):
    model, whole = plain(kind)
    dropping = ef.rebuild(model, _with_rates(model.config, 0.5))
    assert not np.array_equal(dropping(*_inputs(kind), key=jax.random.key(0)), whole)
    np.testing.assert_array_equal(dropping(*_inputs(kind)), whole)
