"""The axis words of every parameter come from the annotations, in one vocabulary."""

import functools
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float

import eqxformer as ef
from eqxformer.axes import leaf_copies
from eqxformer.checkpoints.names import name
from tests.helpers.models import DECODERS, SEQ2SEQ

CONFIGS = {**DECODERS, **SEQ2SEQ}


@functools.cache
def shapes(key):
    return ef.shapes(CONFIGS[key])


def _leaves(model):
    return {name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}


@pytest.mark.parametrize("key", CONFIGS)
def test_every_array_has_a_word_of_the_glossary_for_every_axis(key):
    model = shapes(key)
    axes = ef.leaf_axes(model)
    for path, leaf in _leaves(model).items():
        assert len(axes[path]) == len(leaf.shape), path
        for word in axes[path]:
            assert set(word.split("*")) <= set(ef.GLOSSARY), path


def test_words_are_those_of_the_place_where_a_part_is_used():
    axes = ef.leaf_axes(shapes("widths"))
    reader, writer = "encoder.blocks.groups.0", "decoder.blocks.groups.0"
    assert axes["decoder.embedding.tokens.weight"] == ("vocab", "dim")
    assert axes[f"{reader}.attention.key.weight"] == ("dim", "kv_heads*head_dim")
    assert axes[f"{writer}.cross_attention.key.weight"] == ("source_dim", "kv_heads*head_dim")
    assert axes[f"{writer}.cross_attention.query.weight"] == ("dim", "heads*head_dim")
    assert axes[f"{writer}.attention.out.weight"] == ("heads*value_dim", "dim")
    assert axes[f"{writer}.feed_forward.up.bias"] == ("hidden",)
    assert ef.leaf_axes(shapes("relative"))["bias.weight"] == ("buckets", "heads")
    assert ef.leaf_axes(shapes("neox"))["blocks.groups.0.attention.query_norm.weight"] == (
        "head_dim",
    )


@pytest.mark.parametrize(
    ("over", "query", "key"),
    [
        ("head", ("head_dim",), ("head_dim",)),
        ("each_head", ("heads", "head_dim"), ("kv_heads", "head_dim")),
        ("projection", ("heads*head_dim",), ("kv_heads*head_dim",)),
    ],
)
def test_a_norm_of_queries_and_keys_has_the_axes_that_it_is_over(over, query, key):
    config = ef.Attention.Config(4, 2, qk_norm=ef.LayerNorm.Config(), qk_norm_over=over)
    part = eqx.filter_eval_shape(lambda key: config.build(8, key=key), jax.random.key(0))
    axes, leaves = ef.leaf_axes(part), _leaves(part)
    sizes = {"heads": 4, "kv_heads": 2, "head_dim": 2, "heads*head_dim": 8, "kv_heads*head_dim": 4}
    for norm, words in (("query_norm", query), ("key_norm", key)):
        assert axes[f"{norm}.weight"] == axes[f"{norm}.bias"] == words
        assert leaves[f"{norm}.weight"].shape == tuple(sizes[word] for word in words)


def test_stacking_puts_its_axis_in_front_for_experts_and_for_scanned_layers():
    config = DECODERS["experts and sinks"].edit(layout=ef.Scanned())
    axes, leaves = ef.leaf_axes(ef.shapes(config)), _leaves(ef.shapes(config))
    path = "blocks.groups.1.feed_forward.experts.gate.weight"
    assert axes[path] == ("layers", "experts", "dim", "hidden")
    assert leaves[path].shape == (2, 3, 12, 5)
    assert axes["blocks.groups.1.attention.sinks"] == ("layers", "heads")
    assert axes["blocks.groups.0.attention.sinks"] == ("heads",)  # the block that stands alone


class Outer(eqx.Module):
    """A part of a user's, with words of its own."""

    inner: Annotated[ef.Linear, ef.Axes(in_dim="dim", out_dim="colours")]
    several: tuple[Annotated[ef.Linear, ef.Axes(in_dim="colours", out_dim="dim")], ...]
    bare: jax.Array
    maybe: Float[Array, " colours"] | None
    any_rank: Float[Array, "*any dim"]


def test_a_users_part_may_have_words_of_its_own_and_arrays_without_any():
    linear = ef.Linear(2, 3, key=jax.random.key(0))
    part = Outer(linear, (linear, linear), jnp.ones(2), None, jnp.ones((2, 3, 4)))
    axes = ef.leaf_axes(part)
    assert axes["inner.weight"] == ("dim", "colours")
    assert axes["several.1.weight"] == ("colours", "dim")
    assert "bare" not in axes
    assert "maybe" not in axes
    assert "?=2 ?=3 ?=4" in ef.table(part)  # shown, though nothing says what its axes are


def test_words_given_twice_in_a_tree_are_translated_at_every_level():
    class Middle(eqx.Module):
        linear: Annotated[ef.Linear, ef.Axes(in_dim="hidden", out_dim="dim")]

    class Top(eqx.Module):
        middle: Annotated[Middle, ef.Axes(hidden="experts", dim="labels")]

    model = Top(Middle(ef.Linear(2, 3, key=jax.random.key(0))))
    assert ef.leaf_axes(model)["middle.linear.weight"] == ("experts", "labels")


@pytest.mark.parametrize(("layout", "layers"), [(ef.Unrolled(), 0), (ef.Scanned(), 1)])
def test_axes_in_front_count_copies_and_no_others(layout, layers):
    norm = {"qk_norm": ef.RMSNorm.Config(), "qk_norm_over": "each_head"}
    mixture = ef.Experts.Config(count=3, top=2, expert=ef.MLP.Config(hidden=8))
    config = ef.families.gpt(vocab=11, dim=8, layers=2, heads=2, context=8)
    config = config.edit("blocks.*", feed_forward=mixture).edit("blocks.*.attention", **norm)
    copies = leaf_copies(ef.shapes(config.edit(layout=layout)))
    own = {path.partition("0.")[2]: n - layers for path, n in copies.items() if "0." in path}
    assert own["attention.query.weight"] == own["attention_residual.pre_norm.weight"] == 0
    assert own["attention.query_norm.weight"] == own["attention.key_norm.weight"] == 1
    assert own["feed_forward.experts.up.weight"] == own["feed_forward.experts.up.bias"] == 1
    assert own["feed_forward.router.weight"] == 0  # its axis of experts is an output
    assert copies["embedding.tokens.weight"] == 0


class Named(eqx.Module):
    """A part that holds others by name."""

    parts: dict[str, ef.Attention]


def test_parts_in_a_dict_have_words_too():
    attention = ef.Attention(8, heads=2, key=jax.random.key(0))
    axes = ef.leaf_axes(Named({"near": attention, "far": attention}))
    assert axes["parts.near.query.weight"] == ("dim", "heads*head_dim")
    assert set(axes) == set(_leaves(Named({"near": attention, "far": attention})))
