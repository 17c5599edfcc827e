"""Blocks run several times over equal as many blocks with equal weights."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.compare import same_bits
from tests.helpers.models import block, close, decoder, extend, filled, logits, tokens

LOCAL = block({"window": 2}, feed_forward=ef.Experts.Config(3, 2, ef.MLP.Config(hidden=5)))
GLOBAL = block({"rotary": ef.Rotary(), "head_dim": 4})
SHARED = decoder(ef.Repeated.Config(blocks=(LOCAL, GLOBAL), times=2), block({}))


@pytest.fixture(scope="module")
def shared():
    return filled(SHARED)


@pytest.fixture(scope="module")
def copied(shared):
    """The same with a copy of the weights for every run."""
    arrays = {}
    for path, leaf in ef.named_arrays(shared).items():
        head, _, rest = path.partition("blocks.0.blocks.")
        if not rest:
            arrays[path.replace("blocks.1.", "blocks.4.")] = leaf
            continue
        number, _, rest = rest.partition(".")
        arrays |= {f"{head}blocks.{2 * run + int(number)}.{rest}": leaf for run in range(2)}
    skeleton = ef.shapes(decoder(*(LOCAL, GLOBAL) * 2, block({})))
    names = ef.named_arrays(skeleton)
    assert arrays.keys() == names.keys()
    leaves = [arrays[path] for path in names]
    return jax.tree.unflatten(jax.tree.structure(skeleton), leaves)


@eqx.filter_jit
@eqx.filter_value_and_grad(has_aux=True)
def step(model, ids):
    hidden, _, losses = model.run(ids)
    return hidden.var() + losses.load_balance + losses.z, (hidden, model.logits(hidden))


@pytest.fixture(scope="module")
def stepped(shared):
    return step(shared, tokens(2, 6))


def test_they_equal_as_many_blocks_in_logits_losses_and_gradients(stepped, copied):
    (loss, outputs), gradient = stepped
    (expected, same), each = step(copied, tokens(2, 6))
    for found, wanted in zip(outputs, same, strict=True):
        close(found, wanted)
    close(loss, expected)
    each = ef.named_arrays(each)
    for path, found in ef.named_arrays(gradient).items():
        if path.startswith("blocks.0.blocks.0."):
            rest = path.removeprefix("blocks.0.blocks.0.")
            close(found, sum(np.asarray(each[f"blocks.{i}.{rest}"]) for i in (0, 2)))


def test_every_run_has_a_cache_of_its_own(shared, stepped):
    ids, cache = np.asarray(tokens(2, 6)), shared.init_cache((2,), 6)
    assert len(cache.blocks[0]) == 4
    first, cache = extend(shared, ids[:, :3], cache)
    last, cache = extend(shared, ids[:, 3:], cache)
    (_, (_, logits)), _ = stepped
    close(np.concatenate([first, last], axis=1), logits)


class Hiss(ef.AbstractBlock):
    """A block that adds random numbers, and has no weights."""

    class Config(ef.AbstractBlock.Config):
        def build(self, dim, *, source_dim=None, key):
            return Hiss()

    def run(self, x, context, *, cache=None, key=None):
        return x + jax.random.normal(key, x.shape), None, None

    def init_cache(self, batch, slots, *, source=None, dtype=jnp.float32):
        return None


def test_every_run_has_a_key_of_its_own():
    def noise(times):
        config = ef.Repeated.Config(blocks=(Hiss.Config(),), times=times)
        part = config.build(5, key=jax.random.key(0))
        return np.asarray(part(jnp.zeros((3, 5)), key=jax.random.key(1)))

    one, two, three = map(noise, (1, 2, 3))
    for a, b in [(one, two - one), (one, three - two), (two - one, three - two)]:
        assert np.abs(a - b).min() > 1e-3


def test_their_weights_are_there_once_on_disk_and_in_the_table(shared, tmp_path):
    ef.save(shared, tmp_path)
    assert same_bits(ef.load(tmp_path), shared)
    lines = ef.table(shared).splitlines()
    inside = lines[next(i for i, line in enumerate(lines) if line.startswith("blocks.0 ")) :]
    assert sum(line.startswith("  blocks.1.attention.query.weight ") for line in inside) == 1
    words = ef.leaf_axes(shared)["blocks.groups.0.blocks.0.feed_forward.experts.up.weight"]
    assert words == ("experts", "dim", "hidden")


def test_no_runs_or_no_blocks_are_refused():
    message = "`times` must be positive and `blocks` not empty; got times=0, 1 blocks."
    with pytest.raises(ValueError, match=message):
        ef.Repeated.Config(blocks=(GLOBAL,), times=0)
    with pytest.raises(ValueError, match="got times=2, 0 blocks."):
        ef.Repeated.Config(blocks=(), times=2)
    assert not SHARED.blocks[0].reads_source
    reader = block({}, cross_attention=ef.Attention.Config(heads=2))
    assert ef.Repeated.Config(blocks=(GLOBAL, reader), times=2).reads_source


def test_blocks_that_repeat_take_part_in_a_bias_for_all():
    shared = ef.RelativeBias.Config(buckets=6, max_distance=8, direction="causal")
    config = decoder(ef.Repeated.Config(blocks=(block({}),), times=2), bias=shared)
    assert logits(filled(config), tokens(1, 4)).shape == (1, 4, 13)
