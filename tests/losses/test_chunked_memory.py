"""What cross-entropy in chunks asks of memory and of the wires between devices."""

import functools
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eqxformer as ef
from tests.helpers.hot import drawn

VOCAB, DIM, CHUNK = 1511, 8, 16


@pytest.fixture(autouse=True, scope="module")
def compiled_well():
    """What stays in memory is for XLA's optimisations to decide."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


def arrays(tokens, sharding=(None, None)):
    spread, whole = sharding
    hidden = jax.ShapeDtypeStruct((4, tokens // 4, DIM), jnp.float32, sharding=spread)
    table = jax.ShapeDtypeStruct((VOCAB, DIM), jnp.float32, sharding=whole)
    return hidden, table, jax.ShapeDtypeStruct(hidden.shape[:-1], jnp.int32, sharding=spread)


@functools.cache
def compiled(*arrays, tied=False, **options):
    embedding = drawn(ef.Embedding.Config(), VOCAB, DIM)

    def loss(hidden, table, targets):
        named = eqx.tree_at(lambda each: each.weight, embedding, table)
        head = named.attend if tied else lambda x: x @ table.T
        return ef.cross_entropy_of(hidden, head, targets, **options).mean

    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()


def temporaries(program):
    return program.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_tokens_times_vocabulary():
    few, many = (temporaries(compiled(*arrays(n), chunk=CHUNK)) for n in (128, 512))
    a_token = 4 * 6 * DIM  # hidden states and their gradients, cut into chunks and joined
    assert many - few < (512 - 128) * a_token
    chunk, head = 4 * CHUNK * VOCAB, 4 * VOCAB * DIM
    assert chunk < few < 1.3 * chunk + 4 * head
    assert temporaries(compiled(*arrays(512))) > 4 * 512 * VOCAB


def test_a_tied_table_is_read_as_it_lies():
    """XLA would make one copy of its transpose for all chunks, and of a generation's steps."""
    shapes, head = arrays(128), 4 * VOCAB * DIM
    plain, tied = (temporaries(compiled(*shapes, chunk=CHUNK, tied=t)) for t in (False, True))
    assert tied < plain - 0.9 * head


def test_powers_are_not_left_to_the_library_of_products():
    text = compiled(*arrays(128), chunk=CHUNK).as_text()
    bodies = dict(re.findall(r"^%(\S+) [^\n]*\{\n(.*?)^\}", text, re.DOTALL | re.MULTILINE))
    taken = re.findall(r"calls=%(\S+?),[^\n]*__ynn_fusion", text)
    assert any("exponential(" in body for body in bodies.values())
    assert not any("exponential(" in bodies[name] for name in taken)


@pytest.mark.parametrize("tokens", [64, 72])
def test_no_array_of_the_program_is_larger_than_the_logits_of_a_chunk(tokens):
    text = compiled(*arrays(tokens), chunk=CHUNK, label_smoothing=0.1, z_loss=0.1).as_text()
    sizes = {tuple(map(int, s.split(","))) for s in re.findall(r"\w+\[([\d,]+)\]", text)}
    wide = {size for size in sizes if VOCAB in size and DIM not in size}
    assert wide
    for size in wide - {(VOCAB,)}:
        assert size[0] <= CHUNK


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_batch_over_several_devices_gathers_neither_logits_nor_hidden_states(kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType[kind],))
    spread = NamedSharding(mesh, PartitionSpec("data"))
    whole = NamedSharding(mesh, PartitionSpec())
    program = compiled(*arrays(64, (spread, whole)), chunk=CHUNK)
    text = program.as_text()
    assert "all-gather" not in text
    assert "all-to-all" not in text
    assert f"f32[{CHUNK // 4},{VOCAB}]" in text
    assert f"f32[{CHUNK},{VOCAB}]" not in text
    gradient, head = program.output_shardings[1]
    assert gradient.spec[0] == "data"
    assert head.is_fully_replicated
