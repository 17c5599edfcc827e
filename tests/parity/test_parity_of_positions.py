"""Rotary frequencies, their scalings and T5's buckets are those of the references."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers as hf
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

import eqxformer as ef
from tests.helpers.parity import error_of
from tests.parity.decoders import rope
from tests.parity.live import float64_throughout

WIDTH, TRAINED = 64, 512  # of a head; tokens of the training
PAIRS = range(WIDTH // 2)
SHORT, LONG = tuple(1.0 + 0.1 * i for i in PAIRS), tuple(2.0 + 0.5 * i for i in PAIRS)

ORIGINAL = {"original_max_position_embeddings": TRAINED}
SCALINGS: dict[str, tuple[dict[str, Any], ef.Scaling]] = {
    "linear": ({"factor": 4.0}, ef.LinearScaling(4.0)),
    "dynamic": ({"factor": 4.0}, ef.DynamicNTK(4.0, TRAINED)),
    "llama3": (
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
        ef.Llama3Scaling(original_length=TRAINED),
    ),
    "yarn": ({"factor": 4.0, **ORIGINAL}, ef.YaRN(4.0, TRAINED)),
    "yarn, not rounded": (
        {"factor": 32.0, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False, **ORIGINAL},
        ef.YaRN(32.0, TRAINED, fast=20.0, slow=2.0, rounded=False),
    ),
    "yarn, factor given": (
        {"factor": 4.0, "attention_factor": 1.5, **ORIGINAL},
        ef.YaRN(4.0, TRAINED, attention_factor=1.5),
    ),
    "longrope": (
        {"factor": 4.0, "short_factor": list(SHORT), "long_factor": list(LONG), **ORIGINAL},
        ef.LongRoPE(SHORT, LONG, TRAINED, 4.0),
    ),
}
BASES = (10_000.0, 500_000.0)


def settings(name: str, base: float) -> hf.LlamaConfig:
    """Their config of a scaling, in a model of one head."""
    kind, _, _ = name.partition(",")
    stretched = {"linear": TRAINED, "dynamic": TRAINED}
    return hf.LlamaConfig(
        hidden_size=WIDTH,
        num_attention_heads=1,
        max_position_embeddings=stretched.get(kind, 4 * TRAINED),
        rope_parameters=rope(rope_type=kind, rope_theta=base, **SCALINGS[name][0]),
    )


# Shorter than the training, as long, and longer: two scalings depend on it.
@pytest.mark.parametrize("length", [100, TRAINED, 1500])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_frequencies_and_their_magnitude(name: str, base: float, length: int):
    scaling = SCALINGS[name][1]
    config = settings(name, base)
    compute = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
    narrow, factor = compute(config, seq_len=length)
    with float64_throughout():
        exact = compute(config, seq_len=length)[0].numpy()
    assert exact.dtype == np.float64
    ours = np.asarray(scaling.frequencies(base, WIDTH, jnp.asarray(length)))
    # Frequencies differ by powers of ten, so they are compared in relation to each.
    noise = float(np.abs(narrow.numpy() / exact - 1.0).max())
    error = error_of(name, ours / exact, np.ones_like(exact), noise)
    assert error.passed, error
    assert scaling.magnitude() == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("length", [100, 1500])
@pytest.mark.parametrize("name", SCALINGS)
def test_cosines_and_sines_of_every_position(name: str, length: int):
    base, scaling = BASES[0], SCALINGS[name][1]
    config = settings(name, base)
    places, like = torch.arange(length)[None], torch.zeros(1)
    narrow = LlamaRotaryEmbedding(config)(like, places)
    with float64_throughout():
        exact = LlamaRotaryEmbedding(config)(like.double(), places)
    rotary = ef.Rotary(base=base, scaling=scaling)
    for ours, near, true in zip(
        rotary.tables(WIDTH, jnp.arange(length)), narrow, exact, strict=True
    ):
        assert true.dtype == torch.float64
        near, exactly = (each[0, :, : WIDTH // 2].numpy() for each in (near, true))
        error = error_of(name, np.asarray(ours), exactly, float(np.abs(near - exactly).max()))
        assert error.passed, error


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 9), (20, 50), (64, 200)])
@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
def test_buckets_of_all_distances(direction: str, buckets: int, max_distance: int):
    distances = np.arange(-300, 301)
    theirs = T5Attention._relative_position_bucket(
        torch.from_numpy(distances),
        bidirectional=direction == "bidirectional",
        num_buckets=buckets,
        max_distance=max_distance,
    )
    bias = ef.RelativeBias(
        1,
        buckets=buckets,
        max_distance=max_distance,
        direction=direction,
        key=jax.random.key(0),
    )
    np.testing.assert_array_equal(bias.bucket(jnp.asarray(distances)), theirs.numpy())
