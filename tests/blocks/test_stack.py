"""A stack computes the same however its blocks are stored, scanned or rematerialised."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.layers.cache import FullCache, RingCache
from tests.helpers.compare import same_bits
from tests.helpers.hot import normal
from tests.helpers.models import block, close, decoder, extend, filled, logits, model, tokens
from tests.helpers.programs import primitives

DROPPING = {"attention_residual": ef.pre_norm(dropout=0.3), "feed_forward_residual": ef.pre_norm()}
# One block by itself, then two equal ones: with dropout, experts, a window, and no rotary.
MIXED = decoder(
    block({"window": 2, "rotary": ef.Rotary(), "head_dim": 4}, **DROPPING),
    *[
        block(
            {"dropout": 0.2},
            feed_forward=ef.Experts.Config(count=3, top=2, expert=ef.MLP.Config(hidden=5)),
            **DROPPING,
        )
    ]
    * 2,
)
RINGS = decoder(
    *[block({"window": 3, "rotary": ef.Rotary(), "head_dim": 4})] * 2,
    block({"rotary": None}),
    dim=5,
    head=ef.LinearHead.Config(),
).edit("blocks.2.attention", head_dim=4)


PAIR = decoder(*[block({"rotary": ef.Rotary(), "head_dim": 4}, **DROPPING)] * 2)


@eqx.filter_jit
@eqx.filter_value_and_grad(has_aux=True)
def _step(model, ids, key):
    hidden, _, losses = model.run(ids, key=key)
    y = jnp.square(hidden - 1.0).mean()
    extra = 0.0 if losses is None else losses.load_balance + losses.z
    return y + extra, (hidden, losses)


@pytest.fixture(scope="module")
def mixed():
    return filled(MIXED)


def test_scanned_and_unrolled_agree_in_values_losses_gradients_and_dropout(mixed):
    ids, key = tokens(2, 5), jax.random.key(7)
    scanned = ef.rebuild(mixed, MIXED.edit(layout=ef.Scanned()))
    (loss, (hidden, losses)), gradients = _step(mixed, ids, jax.random.clone(key))
    (loss2, (hidden2, losses2)), gradients2 = _step(scanned, ids, key)
    close(hidden2, hidden)
    close(loss2, loss)
    close(jax.tree.leaves(losses2), jax.tree.leaves(losses))
    named, named2 = ef.named_arrays(gradients), ef.named_arrays(gradients2)
    assert named.keys() == named2.keys()
    for path in named:
        close(named2[path], named[path])
    (other, _), _ = _step(mixed, ids, jax.random.key(8))
    assert abs(float(other) - float(loss)) > 1e-3  # so that dropout took part in the comparison


def test_scanned_and_unrolled_agree_with_caches_also_with_rings():
    """Six tokens, three at a time: the second three take the places of the first in a ring."""
    ids = np.asarray(tokens(2, 6))
    outputs, single = [], filled(RINGS)
    for layout in (ef.Unrolled(), ef.Scanned()):
        built = ef.rebuild(single, RINGS.edit(layout=layout))
        first, cache = extend(built, ids[:, :3], built.init_cache((2,), 8))
        last, cache = extend(built, ids[:, 3:], cache)
        np.testing.assert_array_equal(cache.length, [6, 6])
        outputs.append(np.concatenate([first, last], axis=1))
    close(*outputs)


def test_a_window_keeps_a_ring_of_its_own_length_and_other_blocks_keep_everything():
    caches = model("gemma").init_cache((2,), 9).blocks
    assert [type(c.attention) for c in caches] == [RingCache, FullCache, RingCache]
    assert [c.attention.keys.shape[-2] for c in caches] == [3, 9, 3]


def test_blocks_are_drawn_alike_in_every_layout_and_differ_among_themselves():
    drawn, zero = ef.Linear.Config(init=ef.Normal(1.0)), ef.Linear.Config(init=ef.Zeros())
    same = ef.Block.Config(
        ef.Attention.Config(1, query=drawn, key=drawn, value=zero, out=zero),
        ef.MLP.Config(hidden=2, up=zero, down=zero),
    )

    @eqx.filter_jit
    def names(layout):
        config = decoder(same.edit("attention", window=1), same, same, dim=2, layout=layout)
        return ef.named_arrays(config.build(key=jax.random.key(5)))

    single, stacked = names(ef.Unrolled()), names(ef.Scanned())
    assert single.keys() == stacked.keys()
    for path in single:
        np.testing.assert_allclose(single[path], stacked[path], rtol=1e-6)
    first = single["blocks.0.attention.query.weight"]
    assert not np.allclose(first, single["blocks.1.attention.query.weight"])
    assert not np.allclose(first, single["blocks.0.attention.key.weight"])


@pytest.mark.parametrize("layout", [ef.Unrolled(), ef.Scanned()], ids=["unrolled", "scanned"])
def test_single_blocks_are_there_by_number_whatever_the_layout(mixed, layout):
    built = ef.rebuild(mixed, MIXED.edit(layout=layout))
    stack = built.blocks
    assert len(stack) == len(list(stack)) == 3
    assert stack.sizes == ((None,) * 3 if isinstance(layout, ef.Unrolled) else (None, 2))
    for i in (0, 2, -1):
        assert same_bits(stack[i], mixed.blocks[i])
    with pytest.raises(IndexError):
        stack[3]


def test_only_equal_neighbours_are_stacked():
    a, b = block({}), block({"window": 2})
    config = decoder(a, a, b, a, b, b, layout=ef.Scanned())
    assert ef.shapes(config).blocks.sizes == (2, None, None, 2)


@pytest.mark.parametrize("part", ["value", "query"])
def test_a_scan_takes_weights_of_two_float_types(part):
    """As after training some weights of a bfloat16 model, which are float32 then."""
    built = filled(decoder(block({}), block({})))
    halves = _halved(built)
    where = lambda model: [getattr(model.blocks[i].attention, part).weight for i in range(2)]  # noqa: E731
    mixed = eqx.tree_at(where, halves, where(built))
    with jax.numpy_dtype_promotion("standard"):
        expected = logits(mixed, tokens(2, 5))
        scanned = ef.rebuild(mixed, mixed.config.edit(layout=ef.Scanned()))
        found = logits(scanned, tokens(2, 5))
    assert found.shape == expected.shape
    close(np.asarray(found, np.float32), np.asarray(expected, np.float32), 0.05)


def test_a_scan_widens_what_comes_in_as_blocks_one_by_one_do():
    bare = ef.Residual.Config()
    config = decoder(*[block({}, attention_residual=bare, feed_forward_residual=bare)] * 3)
    narrow = eqx.tree_at(lambda m: m.embedding, filled(config), replace_fn=_halved)
    run = eqx.filter_jit(lambda model: model.run(tokens(2, 5))[0])
    with jax.numpy_dtype_promotion("standard"):
        expected, found = run(narrow), run(ef.rebuild(narrow, config.edit(layout=ef.Scanned())))
    assert found.dtype == expected.dtype == jnp.float32
    close(found, expected)


def _halved(part):
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf, jnp.bfloat16)), part)


def test_a_model_without_blocks_is_its_embedding_norm_and_head():
    built = filled(decoder())
    ids = tokens(2, 3)

    @jax.jit
    def both(ids):
        return built(ids), built.head(built.norm(built.embedding(ids)), built.embedding.tokens)

    close(*both(ids))


# Rematerialisation


@pytest.mark.parametrize(
    "layout", [ef.Unrolled(remat="dots_saved"), ef.Scanned(remat="nothing_saved")], ids=str
)
def test_rematerialisation_changes_no_value_and_no_gradient(layout):
    ids, key = tokens(2, 5), jax.random.key(1)
    plain = ef.rebuild(filled(PAIR), PAIR.edit(layout=ef.Scanned()))
    remat = ef.rebuild(plain, PAIR.edit(layout=layout))
    (loss, _), gradients = _step(plain, ids, jax.random.clone(key))
    (loss2, _), gradients2 = _step(remat, ids, key)
    close(loss2, loss)
    expected = ef.named_arrays(gradients)
    for path, got in ef.named_arrays(gradients2).items():
        close(got, expected[path])


@pytest.mark.parametrize("kind", [ef.Unrolled, ef.Scanned])
def test_what_is_not_saved_is_computed_again_in_the_backward_pass(kind):
    def products(remat):
        built = ef.shapes(PAIR.edit(layout=kind(remat=remat)))
        found = primitives(lambda m, ids: _step.__wrapped__(m, ids, None), built, tokens(2, 5))
        assert (found["checkpoint"] + found["remat2"] > 0) == (remat is not None)
        return found["dot_general"]

    everything_saved, dots_saved, nothing_saved = map(
        products, (None, "dots_saved", "nothing_saved")
    )
    assert everything_saved <= dots_saved < nothing_saved


# Depth


@functools.cache
def sizes(layers, layout):
    """Of the programs of so many equal blocks: drawn, forwards, a step, and with a cache."""
    config, ids = decoder(*[block({})] * layers, layout=layout), tokens(2, 5)
    made = primitives(lambda key: config.build(key=key), jax.random.key(0))
    built = ef.shapes(config)
    forward = primitives(lambda m, ids: m(ids), built, ids)
    step = primitives(lambda m, ids: _step.__wrapped__(m, ids, None), built, ids)
    cached = primitives(lambda m, ids: m.extend(ids, m.init_cache((2,), 8)), built, ids)
    return [sum(each.values()) for each in (made, forward, step, cached)]


@pytest.mark.parametrize("remat", [None, "nothing_saved"])
def test_the_program_of_a_scanned_stack_does_not_grow_with_depth(remat):
    scanned = ef.Scanned(remat=remat)
    assert sizes(48, scanned) == sizes(3, scanned)
    for deep, shallow in zip(sizes(6, ef.Unrolled()), sizes(3, ef.Unrolled()), strict=True):
        assert deep > 1.5 * shallow  # so that the count above could have grown


def test_scanned_layers_each_fold_their_own_number_into_the_key():
    half = ef.Residual.Config(dropout=0.5)
    silent = ef.Block.Config(
        ef.Attention.Config(1),
        ef.MLP.Config(hidden=2),
        attention_residual=half,
        feed_forward_residual=half.edit(scale=0.0),
    )
    built = filled(decoder(*[silent] * 3, dim=6, layout=ef.Scanned()))
    equal = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), built.blocks.groups[0])
    stack = ef.Stack((equal,), built.blocks.sizes, built.blocks.layout)

    def added(sizes):
        """What the last of so many equal blocks adds; dropout zeroes some of it."""
        part = ef.Stack.of(list(stack)[:sizes], ef.Unrolled(), (None,) * sizes)
        x = normal(0, 3, 6)
        return part.run(x, ef.Context(), key=jax.random.key(3))[0]

    outputs = [np.asarray(y) for y in jax.jit(lambda: [added(n) for n in (1, 2, 3)])()]
    zeros = [a == b for a, b in zip(outputs[1:], outputs[:-1], strict=True)]
    assert zeros[0].any()
    assert zeros[1].any()
    assert (zeros[0] != zeros[1]).any()
