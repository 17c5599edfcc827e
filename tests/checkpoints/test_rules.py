"""Rules and moves: what they write is read again bit for bit, and what cannot be is refused."""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eqxformer.checkpoints import CheckpointError
from eqxformer.checkpoints import moves as m
from eqxformer.checkpoints.rules import (
    Binding,
    Rules,
    bind,
    convolved,
    fused,
    reshaped,
    same,
    stacked,
    turned,
    under,
    unprefixed,
    within,
)

TYPES = ["float32", "float16", "float64", "int8"]
sides = st.integers(1, 4)
shapes = st.lists(sides, min_size=1, max_size=4).map(tuple)


def drawn(shape, dtype, seed=0):
    """An array of random bits: NaN and infinities too."""
    size = np.dtype(dtype).itemsize
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, size), np.uint8)
    return bits.view(dtype)[..., 0]


def assert_same_bits(one, other):
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def assert_reversible(move, ours, dtype):
    """Writing gives tensors of the shapes foretold, and reading and writing undo each other."""
    arrays = [drawn(shape, dtype, i) for i, shape in enumerate(ours)]
    theirs = move.write(arrays)
    assert [tensor.shape for tensor in theirs] == move.shapes(ours)
    for array, again in zip(arrays, move.read(theirs, ours), strict=True):
        assert_same_bits(again, array)
    other = [drawn(shape, dtype, 9 - i) for i, shape in enumerate(move.shapes(ours))]
    for tensor, again in zip(other, move.write(move.read(other, ours)), strict=True):
        assert_same_bits(again, tensor)


SIMPLE = [m.Same(), m.Turned(), m.Reversed(), m.Reshaped(), m.Reshaped(3), m.Reshaped(0)]
fusions = st.builds(m.Fused, sides, st.booleans())
every = st.sampled_from(SIMPLE) | st.builds(m.Fused, st.just(1), st.booleans())


@given(move=st.sampled_from(SIMPLE), shape=shapes, dtype=st.sampled_from(TYPES))
@settings(max_examples=60, deadline=None)
def test_writing_undoes_reading_bit_for_bit(move, shape, dtype):
    assert_reversible(move, [shape], dtype)


@given(
    move=fusions,
    inputs=st.lists(sides, max_size=2).map(tuple),
    shares=st.lists(sides, min_size=1, max_size=4),
    dtype=st.sampled_from(TYPES),
)
@settings(max_examples=60, deadline=None)
def test_writing_undoes_reading_of_projections_fused_in_any_groups(move, inputs, shares, dtype):
    assert_reversible(move, [(*inputs, move.groups * share) for share in shares], dtype)


@given(each=every, shape=shapes, count=sides, dtype=st.sampled_from(TYPES))
@settings(max_examples=60, deadline=None)
def test_writing_undoes_reading_of_stacked_arrays(each, shape, count, dtype):
    assert_reversible(m.Stacked(each), [(count, *shape)], dtype)


def test_turned_and_reversed_say_which_axes_change_places():
    linear, convolution = np.zeros((2, 5)), np.zeros((7, 2, 5))
    assert m.Turned().shapes([linear.shape, (3, 2, 5), (5,)]) == [(5, 2), (3, 5, 2), (5,)]
    assert m.Reversed().shapes([convolution.shape]) == [(5, 2, 7)]
    assert m.Reshaped(2).shapes([(4, 5)]) == [(1, 1, 4, 5)]
    assert m.Stacked().shapes([(3, 2, 5)]) == [(5, 2)] * 3


def test_one_group_stands_side_by_side_and_many_take_turns():
    query, key, value = (letter + np.arange(4)[None] for letter in (10, 20, 30))

    def outputs(groups):
        return m.Fused(groups, turned=False).write([query, key, value])[0].tolist()

    assert outputs(1) == [[10, 11, 12, 13, 20, 21, 22, 23, 30, 31, 32, 33]]
    assert outputs(2) == [[10, 11, 20, 21, 30, 31, 12, 13, 22, 23, 32, 33]]
    assert outputs(4) == [[10, 20, 30, 11, 21, 31, 12, 22, 32, 13, 23, 33]]


def test_groups_hold_a_share_of_every_projection_however_many_heads_it_has():
    query, key = 10 + np.arange(4)[None], 20 + np.arange(2)[None]
    (whole,) = m.Fused(2).write([query, key])
    assert whole.T.tolist() == [[10, 11, 20, 12, 13, 21]]


def test_a_stack_keeps_the_order_of_its_entries():
    whole = np.arange(12).reshape(3, 2, 2)
    tensors = m.Stacked(m.Same()).write([whole])
    assert [tensor.tolist() for tensor in tensors] == whole.tolist()


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        (["float32", "float32"], "float32"),
        (["bfloat16", "float32"], "float32"),
        (["float16", "float32", "bfloat16"], "float32"),
        (["bfloat16", "float16"], "float32"),  # neither has the numbers of the other
        (["float8_e4m3fn", "bfloat16"], "bfloat16"),
        (["bfloat16", "bfloat16"], "bfloat16"),
    ],
)
def test_a_stack_of_several_types_keeps_every_number(stored, kept):
    for types in itertools.permutations(stored):
        tensors = [np.full((2, 2), 1 + 2**-3, jnp.dtype(each)) for each in types]
        tensors[0] = np.full((2, 2), float(jnp.finfo(types[0]).smallest_normal), tensors[0].dtype)
        (whole,) = m.Stacked(m.Same()).read(tensors, [(len(types), 2, 2)])
        assert whole.dtype == jnp.dtype(kept)
        for entry, tensor in zip(whole, tensors, strict=True):
            assert np.array_equal(entry.astype(np.float64), tensor.astype(np.float64))


# A small model: two blocks of an attention, experts and a norm, and a head.
def model(*, layers=2, dim=4, experts=3) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"embedding.tokens.weight": (7, dim)}
    for i in range(layers):
        for name in ("query", "key", "value"):
            found[f"blocks.{i}.attention.{name}.weight"] = (dim, dim)
            found[f"blocks.{i}.attention.{name}.bias"] = (dim,)
        found[f"blocks.{i}.norm.weight"] = (dim,)
        found[f"blocks.{i}.experts.up.weight"] = (experts, dim, 5)
    return {**found, "head.linear.weight": (dim, 7)}


QUERY_KEY_VALUE = ("attention.query", "attention.key", "attention.value")
RULES = (
    same("embedding.tokens", "model.table"),
    *under(
        "blocks.*",
        "model.layers.*",
        fused(QUERY_KEY_VALUE, "qkv"),
        same("norm", "norm"),
        stacked("experts.up", "experts.#.w1"),
    ),
    turned("head.linear", "head"),
)


def by_tensor(rules: Rules, shapes: dict[str, tuple[int, ...]]) -> dict[str, Binding]:
    return {name: binding for binding in bind(rules, shapes) for name in binding.theirs}


@given(layers=st.integers(0, 12), experts=st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_every_array_is_in_one_binding_and_every_tensor_too(layers, experts):
    wanted = model(layers=layers, experts=experts)
    bindings = bind(RULES, wanted)
    ours = [path for binding in bindings for path in binding.ours]
    theirs = [name for binding in bindings for name in binding.their_shapes()]
    assert sorted(ours) == sorted(wanted)
    assert len(theirs) == len(set(theirs)) == 2 + layers * (2 + 1 + experts)
    for binding in bindings:
        assert binding.shapes == tuple(wanted[path] for path in binding.ours)


def test_a_model_is_written_and_read_again_bit_for_bit():
    arrays = {p: drawn(s, "float32", i) for i, (p, s) in enumerate(model().items())}
    bindings, tensors = bind(RULES, model()), {}
    for binding in bindings:
        written = binding.move.write([arrays[path] for path in binding.ours])
        tensors |= dict(zip(binding.theirs, written, strict=True))
        for name, shape in binding.their_shapes().items():
            assert tensors[name].shape == shape
    again = {}
    for binding in bindings:
        theirs = [tensors[name] for name in binding.theirs]
        again |= dict(zip(binding.ours, binding.move.read(theirs, binding.shapes), strict=True))
    assert again.keys() == arrays.keys()
    for path, array in arrays.items():
        assert_same_bits(again[path], array)


def test_a_star_is_the_number_of_the_block_and_a_hash_that_of_the_entry():
    found = by_tensor(RULES, model(layers=11, experts=11))
    assert found["model.layers.10.norm.weight"].ours == ("blocks.10.norm.weight",)
    entries = found["model.layers.1.experts.10.w1.weight"]
    assert entries.ours == ("blocks.1.experts.up.weight",)
    assert entries.theirs[10] == "model.layers.1.experts.10.w1.weight"
    assert len(entries.theirs) == 11


def test_several_stars_take_the_numbers_in_their_order():
    wanted = {f"groups.{i}.blocks.{j}.norm.weight": (3,) for i in range(2) for j in range(2)}
    found = by_tensor((same("groups.*.blocks.*.norm", "g.*.l.*.n"),), wanted)
    assert found["g.1.l.0.n.weight"].ours == ("groups.1.blocks.0.norm.weight",)
    assert len(found) == 4


def test_a_rule_about_a_part_is_about_all_of_its_arrays():
    found = by_tensor(RULES, model())
    for leaf in ("weight", "bias"):
        binding = found[f"model.layers.1.qkv.{leaf}"]
        assert binding.ours == tuple(f"blocks.1.{name}.{leaf}" for name in QUERY_KEY_VALUE)
    assert found["model.layers.1.qkv.weight"].their_shapes() == {
        "model.layers.1.qkv.weight": (12, 4)
    }


def test_a_later_rule_wins():
    child = (*RULES, same("blocks.*.norm", "model.layers.*.other"), same("head.linear", "output"))
    found = by_tensor(child, model())
    assert "model.layers.0.other.weight" in found
    assert "model.layers.0.norm.weight" not in found
    assert found["output.weight"].move == m.Same()
    assert "head.weight" not in found


def test_later_rules_about_all_parts_undo_an_earlier_fusion_and_the_other_way_round():
    apart = under("blocks.*", "layers.*", *(turned(name, name) for name in QUERY_KEY_VALUE))
    assert "layers.1.attention.key.bias" in by_tensor((*RULES, *apart), model())
    assert "model.layers.1.qkv.bias" in by_tensor((*apart, *RULES), model())


def test_a_rule_about_one_array_wins_over_those_about_its_part():
    one = same("head.linear.weight", "the_head")
    for rules in ((*RULES, one), (one, *RULES)):
        assert by_tensor(rules, model())["the_head"].move == m.Same()


def test_prefixes_are_put_before_both_names_and_an_empty_one_adds_nothing():
    rule = fused(("query", "key"), "qk", groups=2)
    (found,) = under("blocks.*", "h.*", rule)
    assert found == fused(("blocks.*.query", "blocks.*.key"), "h.*.qk", groups=2)
    assert under("", "", rule) == (rule,)
    assert under("encoder", "", rule)[0].theirs == "qk"
    assert under("", "model", rule)[0].ours == ("query", "key")


def test_a_base_model_goes_without_the_prefix_of_its_names_and_nothing_else():
    names = [rule.theirs for rule in unprefixed(RULES, "model.")]
    assert names == ["table", "layers.*.qkv", "layers.*.norm", "layers.*.experts.#.w1", "head"]
    assert all(
        dataclasses.replace(rule, theirs="") == dataclasses.replace(before, theirs="")
        for rule, before in zip(unprefixed(RULES, "model."), RULES, strict=True)
    )


def test_the_rules_of_one_part_are_those_all_of_whose_arrays_are_in_it():
    both = fused(("encoder.a", "decoder.a"), "both")
    rules = (same("encoder.norm", "e.norm"), same("encoders.norm", "es.norm"), both)
    assert within("encoder", rules) == (same("norm", "e.norm"),)


def test_every_maker_of_rules_has_its_move():
    assert [rule.move for rule in (same("a", "b"), turned("a", "b"), convolved("a", "b"))] == [
        m.Same(),
        m.Turned(),
        m.Reversed(),
    ]
    assert reshaped("a", "b", ones=2).move == m.Reshaped(2)
    assert fused(("a", "c"), "b", groups=3, turned=False).move == m.Fused(3, turned=False)
    assert stacked("a", "b.#").move == m.Stacked(m.Turned())
    assert stacked("a", "b.#", m.Same()).move == m.Stacked(m.Same())


NORM = {"blocks.3.norm.weight": (4,)}
PAIR = {"blocks.3.query.weight": (4, 6), "blocks.3.key.weight": (4, 2)}
FUSED = fused(("blocks.*.query", "blocks.*.key"), "h.*.qk")
WRONG = {
    "no rule": ((), NORM, ["`blocks.3.norm.weight`", "No rule"]),
    "a rule about another leaf": (
        (same("blocks.*.norm.bias", "n"),),
        NORM,
        ["`blocks.3.norm.weight`", "No rule"],
    ),
    "a part of a fusion is not there": (
        (FUSED,),
        {"blocks.3.query.weight": (4, 6)},
        ["`blocks.3.query.weight`", "['blocks.3.key.weight']", "not there"],
    ),
    "a part of a fusion is elsewhere": (
        (FUSED, turned("blocks.*.query", "h.*.q")),
        PAIR,
        ["`blocks.3.key.weight`", "`blocks.3.query.weight`", "h.3.qk.weight", "h.3.q.weight"],
    ),
    "two arrays in one tensor": (
        (same("blocks.*.norm", "h.*.norm"), same("norm", "h.3.norm")),
        {**NORM, "norm.weight": (4,)},
        ["`blocks.3.norm.weight`", "`norm.weight`", "h.3.norm.weight"],
    ),
    "all blocks in one tensor": (
        (same("blocks.*.norm", "norm"),),
        {**NORM, "blocks.4.norm.weight": (4,)},
        ["`blocks.3.norm.weight`", "`blocks.4.norm.weight`", "norm.weight"],
    ),
    "a star too many": (
        (same("blocks.*.norm", "h.*.*.norm"),),
        NORM,
        ["`blocks.3.norm.weight`", "h.*.*.norm"],
    ),
    "groups that do not divide": (
        (dataclasses.replace(FUSED, move=m.Fused(4)),),
        PAIR,
        ["`blocks.3.query.weight`", "h.3.qk.weight", "`groups`", "(4, 6)"],
    ),
    "a fusion of different inputs": (
        (FUSED,),
        {**PAIR, "blocks.3.key.weight": (5, 2)},
        ["`blocks.3.query.weight`", "inputs", "(5, 2)"],
    ),
    "a stack without a hash": (
        (stacked("blocks.*.query", "h.*.q"),),
        {"blocks.3.query.weight": (2, 4, 6)},
        ["`blocks.3.query.weight`", "2 tensors", "h.3.q.weight"],
    ),
    "a hash without a stack": (
        (same("blocks.*.query", "h.*.#"),),
        PAIR,
        ["`blocks.3.query.weight`", "h.3.#.weight"],
    ),
    "more tensors than there can be": (
        (stacked("blocks.*.up", "h.*.#"),),
        {"blocks.3.up.weight": (2**30, 4, 6)},
        ["`blocks.3.up.weight`", str(2**30)],
    ),
    "more tensors than there can be in all": (
        (stacked("blocks.*.up", "h.*.#"),),
        {f"blocks.{i}.up.weight": (100_000, 1, 1) for i in range(4)},
        ["`blocks.2.up.weight`", "more than 262144 tensors"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_bound_is_an_error_that_names_it(case):
    rules, wanted, words = WRONG[case]
    with pytest.raises(CheckpointError) as error:
        bind(rules, wanted)
    assert all(word in str(error.value) for word in words), error.value
