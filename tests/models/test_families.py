"""The families have the parameters of the published models, and start as their papers say."""

import equinox as eqx
import jax
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.config import paths

F = ef.families

# Totals of the published checkpoints of these names.
PUBLISHED = {
    "GPT-2 small": (
        F.gpt(vocab=50257, dim=768, layers=12, heads=12, context=1024),
        124_439_808,
    ),
    "GPT-2 medium": (
        F.gpt(vocab=50257, dim=1024, layers=24, heads=16, context=1024),
        354_823_168,
    ),
    "BERT base": (
        F.bert(vocab=30522, dim=768, layers=12, heads=12, hidden=3072),
        109_482_240,
    ),
    "BERT large": (
        F.bert(vocab=30522, dim=1024, layers=24, heads=16, hidden=4096),
        335_141_888,
    ),
    "Llama 2 7B": (
        F.llama(vocab=32000, dim=4096, layers=32, heads=32, hidden=11008),
        6_738_415_616,
    ),
    "Llama 3 8B": (
        F.llama(vocab=128256, dim=4096, layers=32, heads=32, kv_heads=8, hidden=14336),
        8_030_261_248,
    ),
    "T5 small": (
        F.t5(vocab=32128, dim=512, layers=6, heads=8, head_dim=64, hidden=2048),
        60_506_624,
    ),
    "T5 base": (
        F.t5(vocab=32128, dim=768, layers=12, heads=12, head_dim=64, hidden=3072),
        222_903_552,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_family_has_the_published_number_of_parameters(name):
    config, expected = PUBLISHED[name]
    sides = "*" if hasattr(config, "decoder") else ""
    scanned = config.edit(sides, layout=ef.Scanned())  # the same numbers, sooner traced
    assert ef.count(ef.shapes(scanned)) == expected


@pytest.fixture(scope="module")
def gpt():
    config = F.gpt(vocab=61, dim=64, layers=8, heads=4, context=37)
    scanned = config.edit(layout=ef.Scanned())
    return ef.named_arrays(eqx.filter_jit(scanned.build)(key=jax.random.key(0)))


def _deviation(arrays, ending):
    found = np.concatenate([np.ravel(v) for k, v in arrays.items() if k.endswith(ending)])
    assert found.size > 1000
    assert abs(found.mean()) < 5 * found.std() / np.sqrt(found.size)
    return found.std()


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("tokens.weight", 0.02),
        ("positions.weight", 0.02),
        ("attention.query.weight", 0.02),
        ("feed_forward.up.weight", 0.02),
        ("attention.out.weight", 0.02 / 16**0.5),
        ("feed_forward.down.weight", 0.02 / 16**0.5),
    ],
)
def test_gpt_starts_small_and_smaller_where_it_writes_to_the_residual(gpt, ending, expected):
    assert abs(_deviation(gpt, ending) / expected - 1) < 0.05


def test_biases_start_at_zero_and_gains_at_one(gpt):
    for path, value in gpt.items():
        if path.endswith("bias"):
            assert not value.any(), path
        elif "norm" in path:
            assert (value == 1).all(), path


def test_a_transformer_may_have_its_norms_before_the_branches():
    sizes = {"vocab": 7, "dim": 6, "layers": 2, "heads": 2, "hidden": 5}
    before = F.transformer(**sizes, wiring=ef.pre_norm())
    after = F.transformer(**sizes)
    assert after.encoder.norm is after.decoder.norm is None
    assert before.encoder.norm == before.decoder.norm == ef.LayerNorm.Config()
    assert ef.count(ef.shapes(before)) - ef.count(ef.shapes(after)) == 2 * 2 * 6  # the last norms


def test_dropout_of_a_family_reaches_every_place_that_drops():
    config = F.gpt(vocab=7, dim=6, layers=1, heads=2, context=5, dropout=0.1)
    found = {path: part.dropout for path, part in paths(config).items() if hasattr(part, "dropout")}
    silent = {path for path, rate in found.items() if rate == 0}
    assert silent == {"blocks.0.feed_forward", "blocks.0.cross_residual"}
