"""Which axis of an array each axis of a mesh cuts."""

import equinox as eqx
import jax
import pytest
from jax.sharding import PartitionSpec as P

import eqxformer as ef
from tests.sharding.meshes import placed

LLAMA = ef.families.llama(vocab=24, dim=16, layers=2, heads=4, kv_heads=2, hidden=32)


def specs(config, spelling, **rules):
    placement = ef.Placement(ef.abstract_mesh(spelling), ef.Rules(**rules))
    return {".".join(path): place.spec for path, place in placement.places(ef.shapes(config))}


def test_heads_hidden_units_and_vocabulary_are_cut_by_tensor_and_the_rest_of_matrices_by_fsdp():
    found = specs(LLAMA.edit(layout=ef.Scanned()), "fsdp=4,tensor=2")
    block = "blocks.groups.0"
    assert found["embedding.tokens.weight"] == P("tensor", "fsdp")
    assert found[f"{block}.attention.query.weight"] == P(None, "fsdp", "tensor")
    assert found[f"{block}.attention.key.weight"] == P(None, "fsdp", "tensor")
    assert found[f"{block}.attention.out.weight"] == P(None, "tensor", "fsdp")
    assert found[f"{block}.feed_forward.down.weight"] == P(None, "tensor", "fsdp")
    assert found[f"{block}.attention_residual.pre_norm.weight"] == P()
    assert found["head.linear.weight"] == P("fsdp", "tensor")


def test_axes_that_a_mesh_lacks_cut_nothing():
    assert set(specs(LLAMA, "data=8").values()) == {P()}
    of_fsdp, of_both = specs(LLAMA, "fsdp=4"), specs(LLAMA, "data=2,fsdp=4,tensor=1")
    assert of_fsdp == of_both
    assert of_fsdp["blocks.groups.0.attention.query.weight"] == P("fsdp")


def test_experts_are_dealt_out_and_cut_as_others_are():
    mixture = ef.Experts.Config(count=4, top=2, expert=ef.MLP.Config(hidden=32))
    config = LLAMA.edit("blocks.*", feed_forward=mixture)
    found = specs(config, "fsdp=2,expert=4,tensor=2")
    part = "blocks.groups.0.feed_forward"
    assert found[f"{part}.experts.up.weight"] == P("expert", "fsdp", "tensor")
    assert found[f"{part}.experts.up.bias"] == P("expert", "tensor")
    assert found[f"{part}.experts.down.bias"] == P("expert")
    assert found[f"{part}.router.weight"] == P("fsdp")


def test_heads_stay_whole():
    """Four heads of four numbers are sixteen numbers, which eight would divide."""
    with pytest.raises(ValueError) as error:
        placed("tensor=8").shardings(ef.shapes(LLAMA))
    assert str(error.value) == (
        "The mesh tensor=8 cannot cut these arrays:\n"
        "  blocks.*.attention.query.weight, blocks.*.attention.out.weight: "
        "heads=4 is not a multiple of tensor=8\n"
        "  blocks.*.attention.key.weight, blocks.*.attention.value.weight: "
        "kv_heads=2 is not a multiple of tensor=8\n"
        "Choose other sizes, or keep them whole on every device: `Rules(uneven='whole')`."
    )


def test_what_cannot_be_cut_is_whole_where_that_is_asked_for_and_is_listed():
    config = LLAMA.edit(vocab=23)
    found = specs(config, "tensor=4", uneven="whole")
    assert found["blocks.groups.0.attention.query.weight"] == P(None, "tensor")
    assert found["blocks.groups.0.attention.key.weight"] == P()
    assert found["embedding.tokens.weight"] == P()
    assert placed("tensor=4").whole(ef.shapes(config)) == [
        "embedding.tokens.weight, head.linear.weight: vocab=23 is not a multiple of tensor=4",
        "blocks.*.attention.key.weight, blocks.*.attention.value.weight: "
        "kv_heads=2 is not a multiple of tensor=4",
    ]


def test_fsdp_takes_another_axis_where_it_does_not_divide_the_width():
    config = ef.families.llama(vocab=24, dim=12, layers=1, heads=2, hidden=32)
    found = specs(config, "fsdp=8")
    assert found["blocks.groups.0.feed_forward.up.weight"] == P(None, "fsdp")
    assert found["embedding.tokens.weight"] == P("fsdp")
    with pytest.raises(ValueError, match=r"query.weight.*dim=12 is not a multiple of fsdp=8"):
        placed("fsdp=8").shardings(ef.shapes(config))


def test_layers_have_the_same_cut_stacked_or_single():
    single = specs(LLAMA, "fsdp=4,tensor=2")
    for config in (LLAMA, LLAMA.edit(layout=ef.Scanned())):
        skeleton = ef.shapes(config)
        by_name = placed("fsdp=4,tensor=2").by_name(skeleton)
        for name, leaf in ef.named_arrays(skeleton).items():
            wanted = single[name.replace("blocks.", "blocks.groups.")]
            assert by_name(name, leaf.shape).spec == wanted, name


def test_rules_are_values_that_can_be_changed_printed_and_read():
    rules = ef.Rules(cuts=(ef.Cut("tensor", ("vocab",)),))
    assert ef.Config.from_json(rules.to_json()) == rules
    found = specs(LLAMA, "tensor=2", cuts=rules.cuts)
    assert found.pop("embedding.tokens.weight") == P("tensor")
    assert found.pop("head.linear.weight") == P(None, "tensor")
    assert set(found.values()) == {P()}
    with pytest.raises(ValueError, match="`axis` must be one of data, fsdp"):
        ef.Cut("rows", ("dim",))
    with pytest.raises(ValueError, match="`words` must name at least one"):
        ef.Cut("fsdp", ())


def test_a_part_without_words_or_counts_is_cut_where_that_is_safe():
    rules, sizes = ef.Rules(), {"fsdp": 4, "tensor": 2}
    assert rules.place(("?", "?"), (6, 8), sizes, {}).spec == P(None, "fsdp")
    unknown = rules.place(("dim", "heads*head_dim"), (8, 8), sizes, {})
    assert unknown.problems == ("the unknown number of heads is not a multiple of tensor=2",)
    assert unknown.spec == P("fsdp")


def test_adapters_and_int8_weights_are_cut_as_what_they_belong_to():
    def changed(key):
        model = ef.quantise(LLAMA.build(key=key), to="blocks")
        return ef.add_lora(model, ef.LoRA(rank=4), to="blocks.*.attention", key=key)

    placement = placed("fsdp=4,tensor=2")
    with jax.debug_key_reuse(False):
        skeleton = eqx.filter_eval_shape(changed, jax.random.key(0))
    block = placement.shardings(skeleton).blocks[0]
    assert block.feed_forward.up.weight.spec == P("fsdp", "tensor")
    assert block.feed_forward.up.scale.spec == P("tensor")
    query = block.attention.query
    assert query.base.weight.spec == P("fsdp", "tensor")
    assert query.lora.down.weight.spec == P("fsdp")
    assert query.lora.up.weight.spec == P(None, ("tensor", "fsdp"))


def test_gains_for_each_head_are_cut_between_heads_and_never_by_fsdp():
    norm = {"qk_norm": ef.RMSNorm.Config(), "qk_norm_over": "each_head"}
    config = ef.families.gpt(vocab=16, dim=16, layers=2, heads=2, context=8)
    config = config.edit("blocks.*.attention", **norm)
    for layout in (ef.Unrolled(), ef.Scanned()):
        found = specs(config.edit(layout=layout), "fsdp=2,tensor=2")
        gains = {path: spec for path, spec in found.items() if "query_norm" in path}
        assert gains
        for spec in gains.values():
            assert spec in (P("tensor"), P(None, "tensor"))
