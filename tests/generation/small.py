"""Models of one block, quicker to compile, for claims that do not need more."""

import functools

import jax

from tests.helpers.hot import hot
from tests.helpers.models import DECODERS, SEQ2SEQ, filled


def shallow(name):
    """The config of this name with the first block alone, of each side."""
    if name in DECODERS:
        return DECODERS[name].edit("", blocks=DECODERS[name].blocks[:1])
    both = SEQ2SEQ[name].edit("encoder", blocks=SEQ2SEQ[name].encoder.blocks[:1])
    return both.edit("decoder", blocks=both.decoder.blocks[:1])


@functools.cache
def small(name):
    """The model of this name with one block alone, so hot that texts depend on prompts."""
    return hot(filled(shallow(name)), jax.random.key(2))
