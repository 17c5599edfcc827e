"""What tests of speculation share: models, drafts that nearly agree, and both ways to one text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import eqxformer as ef
from tests.generation.small import small
from tests.helpers.models import block, decoder, filled, model

NEW = 12
PROMPTS = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10]]

WINDOWS = {"rotary": ef.Rotary(), "window": 3}
OTHERS = {
    "scanned windows": decoder(*[block({**WINDOWS, "heads": 2})] * 2, layout=ef.Scanned()),
    "repeated windows": decoder(
        ef.Repeated.Config(blocks=(block({**WINDOWS, "heads": 2}),), times=2)
    ),
}


@functools.cache
def built(name):
    """A model of this name; those of one block, "small ...", serve where they will do."""
    if name.startswith("small "):
        return small(name.removeprefix("small "))
    return filled(OTHERS[name]) if name in OTHERS else model(name)


@functools.cache
def nudged(name, by=0.3):
    """The model with other numbers, that often but not always writes the same."""
    random = np.random.default_rng(1)

    def nudge(leaf):
        factors = np.asarray(1 + by * random.standard_normal(leaf.shape), leaf.dtype)
        return jnp.asarray(np.asarray(leaf) * factors)

    return jax.tree.map(nudge, built(name))


# Of four ids, so that all texts can be counted.
CHANCE = decoder(block({"rotary": ef.Rotary(), "head_dim": 4}), dim=6).edit(vocab=4)
VARIED = ef.NoRepeatNGram(2) | ef.Greedy()  # tiny models repeat themselves, which is easy to guess


def both(name, draft, prompts=PROMPTS, key=None, **options):
    """The text of `generate`, and what speculation makes of the same."""
    options = {"max_new_tokens": NEW, "sampler": VARIED, **options}
    again = None if key is None else jax.random.clone(key)
    return (
        ef.generate(built(name), prompts, key=key, **options),
        ef.generate_speculative(built(name), prompts, draft=draft, key=again, **options),
    )


def assert_some_were_kept_and_some_not(made):
    assert 0 < made.accepted.sum() < made.proposed.sum()
    assert (made.accepted <= made.proposed).all()
    assert made.acceptance == made.accepted.sum() / made.proposed.sum()
