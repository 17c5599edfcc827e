"""Blocks equal their twins in NumPy, in value and in the gradient of every parameter."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers import twins
from tests.helpers.compare import assert_agrees, assert_close
from tests.helpers.hot import drawn, normal
from tests.helpers.models import block, close, filled

DIM, SOURCE_DIM, SEQ, KEYS = 6, 5, 4, 3
CROSS = ef.Attention.Config(heads=2, head_dim=5, kv_heads=1)
BLOCKS = {
    "reader": block({}),
    "writer": block({"rotary": ef.Rotary()}, cross_attention=CROSS),
    "post-norm writer": block(
        {"bias": ef.ALiBi.Config()},
        cross_attention=CROSS,
        attention_residual=ef.post_norm(),
        cross_residual=ef.post_norm(),
        feed_forward_residual=ef.post_norm(),
    ),
    "experts in sandwiches": block(
        {"head_dim": 4, "kv_heads": 1, "softcap": 2.0, "qk_norm": ef.RMSNorm.Config()},
        feed_forward=ef.Experts.Config(
            count=3, top=2, expert=ef.GatedMLP.Config(hidden=5), shared=ef.MLP.Config(hidden=3)
        ),
        attention_residual=ef.sandwich_norm(),
        feed_forward_residual=ef.sandwich_norm(),
    ),
    "parallel, one norm": ef.ParallelBlock.Config(
        ef.Attention.Config(heads=3), ef.GatedMLP.Config(hidden=7)
    ),
    "parallel, two norms": ef.ParallelBlock.Config(
        ef.Attention.Config(heads=3, window=2),
        ef.MLP.Config(hidden=7),
        feed_forward_norm=ef.RMSNorm.Config(),
    ),
}


@eqx.filter_jit
def _run(part, *arrays, **options):
    return part(*arrays, **options)


def _built(name):
    return _filled(BLOCKS[name])


def _filled(config):
    class Inside(ef.Config):
        """A block where it is used, with the widths of its place."""

        def build(self, *, key):
            return config.build(DIM, source_dim=SOURCE_DIM, key=key)

    return filled(Inside())


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_equals_its_twin_in_value_and_gradients(name):
    part, causal = _built(name), np.tril(np.ones((SEQ, SEQ), bool))
    reads = BLOCKS[name].reads_source
    source = (normal(5, KEYS, SOURCE_DIM),) if reads else ()

    def run(part, x, *source):
        return part(x, *source, mask=ef.Causal())

    def twin(part, x, *source):
        return twins.block(part, x, *source, allowed=causal)

    assert_agrees(run, twin, part, normal(4, SEQ, DIM), *source, tolerance=1e-6)


def test_padding_of_the_source_is_not_looked_at_even_where_it_is_not_a_number():
    part, x, source = _built("writer"), normal(4, 1, SEQ, DIM), normal(5, 1, KEYS, SOURCE_DIM)
    valid = jnp.array([[True, True, False]])
    alone = _run(part, x, source[:, :2])
    broken = source.at[:, 2].set(jnp.nan)
    close(_run(part, x, broken, source_mask=ef.Padding(valid)), alone)


def test_a_source_mask_hides_keys_query_by_query():
    part, x, source = _built("writer"), normal(4, SEQ, DIM), normal(5, KEYS, SOURCE_DIM)
    allowed = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]], bool)
    got = _run(part, x, source, mask=ef.Causal(), source_mask=ef.Explicit(jnp.asarray(allowed)))
    causal = np.tril(np.ones((SEQ, SEQ), bool))
    close(got, twins.block(*twins.plain((part, x, source)), allowed=causal, source_allowed=allowed))


def test_a_writer_without_a_source_says_so():
    with pytest.raises(ValueError, match="cross-attention and needs a `source`; got none"):
        eqx.filter_eval_shape(_built("writer"), normal(4, SEQ, DIM))


@pytest.mark.parametrize("name", ["writer", "parallel, two norms"])
def test_any_leading_axes_give_the_same_as_one_sequence_and_as_vmap(name):
    part, x = _built(name), normal(4, 2, 3, SEQ, DIM)
    sources = (normal(5, 2, 3, KEYS, SOURCE_DIM),) if BLOCKS[name].reads_source else ()
    every = _run(part, x, *sources, mask=ef.Causal())
    close(_run(part, x[1, 2], *(s[1, 2] for s in sources), mask=ef.Causal()), every[1, 2])
    mapped = eqx.filter_jit(eqx.filter_vmap(lambda *arrays: part(*arrays, mask=ef.Causal())))
    close(mapped(x, *sources), every)


@pytest.mark.parametrize("name", ["writer", "parallel, one norm"])
def test_a_key_switches_dropout_on_and_another_key_draws_anew(name):
    edits = ("*_residual", "attention") if name == "writer" else ("", "attention")
    config = BLOCKS[name]
    for path in edits:
        config = config.edit(path, dropout=0.5)
    part = _filled(config)
    source = normal(5, KEYS, SOURCE_DIM) if config.reads_source else None

    @eqx.filter_jit
    def run(key):
        return part(normal(4, SEQ, DIM), source, key=key)

    still, first, second = run(None), run(jax.random.key(0)), run(jax.random.key(1))
    close(run(None), still, 0.0)
    close(run(jax.random.key(0)), first, 0.0)
    assert not np.allclose(still, first)
    assert not np.allclose(first, second)


def test_losses_of_routers_come_back_and_blocks_without_routers_have_none():
    x = normal(4, SEQ, DIM)
    context = ef.Context(mask=ef.Causal())
    _, cache, losses = eqx.filter_eval_shape(_built("experts in sandwiches").run, x, context)
    assert cache is None
    assert (losses.load_balance.shape, losses.z.shape) == ((), ())
    assert eqx.filter_eval_shape(_built("reader").run, x, context)[2] is None


@eqx.filter_jit
def _losses(part, x, mask):
    return part.run(x, ef.Context(mask=mask))[2]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["block", "parallel block"])
def test_padding_does_not_count_in_the_losses_of_routers(kind, side):
    config = BLOCKS["experts in sandwiches"]
    if kind == "parallel block":
        config = ef.ParallelBlock.Config(config.attention, config.feed_forward)
    part, row, other = _filled(config), normal(4, 1, SEQ, DIM), normal(5, 1, 3, DIM)
    padded = np.concatenate([other, row] if side == "left" else [row, other], axis=1)
    valid = np.arange(SEQ + 3) >= 3 if side == "left" else np.arange(SEQ + 3) < SEQ
    alone = _losses(part, row, ef.Causal())
    for each in (valid, valid[None]):
        mask = ef.Causal() & ef.Padding(jnp.asarray(each))
        assert_close(_losses(part, padded, mask), alone, 1e-5)
    assert abs(float(_losses(part, padded, ef.Causal()).z) / float(alone.z) - 1.0) > 0.01


def test_a_bias_of_cross_attention_is_refused_with_a_cache_which_has_no_places_for_it():
    cross = ef.Attention.Config(heads=2, bias=ef.RelativeBias.Config())
    config = ef.Block.Config(
        attention=ef.Attention.Config(heads=2),
        cross_attention=cross,
        feed_forward=ef.MLP.Config(hidden=4),
        attention_residual=ef.pre_norm(),
        cross_residual=ef.pre_norm(),
        feed_forward_residual=ef.pre_norm(),
    )
    part, source = drawn(config, 4), normal(0, 1, 3, 4)
    assert eqx.filter_eval_shape(part, normal(1, 1, 2, 4), source=source).shape == (1, 2, 4)
    with pytest.raises(NotImplementedError, match="bias of a cross-attention counts queries from"):
        part.init_cache((1,), 4, source=source)
    later, cache = ef.Context(source=source), part.init_cache((1,), 4)
    with pytest.raises(NotImplementedError, match="bias of a cross-attention counts queries from"):
        eqx.filter_eval_shape(part.run, normal(1, 1, 1, 4), later, cache=cache)


def test_a_rate_of_side_by_side_branches_is_a_share():
    with pytest.raises(ValueError, match="`dropout` must be"):
        ef.ParallelBlock.Config(ef.Attention.Config(heads=2), ef.MLP.Config(hidden=4), dropout=1.5)


def test_a_source_is_remembered_once_and_gives_the_same():
    part, x, source = _built("writer"), normal(4, 2, SEQ, DIM), normal(5, 2, KEYS, SOURCE_DIM)
    step = eqx.filter_jit(lambda x, cache: part.run(x, ef.Context(mask=ef.Causal()), cache=cache))
    cache, steps = eqx.filter_jit(part.init_cache)((2,), SEQ, source=source), []
    for i in range(SEQ):
        y, cache, _ = step(x[:, i : i + 1], cache)
        steps.append(y)
    close(np.concatenate(steps, axis=1), _run(part, x, source, mask=ef.Causal()))
