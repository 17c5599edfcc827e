"""The watch names the first numbers that break, wherever they do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import eqxformer as ef
from tests.helpers import models
from tests.helpers.models import filled

BATCH = ef.TokenBatch(models.tokens(2, 5))
SOUND, INFINITE, STEEP = (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)


def fragile(numbers, x):
    """The absolute value of `x`; with a zero in `numbers`, something is broken about it."""
    return jnp.sqrt(numbers[0] * x * x) / numbers[1]


@pytest.fixture(scope="module")
def model():
    """Two equal blocks in one rematerialised scan."""
    attention = ef.Attention.Config(heads=2, kv_heads=1, rotary=ef.Rotary())
    blocks = (ef.ParallelBlock.Config(attention, ef.MLP.Config(hidden=7)),) * 2
    return filled(models.decoder(*blocks, layout=ef.Scanned(remat="nothing_saved")))


def watched(model, *, embedding=SOUND, first=SOUND, second=SOUND, fed=SOUND):
    """What a watch finds where some of these values are broken: one program for all cases."""
    sites = {
        "embedding": embedding,
        "blocks.0.attention.query": first,
        "blocks.1.attention.query": second,
        "blocks.0.feed_forward.down.input": fed,
        "blocks.1.feed_forward.down.input": SOUND,
    }
    changes = {name: eqx.Partial(fragile, jnp.array(numbers)) for name, numbers in sites.items()}
    return ef.Watch().gradient(ef.patch(model, changes), BATCH, call=ef.next_token_loss)


def test_a_sound_model_has_no_fault(model):
    assert watched(model) is None


@pytest.mark.parametrize(
    ("broken", "name", "what"),
    [
        ({"first": INFINITE, "second": INFINITE}, "blocks.0.attention.query", "output"),
        ({"second": INFINITE}, "blocks.1.attention.query", "output"),
        ({"fed": INFINITE}, "blocks.0.feed_forward.down", "input"),
        # The gradient is broken behind the value, on the way back.
        ({"first": STEEP, "second": STEEP}, "blocks.1.attention.query", "gradient of input"),
        ({"embedding": STEEP, "first": INFINITE}, "blocks.0.attention.query", "output"),
    ],
)
def test_the_first_broken_value_is_named_forwards_and_then_backwards(model, broken, name, what):
    fault = watched(model, **broken)
    assert (fault.name, fault.what) == (name, what)
    assert (fault.nans + fault.infinite, fault.beyond) == (2 * 4 * fault.shape[-1], 0)


def test_a_broken_weight_is_named_before_what_it_breaks(model):
    def weight(model):
        return model.blocks.groups[0].feed_forward.up.weight

    broken = weight(model).at[1, 3, 2].set(jnp.inf)
    fault = watched(eqx.tree_at(weight, model, broken))
    assert (fault.name, fault.what) == ("blocks.1.feed_forward.up.weight", "weight")
    assert "float32[12, 7]: 1 infinite of 84 numbers; the largest finite one is " in str(fault)


def test_numbers_that_a_smaller_type_cannot_hold_are_found_before_they_are_cast():
    mlp, x = ef.MLP(4, hidden=8, key=jax.random.key(0)), jnp.ones((3, 4))

    def found(fits, by):
        large = ef.patch(mlp, {"up": eqx.Partial(jnp.add, jnp.full((3, 8), by))})
        return ef.Watch(fits).forward(large, x)

    assert found("bfloat16", 7e4) is None
    for fits, by in (("bfloat16", 3.395e38), ("float16", 7e4)):
        fault = found(fits, by)
        assert (fault.name, fault.what, fault.beyond, fault.infinite) == ("up", "output", 24, 0)
        assert fault.largest == pytest.approx(by, rel=1e-3)
    small = ef.Precision(compute="float16").computing(mlp)
    overflow = ef.patch(small, {"up": lambda x: x + jnp.float16(6e4) + jnp.float16(6e4)})
    fault = ef.Watch().forward(overflow, x.astype(jnp.float16))
    assert (fault.name, fault.dtype, fault.infinite) == ("up", "float16", 24)


def test_outputs_that_no_part_has_made_are_the_last_to_be_looked_at():
    mlp = ef.MLP(4, hidden=8, key=jax.random.key(0))
    fault = ef.Watch().forward(mlp, jnp.ones(4), call=lambda mlp, x: jnp.log(0.0 * mlp(x)))
    assert str(fault).startswith("outputs, float32[4]: 4 infinite of 4 numbers")


def test_the_head_is_seen_too_where_the_loss_makes_logits_in_chunks(monkeypatch):
    monkeypatch.setattr("eqxformer.losses.chunked.LARGE", 8)
    model = filled(models.decoder(models.block({})))
    broken = ef.patch(model, {"head": eqx.Partial(fragile, jnp.array(INFINITE))})
    fault = ef.Watch().gradient(broken, BATCH, call=ef.next_token_loss)
    assert (fault.name, fault.what) == ("head", "output")
