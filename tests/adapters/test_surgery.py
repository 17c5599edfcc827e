"""Adapters in whole models: where they go, and that everything else works as before."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.adapters.made import ADAPTERS, KINDS, SMALL, adapted, plain, small
from tests.helpers.compare import same_bits
from tests.helpers.hot import drawn, normal
from tests.helpers.models import block, close, decoder, filled, logits, model, tokens

LORA, SCANNED = KINDS["LoRA"], ef.Scanned()
MIXTURE = ef.Experts.Config(3, 2, ef.MLP.Config(hidden=5))
KEY = jax.random.key(0)
QUERIES = ["blocks.0.attention.query", "blocks.1.attention.query"]


@pytest.mark.parametrize(
    ("to", "paths"),
    [
        ("blocks.0.attention.query", QUERIES[:1]),
        ("**.query", QUERIES),
        ("blocks.1.feed_forward", ["blocks.1.feed_forward.up", "blocks.1.feed_forward.down"]),
        (ef.Axes(in_dim="hidden"), ["blocks.0.feed_forward.down", "blocks.1.feed_forward.down"]),
        (ef.Axes(in_dim="dim", out_dim="heads*head_dim"), QUERIES),
        (
            ("**.query", ef.Axes(out_dim="hidden"), "blocks.1.attention.query"),
            [
                *(QUERIES[0], "blocks.0.feed_forward.up"),
                *(QUERIES[1], "blocks.1.feed_forward.up"),
            ],
        ),
    ],
)
def test_paths_and_axes_choose_linear_maps(to, paths):
    shapes = ef.shapes(SMALL)
    found = eqx.filter_eval_shape(lambda model: ef.add_lora(model, LORA, to=to, key=KEY), shapes)
    assert list(ef.adapters_of(found)) == paths


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("blocks.*.attention.qery", r"leads to no linear map.*Did you mean `blocks.\*.attention.q"),
        ("embedding", "leads to no linear map"),
        ("blocks.0.attention.query.weight", "leads to no linear map"),
        (ef.Axes(out_dim="hiden"), "No linear map of the model has out_dim=hiden.*dim to hidden"),
        ([], "must name at least one path"),
    ],
)
def test_what_leads_nowhere_is_refused(to, message):
    with pytest.raises(ValueError, match=message):
        ef.add_lora(plain(), LORA, to=to, key=KEY)


def test_some_of_several_layers_in_one_array_cannot_have_adapters_by_themselves():
    with pytest.raises(ValueError, match="1 layers cannot be changed by themselves"):
        ef.add_lora(plain(SCANNED), LORA, to="blocks.0", key=KEY)


def test_a_second_adapter_is_refused():
    with pytest.raises(ValueError, match=r"`blocks.0.attention.query` has an adapter already"):
        ef.add_lora(small(), LORA, to="**.query", key=KEY)


def test_stacked_layers_are_given_the_adapters_of_single_ones():
    new = [
        ef.adapters_of(ef.add_lora(plain(layout), KINDS["DoRA"], to="**.query", key=KEY))
        for layout in (ef.Unrolled(), SCANNED)
    ]
    assert list(new[0]) == list(new[1]) == QUERIES
    assert all(same_bits(new[0][path], new[1][path]) for path in QUERIES)
    one, other = (new[0][path].down.weight for path in QUERIES)
    assert bool((one != other).any())


def test_stacked_layers_compute_what_single_ones_do():
    stacked = ef.with_adapters(plain(SCANNED), ef.adapters_of(small("DoRA")))
    close(logits(stacked, tokens(2, 5)), logits(small("DoRA"), tokens(2, 5)))
    assert same_bits(ef.adapters_of(stacked), ef.adapters_of(small("DoRA")))


@pytest.mark.parametrize("layout", [ef.Unrolled(), SCANNED], ids=["single", "stacked"])
def test_a_merged_model_is_plain_and_computes_the_same(layout):
    found = ef.with_adapters(plain(layout), ef.adapters_of(small("DoRA")))
    merged = ef.merge(found)
    assert jax.tree.structure(merged) == jax.tree.structure(plain(layout))
    close(logits(merged, tokens(2, 5)), logits(found, tokens(2, 5)))
    assert same_bits(ef.without_adapters(found), plain(layout))


def test_experts_have_adapters_that_run_grouped():
    mixture = drawn(MIXTURE, 6)
    for base in (mixture, ef.quantise(mixture, to="experts")):
        found = adapted(base, LORA, "experts")
        run = eqx.filter_jit(lambda part, x: part(x))
        close(run(ef.merge(found), normal(1, 4, 6)), run(found, normal(1, 4, 6)))
        assert float(jnp.abs(run(found, normal(1, 4, 6)) - run(base, normal(1, 4, 6))).max()) > 0.1
    with pytest.raises(NotImplementedError, match="can have the adapters of `LoRA`"):
        ef.add_lora(mixture, KINDS["DoRA"], to="experts.up", key=KEY)


def test_experts_of_stacked_layers_have_two_axes_in_front():
    config = decoder(*[block({}, feed_forward=MIXTURE)] * 2, layout=SCANNED)
    base = filled(config)
    found = adapted(ef.quantise(base, to="**.experts.down"), LORA, "**.experts")
    up = "blocks.1.feed_forward.experts.up"
    assert ef.adapters_of(found)[up].down.weight.shape == (3, 12, 2)
    merged = ef.merge(found)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    arrays, part = ef.named_arrays(base), ef.adapters_of(found)[up]
    by_hand = arrays[f"{up}.weight"] + 1.5 * part.down.weight @ part.up.weight
    close(ef.named_arrays(merged)[f"{up}.weight"], by_hand, 1e-6)
    again = ef.without_adapters(ef.unmerge(merged, ef.adapters_of(found)))
    close(ef.named_arrays(again)[f"{up}.weight"], arrays[f"{up}.weight"], 1e-6)


def test_unmerging_leaves_adapters_alone_that_were_put_on_since():
    first = adapted(plain(), LORA, "**.query")
    merged = adapted(ef.merge(first), KINDS["DoRA"], "**.value", seed=1)
    again = ef.unmerge(merged, ef.adapters_of(first))
    found, before = (ef.named_arrays(ef.without_adapters(each)) for each in (again, plain()))
    query, value = (f"blocks.1.attention.{part}.weight" for part in ("query", "value"))
    close(found[query], before[query], 1e-6)
    assert same_bits(found[value], before[value])
    assert set(ef.adapters_of(again)) == set(ef.adapters_of(first)) | set(ef.adapters_of(merged))


def test_blocks_that_repeat_share_their_adapters_as_they_share_their_weights():
    config = decoder(ef.Repeated.Config(blocks=(block({}),), times=2))
    found = adapted(filled(config), LORA, "**.query")
    assert list(ef.adapters_of(found)) == ["blocks.0.blocks.0.attention.query"]
    close(logits(ef.merge(found), tokens(2, 5)), logits(found, tokens(2, 5)))


def test_both_sides_of_an_encoder_decoder_have_adapters():
    found = adapted(model("widths"), LORA, ("encoder.**.up", "decoder.**.cross_attention.key"))
    paths = ["encoder.blocks.0.feed_forward.up", "decoder.blocks.0.cross_attention.key"]
    assert list(ef.adapters_of(found)) == paths
    assert jax.tree.structure(ef.merge(found)) == jax.tree.structure(model("widths"))
    assert eqx.filter_eval_shape(found, tokens(2, 5), tokens(2, 4)).shape == (2, 4, 13)


def test_generation_with_a_cache_chooses_what_the_merged_model_finds_likeliest():
    found = ef.generate(small(), tokens(2, 2), max_new_tokens=3, sampler=ef.Greedy())
    rows = jnp.concatenate([tokens(2, 2), found], 1)
    likeliest = logits(ef.merge(small()), rows).argmax(-1)
    assert np.array_equal(likeliest[:, 1:-1], found)


def test_every_array_of_an_adapter_has_axis_words():
    axes = ef.leaf_axes(small("DoRA", SCANNED))
    path = "blocks.groups.0.feed_forward.up"
    assert axes[f"{path}.base.weight"] == ("layers", "dim", "hidden")
    assert axes[f"{path}.lora.down.weight"] == ("layers", "dim", "rank")
    assert axes[f"{path}.lora.up.weight"] == ("layers", "rank", "hidden")
    assert axes[f"{path}.lora.magnitude"] == ("layers", "hidden")
    words = {word for words in axes.values() for each in words for word in each.split("*")}
    assert words <= set(ef.GLOSSARY)


def test_what_its_config_does_not_build_is_neither_saved_nor_rebuilt(tmp_path):
    expected = r"`blocks.0.attention.query` is an AdaptedLinear.*`merge`"
    for write in (ef.save, ef.save_pretrained):
        with pytest.raises(ValueError, match=expected):
            write(small(), tmp_path / "model")
    with pytest.raises(ValueError, match="`without_adapters`"):
        ef.rebuild(small(), SMALL.edit(layout=SCANNED))
    assert not (tmp_path / "model").exists()
    ef.save(ef.merge(small()), tmp_path / "model")
    assert same_bits(ef.load(tmp_path / "model"), ef.merge(small()))


def test_adapters_go_where_they_fit_and_nowhere_else():
    found = ef.adapters_of(small())
    with pytest.raises(ValueError, match=r"`blocks.7.attention.query` is no linear map"):
        ef.with_adapters(plain(), {"blocks.7.attention.query": found[QUERIES[0]]})
    with pytest.raises(ValueError, match=r"for a weight of shape \(12, 12\); that is \(12, 7\)"):
        ef.with_adapters(plain(), {"blocks.0.feed_forward.up": found[QUERIES[0]]})
    other = ef.add_lora(plain(), ef.LoRA(rank=5), to="**.query", key=KEY)
    two = {QUERIES[0]: found[QUERIES[0]], QUERIES[1]: ef.adapters_of(other)[QUERIES[1]]}
    with pytest.raises(ValueError, match="their adapters differ in rank"):
        ef.with_adapters(plain(SCANNED), two)
    assert same_bits(ef.adapters_of(ef.with_adapters(plain(), two)), two)


def test_adapters_of_shapes_take_no_memory_and_count_as_much():
    make = lambda model: ef.add_lora(model, LORA, to="blocks", key=KEY)  # noqa: E731
    found = eqx.filter_eval_shape(make, ef.shapes(SMALL))
    assert ef.count(ADAPTERS.of(found)) == ef.count(ADAPTERS.of(small()))
