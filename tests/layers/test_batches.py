"""What holds for every part: any number of batch axes, `vmap`, `jit`, bfloat16, and no tokens."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.compare import assert_close, rounding_error
from tests.helpers.hot import drawn, normal

DIM, SEQ = 8, 5
ATTENTION = ef.Attention.Config(
    heads=4,
    kv_heads=2,
    head_dim=4,
    rotary=ef.Rotary(scaling=ef.DynamicNTK(2.0, 3)),
    qk_norm=ef.RMSNorm.Config(),
    sinks=ef.Normal(1.0),
    bias=ef.RelativeBias.Config(6, 7),
    window=3,
)
CONFIGS = {
    "linear": ef.Linear.Config(),
    "layer norm": ef.LayerNorm.Config(),
    "rms norm": ef.RMSNorm.Config(offset=1.0),
    "mlp": ef.MLP.Config(hidden=6),
    "gated mlp": ef.GatedMLP.Config(hidden=6),
    "experts": ef.Experts.Config(
        4, 2, ef.MLP.Config(hidden=6), shared=ef.GatedMLP.Config(hidden=6)
    ),
    "attention": ATTENTION,
    "latent attention": ef.LatentAttention.Config(
        2, latent=6, head_dim=5, rotary_dim=2, query_latent=7
    ),
    "summed heads": ef.Attention.Config(heads=2, value_dim=DIM, out=ef.SumHeads()),
    "cross-attention": ef.Attention.Config(heads=4, kv_heads=2, qk_norm=ef.RMSNorm.Config()),
}
# In bfloat16 a number is off by 2^-9; through a softmax of large scores, by tens of that. A token
# may go to another expert, so the mixture is left to the test of its own below.
ROUNDING = {
    "attention": 0.06,
    "latent attention": 0.06,
    "summed heads": 0.06,
    "cross-attention": 0.06,
}


@functools.cache
def part(name):
    config = CONFIGS[name]
    if name == "linear":
        return drawn(config, DIM, 3)
    if "norm" in name:
        norm = config.build(DIM)
        return jax.tree.map(lambda a: a + 0.3 * normal(0, *a.shape), norm)
    return drawn(config, DIM)


def call(part, name, x):
    if name == "cross-attention":
        return part(x, jnp.sin(x[..., :3, :]))
    if isinstance(part, ef.AbstractAttention):
        return part(x, mask=ef.Causal())
    return part(x)


compiled = eqx.filter_jit(call)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_batch_axis_one_and_two_are_the_same_function_and_equal_vmap(name):
    @eqx.filter_jit
    def forms(part, x):
        run = functools.partial(call, part, name)
        mapped = jax.vmap(jax.vmap(run))(x)
        return mapped, run(x), jax.vmap(run)(x), run(x[0]), run(x[0, 0])

    mapped, two, outer, one, none = forms(part(name), normal(1, 3, 2, SEQ, DIM))
    assert_close((two, outer, one, none), (mapped, mapped, mapped[0], mapped[0, 0]), 1e-5)


@pytest.mark.parametrize("name", ["layer norm", "gated mlp", "experts", "attention"])
def test_jit_changes_nothing(name):
    x = normal(1, 2, SEQ, DIM)
    assert_close(compiled(part(name), name, x), call(part(name), name, x), 1e-5)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "experts"])
def test_bfloat16_goes_in_and_out_with_the_error_of_its_rounding(name):
    run = lambda part, x: compiled(part, name, x)  # noqa: E731
    error = rounding_error(run, part(name), normal(1, 2, SEQ, DIM))
    assert error < ROUNDING.get(name, 0.02)


def test_experts_in_bfloat16_choose_in_float32():
    mixture, x = part("experts"), normal(1, 50, DIM).astype(jnp.bfloat16)
    small = jax.tree.map(lambda a: a.astype(jnp.bfloat16), mixture)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), small)
    (y, losses), (exact, same) = (
        eqx.filter_jit(lambda p, x: p.run(x))(*each)
        for each in ((small, x), (wide, x.astype(jnp.float32)))
    )
    assert y.dtype == jnp.bfloat16
    assert losses.z.dtype == losses.load_balance.dtype == jnp.float32
    assert_close(losses, same, 1e-6)
    assert_close(y.astype(jnp.float32), exact, 0.03)  # no token has gone elsewhere


@pytest.mark.parametrize("name", CONFIGS)
def test_an_empty_batch_and_an_empty_sequence_give_an_empty_result_and_zero_gradients(name):
    shapes = [(0, SEQ, DIM), (2, 0, DIM), (0, DIM), (0, 0, DIM)]

    @eqx.filter_jit
    def gradients(part):
        def loss(part):
            results = [call(part, name, jnp.ones(shape)) for shape in shapes]
            return sum(jnp.sin(y).sum() for y in results), [y.shape[:-1] for y in results]

        return eqx.filter_value_and_grad(loss, has_aux=True)(part)

    (total, found), slopes = gradients(part(name))
    assert found == [shape[:-1] for shape in shapes]
    assert float(total) == 0.0
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(slopes))


def test_a_source_without_keys_leaves_the_bias_of_the_output():
    cross = part("cross-attention")
    y = jax.jit(cross.__call__)(normal(1, 2, SEQ, DIM), np.zeros((2, 0, DIM), np.float32))
    assert_close(y, np.broadcast_to(cross.out.bias, y.shape), 1e-6)
