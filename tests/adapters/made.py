"""Adapted models whose adapters are off their neutral values, and what is asked of them often."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import eqxformer as ef
from tests.helpers.models import block, decoder, filled

ADAPTERS = ef.Only(paths=("**.lora",))
KINDS = {
    "LoRA": ef.LoRA(rank=2, alpha=3.0),
    "rsLoRA": ef.LoRA(rank=3, alpha=2.0, scale="alpha/sqrt(rank)"),
    "DoRA": ef.DoRA(rank=2, alpha=3.0),
}
SMALL = decoder(*[block({"head_dim": 4}, feed_forward=ef.MLP.Config(hidden=7))] * 2)


@functools.cache
def plain(layout=ef.Unrolled()):
    """The small model without adapters."""
    return ef.rebuild(filled(SMALL), SMALL.edit(layout=layout))


def adapted(model, lora=KINDS["LoRA"], to="**", seed=0):
    """The model with adapters of random numbers, a third as large as the weights or so."""
    return learned(ef.add_lora(model, lora, to=to, key=jax.random.key(seed)), seed)


def learned(model, seed=0):
    """An adapted model as if its adapters had been trained."""
    random = np.random.default_rng(seed)

    def draw(leaf):
        noise = 0.3 * random.standard_normal(leaf.shape) / np.sqrt(leaf.shape[-2:][0])
        return jnp.asarray(np.asarray(leaf) + noise, leaf.dtype)

    return eqx.combine(jax.tree.map(draw, ADAPTERS.of(model)), model)


@functools.cache
def small(kind="LoRA", layout=ef.Unrolled()):
    """The small model with adapters everywhere in its blocks."""
    return adapted(plain(layout), KINDS[kind], "blocks")
