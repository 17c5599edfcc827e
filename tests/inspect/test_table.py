"""The parameter table: every array once, equal blocks folded, totals that add up."""

import itertools

import jax
import jax.numpy as jnp
import pytest

import eqxformer as ef
from eqxformer.inspect.table import size
from tests.helpers.models import DECODERS, SEQ2SEQ, block, decoder, filled

EVERY = {**DECODERS, **SEQ2SEQ}


def _numbers(table):
    """The count of every line by its path in full, and the total."""
    lines = table.splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith("total "))
    found, heading = {}, ""
    for line, following in itertools.pairwise(lines):
        path, number = line.split()[0], int(line.split()[-3].replace(",", ""))
        if following.startswith("  ") and not line.startswith("  "):
            heading = path
        else:
            found[f"{heading}.{path}" if line.startswith("  ") else path] = number
    return {**found, "total": int(lines[end].split()[1].replace(",", ""))}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("depth", [None, 1, 3])
def test_the_lines_add_up_to_the_total_at_any_depth(name, depth):
    model = ef.shapes(EVERY[name])
    numbers = _numbers(ef.table(model, depth=depth))
    total = numbers.pop("total")
    assert total == sum(numbers.values()) == ef.count(model)
    assert total == sum(leaf.size for leaf in jax.tree.leaves(model))


def test_equal_blocks_share_a_line_and_different_ones_do_not():
    config = decoder(*[block({})] * 4, block({"kv_heads": 1}), block({"kv_heads": 1}))
    numbers = _numbers(ef.table(ef.shapes(config)))
    assert numbers["blocks.0..3.attention.key.weight"] == 4 * 12 * 12
    assert numbers["blocks.4..5.attention.key.weight"] == 2 * 12 * 4
    assert "blocks.0.attention.key.weight" not in numbers


@pytest.mark.parametrize("name", ["experts and sinks", "t5"])
def test_the_table_is_the_same_for_every_layout(name):
    config = EVERY[name]
    sides = "*" if name == "t5" else ""
    scanned = config.edit(sides, layout=ef.Scanned())
    assert ef.table(ef.shapes(scanned)) == ef.table(ef.shapes(config))


def test_the_two_sides_of_an_encoder_decoder_are_folded_each_by_itself():
    numbers = _numbers(ef.table(ef.shapes(SEQ2SEQ["t5"])))
    assert "encoder.blocks.0..1.attention.query.weight" in numbers
    assert "decoder.blocks.0..1.cross_attention.query.weight" in numbers
    assert "encoder.bias.weight" in numbers


def test_a_line_spells_axes_sizes_and_bytes():
    lines = ef.table(ef.shapes(DECODERS["llama"])).splitlines()
    row = next(line for line in lines if line.startswith("  attention.key.weight"))
    words = "attention.key.weight dim=11 kv_heads*head_dim=12 Linear 264 1.1 kB"
    assert row.split() == words.split()


def test_the_sum_of_equal_blocks_is_that_of_their_lines():
    lines = ef.table(ef.shapes(decoder(*[block({})] * 4))).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("blocks.0..3 "))
    heading, below = lines[start].split(), lines[start + 1 :]
    inside = [line.split() for line in itertools.takewhile(lambda x: x.startswith("  "), below)]
    assert heading[1:4] == ["4", "x", "Block"]
    assert int(heading[-3].replace(",", "")) == sum(int(w[-3].replace(",", "")) for w in inside)


def test_the_table_keeps_to_the_width_and_leaves_the_parts_out_for_it():
    sizes = {"dim": 1024, "layers": 1, "heads": 16, "hidden": 4096}
    positions = ef.LearnedPositions.Config(length=1024)
    config = ef.families.transformer(vocab=50_265, **sizes)
    for side in ("encoder", "decoder"):
        config = config.edit(f"{side}.embedding", positions=positions)
    shapes = ef.shapes(config)
    assert max(map(len, ef.table(shapes).splitlines())) <= 100
    assert " LearnedPositions " not in ef.table(shapes)
    assert " LearnedPositions " in ef.table(shapes, width=130)
    assert " LearnedPositions " in ef.table(shapes, columns=("part",))


def test_what_is_the_same_everywhere_is_shown_only_when_it_is_asked_for():
    part = ef.MLP(4, hidden=8, key=jax.random.key(0))
    assert not {"float32", "trained"} & set(ef.table(part).split())
    asked = ef.table(part, columns=("dtype", "trained")).splitlines()
    assert asked[0].split() == [
        "up.weight",
        "dim=4",
        "hidden=8",
        "float32",
        "trained",
        "32",
        "128",
        "B",
    ]
    assert len(asked) == 5  # one kind only: no sums of kinds


def test_frozen_arrays_are_told_from_trained_ones_with_exact_sums():
    config = DECODERS["llama"].edit(layout=ef.Scanned())
    model = ef.quantise(filled(config), to="blocks.*.feed_forward")
    trains = ef.Except(paths=("embedding", "norm"))
    lines = [line.split() for line in ef.table(model, trains=trains).splitlines()]
    learned = ef.count(trains.of(model))
    by_name = {line[0]: line for line in lines}
    assert by_name["embedding.tokens.weight"][-4] == "frozen"
    assert by_name["feed_forward.up.weight"][-5:-3] == ["int8", "frozen"]
    assert by_name["attention.query.weight"][-5:-3] == ["float32", "trained"]
    sums = {line[0]: int(line[1].replace(",", "")) for line in lines if len(line) == 4}
    assert sums["trained"] == learned
    assert sums["trained"] + sums["frozen"] == sums["float32"] + sums["int8"] == sums["total"]
    whole = [leaf for leaf in jax.tree.leaves(model) if leaf.dtype == jnp.int8]
    assert sums["int8"] == sum(leaf.size for leaf in whole) > 0


def test_the_way_a_mesh_cuts_arrays_is_shown_with_what_a_device_holds():
    config = ef.families.gpt(vocab=16, dim=8, layers=2, heads=2, context=8)
    config = config.edit(layout=ef.Scanned())
    placement = ef.Placement(ef.make_mesh("fsdp=4,tensor=2"))
    model = placement.init(lambda key: config.build(key=key), jax.random.key(0))
    lines = [line.split() for line in ef.table(model).splitlines()]
    by_name = {line[0]: line for line in lines}
    assert by_name["feed_forward.up.weight"][1:-3] == [
        "dim=8",
        "hidden=32",
        "Linear",
        "fsdp",
        "tensor",
    ]
    assert by_name["feed_forward.down.weight"][1:-3] == [
        "hidden=32",
        "dim=8",
        "Linear",
        "tensor",
        "fsdp",
    ]
    assert by_name["norm.weight"][1:-3] == ["dim=8", "LayerNorm", "whole"]
    held = [leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(model)]
    assert by_name["on"][3] == f"{sum(held):,}"
    on_paper = placement.abstract(ef.shapes(config))
    assert ef.table(on_paper) == ef.table(model)


def test_a_model_and_its_shapes_have_the_same_table():
    assert ef.table(filled(DECODERS["gpt"])) == ef.table(ef.shapes(DECODERS["gpt"]))


def test_bytes_follow_the_type_of_numbers():
    part = ef.Linear(10, 10, bias=False, key=jax.random.key(0))
    assert ef.table(part).endswith("100  400 B")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), part)
    assert ef.table(half).endswith("100  200 B")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (497_759_232, "497.8 MB"), (14e12, "14.0 TB")],
)
def test_sizes_are_said_for_people(number, text):
    assert size(int(number)) == text


def test_a_part_without_arrays_counts_zero():
    assert ef.count(ef.Sinusoids(4)) == 0
    assert _numbers(ef.table(ef.Sinusoids(4))) == {"total": 0}
