"""Blocks that are alike share a trace; the compiled program is as if each had its own."""

import collections
import contextlib
import gc
import re
import weakref

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.traces import apart, traced_once
from tests.helpers.compare import assert_close, same_bits
from tests.helpers.models import DECODERS, SEQ2SEQ, block, decoder, filled, tokens

DROPPING = ef.pre_norm(dropout=0.3)
TWO = decoder(*[block({"dropout": 0.2}, attention_residual=DROPPING)] * 2)


class Counting(ef.Block):
    """A block that notes how often Python runs it."""

    runs = 0

    class Config(ef.Block.Config):
        """As of any block."""

        def build(self, dim, *, source_dim=None, key):
            return Counting(dim, self, source_dim=source_dim, key=key)

    def run(self, x, context, *, cache=None, key=None):
        Counting.runs += 1
        return super().run(x, context, cache=cache, key=key)


def counting(hidden):
    return Counting.Config(ef.Attention.Config(heads=3), ef.MLP.Config(hidden=hidden))


def runs(function, *arguments):
    Counting.runs = 0
    function(*arguments)
    return Counting.runs


def loss(model, ids, key):
    return jnp.square(model(ids, key=key)).mean()


def program(model, context):
    """Loss and gradients of a model as a program, made in a context, and its arguments."""
    arrays, rest = eqx.partition(model, eqx.is_array)
    arguments = (arrays, tokens(2, 5), jax.random.key(1))
    with context:
        lowered = jax.jit(
            jax.value_and_grad(lambda arrays, ids, key: loss(eqx.combine(arrays, rest), ids, key))
        ).lower(*arguments)
    return lowered, arguments


def instructions(compiled):
    return collections.Counter(re.findall(r" = \S+ ([a-z\-]+)\(", compiled.as_text()))


def test_of_equal_blocks_python_runs_one_and_of_each_other_kind_one():
    model = filled(decoder(*[counting(5)] * 4, counting(7), *[counting(5)] * 2, counting(7)))
    gradient = eqx.filter_grad(lambda model, ids: jnp.square(model(ids)).mean())
    assert runs(eqx.filter_make_jaxpr(gradient), model, tokens(2, 5)) == 2
    with apart():
        assert runs(eqx.filter_make_jaxpr(gradient), model, tokens(2, 5)) == 8


def test_a_repeated_block_is_traced_once_for_all_its_rounds():
    model = filled(decoder(ef.Repeated.Config((counting(5), counting(5)), times=3)))
    assert runs(eqx.filter_make_jaxpr(model), tokens(2, 5)) == 1


def test_of_equal_blocks_one_is_built_in_a_program():
    built = []

    class Built(ef.Block.Config):
        def build(self, dim, *, source_dim=None, key):
            built.append(1)
            return super().build(dim, source_dim=source_dim, key=key)

    config = decoder(*[Built(ef.Attention.Config(heads=3), ef.MLP.Config(hidden=5))] * 4)
    eqx.filter_eval_shape(lambda key: config.build(key=key), jax.random.key(0))
    assert len(built) == 1


def test_prefill_and_a_step_of_decoding_are_traced_once_for_all_blocks():
    model = filled(decoder(*[counting(5)] * 2))
    with apart():
        apart_runs = runs(lambda: ef.generate(model, [[1, 2, 3]], max_new_tokens=2))
    jax.clear_caches()  # the programs of `generate`
    assert runs(lambda: ef.generate(model, [[1, 2, 3]], max_new_tokens=2)) * 2 == apart_runs


@pytest.mark.parametrize(
    "config",
    [TWO, DECODERS["gemma"], decoder(*DECODERS["experts and sinks"].blocks[1:3])],
    ids=["two", "gemma", "moe"],
)
def test_the_compiled_program_is_the_one_of_blocks_traced_one_by_one(config):
    model = filled(config)
    lowered, arguments = program(model, contextlib.nullcontext())
    lowered2, _ = program(model, apart())
    assert len(lowered.as_text()) < len(lowered2.as_text())
    shared, single = lowered.compile(), lowered2.compile()
    assert instructions(shared) == instructions(single)
    of_shared, of_single = shared.memory_analysis(), single.memory_analysis()
    assert of_shared.temp_size_in_bytes == of_single.temp_size_in_bytes
    assert same_bits(shared(*arguments), single(*arguments))


def test_the_text_of_a_program_hardly_grows_with_depth():
    lengths = [
        len(program(filled(decoder(*[block({})] * depth)), contextlib.nullcontext())[0].as_text())
        for depth in (2, 4)
    ]
    with_own = [
        len(program(filled(decoder(*[block({})] * depth)), apart())[0].as_text())
        for depth in (2, 4)
    ]
    assert lengths[1] - lengths[0] < 0.2 * (with_own[1] - with_own[0])


def test_what_blocks_share_has_the_same_gradient():
    """That of the source is a sum over the blocks, which is made in another order."""
    model, ids = filled(SEQ2SEQ["t5"]), (tokens(2, 4), tokens(2, 5, seed=1))
    results = []
    for context in (contextlib.nullcontext(), apart()):
        run = eqx.filter_value_and_grad(lambda model, *ids: jnp.square(model(*ids)).mean())
        with context:
            results.append(eqx.filter_jit(run)(model, *ids))
    assert_close(*results, tolerance=1e-6)


def test_blocks_that_differ_in_a_number_are_not_taken_for_each_other():
    def scaled(by):
        return block({}, feed_forward_residual=ef.pre_norm().edit(scale=by))

    model = filled(decoder(scaled(0.5), scaled(2.0), scaled(0.5)))
    shared = eqx.filter_jit(lambda m, ids: m(ids))(model, tokens(2, 5))
    np.testing.assert_allclose(shared, model(tokens(2, 5)), rtol=1e-5, atol=1e-5)
    assert not np.allclose(shared, filled(decoder(*[scaled(0.5)] * 3))(tokens(2, 5)), atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [decoder(block({}), block({})), decoder(ef.Repeated.Config((block({}),), times=2))],
    ids=["blocks", "a repeated block"],
)
def test_what_was_changed_between_two_programs_is_traced_anew(config, monkeypatch):
    model, ids = filled(config), tokens(2, 5)
    before = eqx.filter_jit(lambda model, ids: model(ids))(model, ids)
    monkeypatch.setattr(ef.MLP, "run", lambda self, x, *, key=None: (0.0 * x, None))
    after = eqx.filter_jit(lambda model, ids: model(ids))(model, ids)
    np.testing.assert_allclose(after, model(ids), rtol=1e-5, atol=1e-5)
    assert not np.allclose(after, before, atol=1e-2)


def test_a_shared_trace_ends_with_the_program_it_is_of():
    kept = weakref.WeakSet()

    def twice(x):
        def double(x):
            return 2 * x

        kept.add(double)
        once = traced_once(double)
        return once(once(x))

    assert jax.make_jaxpr(twice)(1.0).eqns
    gc.collect()
    assert not kept


def test_a_scan_runs_its_block_once_and_a_second_time_only_for_the_type_it_widens_to():
    model, ids = filled(decoder(*[counting(5)] * 3, layout=ef.Scanned())), tokens(2, 5)
    assert runs(eqx.filter_make_jaxpr(model), ids) == 1
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    assert runs(eqx.filter_make_jaxpr(halves), ids) == 1
    mixed = eqx.tree_at(lambda m: m.blocks, halves, model.blocks)
    with jax.numpy_dtype_promotion("standard"):
        assert runs(eqx.filter_make_jaxpr(mixed), ids) == 2


def test_outside_of_jit_nothing_is_shared_nor_compiled():
    def function(x):
        return 2 * x

    assert traced_once(function) is function
    jax.vmap(lambda x: x if traced_once(function) is function else 1 / 0)(jnp.ones(2))
    jax.grad(lambda x: x if traced_once(function) is function else 1 / 0)(1.0)
    model = filled(decoder(*[counting(5)] * 4))
    assert runs(jax.vmap(model), tokens(2, 5)) == 4
    under = jax.jit(jax.vmap(lambda x: x if traced_once(function) is not function else 1 / 0))
    assert under(jnp.ones(2)).tolist() == [1.0, 1.0]


class Holding(ef.Block):
    """A block that keeps a table which has no hash beside its arrays."""

    table: np.ndarray

    class Config(ef.Block.Config):
        """As of any block."""

        def build(self, dim, *, source_dim=None, key):
            return Holding(dim, self, source_dim=source_dim, key=key)

    def __init__(self, dim, config, *, source_dim=None, key):
        super().__init__(dim, config, source_dim=source_dim, key=key)
        self.table = np.arange(12, dtype=np.float32)[None, None]

    def run(self, x, context, *, cache=None, key=None):
        return super().run(x + self.table, context, cache=cache, key=key)


def test_a_block_that_holds_what_has_no_hash_runs_by_itself():
    config = Holding.Config(ef.Attention.Config(heads=3), ef.MLP.Config(hidden=5))
    model = filled(decoder(config, config))
    run = jax.jit(lambda ids: model(ids))  # the table is no array of JAX, and no argument
    np.testing.assert_allclose(run(tokens(2, 5)), model(tokens(2, 5)), rtol=1e-5, atol=1e-5)


def test_who_looks_sees_every_block():
    model = filled(TWO)
    with ef.backend_report() as report:
        eqx.filter_make_jaxpr(model)(tokens(2, 5))
    assert len(report) == 2
    _, seen = eqx.filter_jit(ef.capture(model, "blocks.*.attention"))(tokens(2, 5))
    assert len(seen) == 2
