"""The parameter table: every array once, equal blocks folded, totals that add up."""

import re

import jax
import jax.numpy as jnp
import pytest

import eqxformer as ef
from eqxformer.inspect.table import size
from tests.helpers.models import DECODERS, SEQ2SEQ, block, decoder, filled

EVERY = {**DECODERS, **SEQ2SEQ}


def _numbers(table):
    """The count of every line by its path."""
    lines = [re.split(r" {2,}", line) for line in table.splitlines()]
    return {line[0]: int(line[-2].replace(",", "")) for line in lines}


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
    row = next(line for line in lines if line.startswith("blocks.0..1.attention.key.weight"))
    assert row.split() == [
        "blocks.0..1.attention.key.weight",
        "dim=11",
        "kv_heads*head_dim=12",
        "264",
        "1.1",
        "kB",
    ]


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
