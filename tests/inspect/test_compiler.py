"""The compiler's view: names in what it makes, its costs beside ours, and why it was asked."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

import eqxformer as ef
from eqxformer.bench.ceilings import step_flops
from eqxformer.traces import apart
from tests.helpers.models import DECODERS, SEQ2SEQ, filled

CONFIG = ef.families.llama(vocab=64, dim=32, layers=2, heads=4, kv_heads=2, hidden=88)
KEEPING = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
TOKENS = jax.ShapeDtypeStruct((2, 16), jnp.int32)


def _forward(model, *inputs):
    return model(*inputs)


@pytest.fixture(scope="module")
def forward():
    return ef.inspect.program(_forward, ef.shapes(CONFIG), TOKENS)


@pytest.fixture(scope="module")
def gradient():
    def of_loss(model, tokens):
        return eqx.filter_grad(ef.next_token_loss)(model, ef.TokenBatch(tokens))

    longer = jax.ShapeDtypeStruct((2, 17), jnp.int32)
    return ef.inspect.program(of_loss, ef.shapes(CONFIG), longer)


def test_equations_and_instructions_say_of_which_part_they_are(forward):
    for text in (forward.jaxpr, forward.hlo):
        assert "blocks.1/feed_forward_residual/feed_forward/down" in text
        assert "blocks.0/attention_residual/attention/query" in text
    assert "# []" not in forward.jaxpr
    assert forward.primitives()["gather"] == 1
    assert forward.signature == "f32[2,16,64]"


def test_a_mixture_in_a_block_has_its_name():
    model = ef.shapes(DECODERS["experts and sinks"])
    text = ef.inspect.program(_forward, model, TOKENS).jaxpr
    assert "blocks.1/feed_forward_residual/feed_forward" in text


def test_gradients_carry_the_names_too(gradient):
    assert "transpose(jvp(blocks.1))" in gradient.jaxpr
    assert "jvp(head)/linear" in gradient.jaxpr


def test_the_compiler_counts_what_we_count_and_what_is_no_product(forward, gradient):
    ours = step_flops(CONFIG, batch=2, seq=16)
    # Norms, activations, softmaxes, and the half of each attention matrix that is masked.
    assert ours / 3 < forward.cost["flops"] < 1.25 * ours / 3
    assert ours < gradient.cost["flops"] < 1.25 * ours


def test_memory_is_that_of_weights_outputs_and_what_lies_between(forward, gradient):
    weights = 4 * ef.count(ef.shapes(CONFIG))
    memory = forward.memory
    assert memory.arguments == weights + 4 * 2 * 16
    assert memory.outputs == 4 * 2 * 16 * 64
    assert memory.peak == memory.arguments + memory.outputs + memory.temporary
    sizes = [buffer.size for buffer in memory.buffers]
    assert sizes == sorted(sizes, reverse=True)
    given = {b.place: b.size for b in memory.buffers if b.kind == "argument"}
    assert given["model.head.linear.weight"] == 4 * 32 * 64
    assert sum(given.values()) == memory.arguments
    assert gradient.memory.outputs >= weights


@pytest.fixture
def kept_programs(tmp_path):
    """JAX keeps every program that it compiles, in a directory."""
    before = {name: getattr(jax.config, name) for name in KEEPING}
    for name, value in zip(KEEPING, (str(tmp_path), 0), strict=True):
        jax.config.update(name, value)
    reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


def test_a_program_that_jax_has_kept_is_looked_into_all_the_same(kept_programs):
    mlp, x = ef.MLP(8, hidden=16, key=jax.random.key(0)), jnp.ones((2, 8))

    def looked_into():
        jax.clear_caches()
        eqx.filter_jit(_forward)(mlp, x)
        return ef.inspect.program(_forward, mlp, x).memory

    first, again = looked_into(), looked_into()
    assert any("forward" in kept.name for kept in kept_programs.iterdir())
    assert first == again
    assert first.buffers


def test_every_attention_names_its_backend():
    model = ef.shapes(SEQ2SEQ["t5"])
    inputs = ef.inspect.input_shapes(model, batch=1, length=4)
    backends = ef.inspect.program(_forward, model, *inputs).backends
    sides = {path.rpartition(".")[2] for path in backends}
    assert sides == {"attention", "cross_attention"}
    assert "encoder.blocks.1.attention" in backends
    assert {choice.backend for choice in backends.values()} == {"plain"}


def test_of_scanned_blocks_all_have_one_name():
    scanned = ef.shapes(CONFIG.edit(layout=ef.Scanned("nothing_saved")))
    found = ef.inspect.program(_forward, scanned, TOKENS)
    assert list(found.backends) == ["blocks.*.attention"]
    assert "blocks.*/" in found.jaxpr


def test_looking_changes_nothing_that_is_computed():
    model = filled(DECODERS["llama"])
    tokens = jnp.array([[1, 2, 3]])
    traced = ef.inspect.program(_forward, model, tokens).traced
    with apart():
        plain = jax.jit(lambda model, args: _forward(model, *args)).trace(model, (tokens,))
    strip = [str(each.jaxpr.pretty_print(use_color=False)) for each in (traced, plain)]
    assert strip[0] == strip[1]


def _changes(log):
    return [each.changes for each in log]


def test_the_argument_that_caused_a_compilation_is_named():
    @jax.jit
    def scaled(x, y):
        return 2 * x, y

    with ef.inspect.recompilations() as log:
        scaled(jnp.ones(3), {"a": jnp.ones(2)})
        scaled(jnp.ones(3), {"a": jnp.ones(2)})
        scaled(jnp.ones(4), {"a": jnp.ones(2)})
        scaled(jnp.ones(4), {"a": jnp.ones(2, jnp.bfloat16)})
    assert [each.number for each in log] == [1, 2, 3]
    assert _changes(log) == [
        (),
        (("x", "f32[3]", "f32[4]"),),
        (("y['a']", "f32[2]", "bf16[2]"),),
    ]
    assert str(log[1]).endswith("s: x was f32[3], is f32[4]")
    assert "scaled: compiled in" in str(log[0])


def test_a_setting_of_a_model_and_a_plain_value_are_named():
    part = ef.Linear(3, 4, key=jax.random.key(0))
    attention = [
        ef.Attention(4, heads=2, window=window, key=jax.random.key(0)) for window in (2, 3)
    ]
    run = eqx.filter_jit(lambda part, x, flag: part(x))
    x = jnp.ones((1, 3, 4))
    with ef.inspect.recompilations() as log:
        run(attention[0], x, True)
        run(attention[0], x, False)
        run(attention[1], x, False)
        eqx.filter_jit(part)(jnp.ones(3))
    assert _changes(log) == [
        (),
        (("flag", "True", "False"),),
        (("part.config.window", "2", "3"),),
        (),
    ]
    assert log[-1].function == "Linear"


def test_a_mask_that_comes_in_is_named_as_what_it_is():
    attention = ef.Attention(4, heads=2, key=jax.random.key(0))
    run = eqx.filter_jit(attention)
    with ef.inspect.recompilations() as log:
        run(jnp.ones((1, 3, 4)))
        run(jnp.ones((1, 3, 4)), mask=ef.Causal())
    assert _changes(log) == [(), (("mask", "absent", "Causal"),)]


def test_nothing_is_told_after_the_end_nor_of_other_threads():
    with ef.inspect.recompilations() as log:
        pass
    jax.jit(lambda x: x + 3)(jnp.ones(3))
    assert log == []
