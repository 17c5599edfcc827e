"""What one device and two processes train alike."""

import jax
import numpy as np

import eqxformer as ef

STEPS = 8
CONFIG = ef.families.gpt(vocab=7, dim=8, layers=1, heads=2, context=6)
TOKENS = np.random.default_rng(0).integers(0, 7, 50).astype(np.int32)
BATCHES = ef.Epochs(length=6, batch=4).build(TOKENS, seed=3)


def settings(init):
    """What the trainer is told; `init` makes the model where it belongs."""
    return {
        "model": init(lambda key: CONFIG.build(key=key), jax.random.key(0)),
        "optimizer": ef.SGD(0.5, momentum=0.9).build(STEPS),
        "steps": STEPS,
        "key": jax.random.key(1),
    }
