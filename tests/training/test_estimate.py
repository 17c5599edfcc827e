"""What a step needs of a device, on paper, against what eight devices hold and send."""

import dataclasses
import math

import jax
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.training.estimate import held
from eqxformer.training.traffic import Share, sent
from tests.sharding.meshes import placed

CONFIG = ef.families.llama(vocab=32, dim=16, layers=2, heads=4, hidden=48)
FULL = ef.Precision()


def estimated(spelling, config=CONFIG, *, batch=8, length=16, **options):
    placement = ef.Placement(ef.abstract_mesh(spelling))
    return ef.estimate(config, placement, batch=batch, length=length, **options)


def on_a_device(tree):
    """Bytes that the first device holds."""
    first = jax.devices()[0]
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    shards = [shard for x in arrays for shard in x.addressable_shards if shard.device == first]
    return sum(shard.data.nbytes for shard in shards)


@pytest.mark.parametrize("spelling", ["data=8", "fsdp=8", "fsdp=2,tensor=4"])
@pytest.mark.parametrize("optimizer", [ef.AdamW(), ef.Adafactor(least=8)])
def test_weights_and_optimizer_are_what_devices_hold(spelling, optimizer):
    placement, chain = placed(spelling), optimizer.build(1)
    skeleton = ef.shapes(CONFIG.edit(layout=ef.Scanned()))
    shapes = ef.abstract_state(skeleton, chain, placement)
    zeros = jax.tree.map(
        lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding),
        (shapes.model, shapes.optimizer),
    )
    needed = estimated(spelling, optimizer=optimizer)
    assert needed.weights == needed.gradients == on_a_device(zeros[0]) == held(zeros[0])
    assert needed.optimizer == on_a_device(zeros[1])


def test_gradients_have_the_type_of_the_parameters_whatever_metrics_have():
    halves = ef.Precision(parameters="bfloat16", compute="bfloat16")
    assert estimated("fsdp=8", precision=halves).gradients * 2 == estimated("fsdp=8").gradients
    output = ef.Precision(output="bfloat16")
    assert estimated("fsdp=8", precision=output).gradients == estimated("fsdp=8").gradients


def test_memory_is_the_sum_of_its_parts_and_scores_are_counted_apart():
    needed = estimated("fsdp=8")
    parts = dataclasses.asdict(needed)
    del parts["scores"], parts["sent"], parts["whole"]
    assert needed.memory == sum(parts.values())
    assert needed.scores == 2 * 4 * 4 * 1 * 16 * 16  # float32, 4 heads, one row of 16 tokens


def test_what_is_kept_grows_with_tokens_and_shrinks_with_what_is_computed_again():
    again, all_kept = estimated("fsdp=8"), estimated("fsdp=8", remat=None)
    assert all_kept.kept > 4 * again.kept
    assert estimated("fsdp=8", batch=16).kept == pytest.approx(2 * again.kept, rel=1e-3)
    assert estimated("fsdp=8", length=32).kept == pytest.approx(2 * again.kept, rel=1e-3)
    inputs = 2 * 16 * 16 * 2  # of two blocks: 16 tokens of 16 numbers in bfloat16
    assert inputs < again.kept < 6 * inputs
    assert estimated("fsdp=2,tensor=4", batch=2).block < 0.7 * again.block


def test_what_is_sent_follows_from_the_sizes():
    """Of a model of one matrix on four devices: gathered twice, its gradient scattered once."""
    linear = ef.Linear.Config(bias=False)
    skeleton = jax.eval_shape(lambda: linear.build(8, 4, key=jax.random.key(0)))
    body = ef.DecoderLM.Config(vocab=4, dim=8, blocks=())
    for spelling, wanted in (
        ("fsdp=4", {"fsdp: weights gathered": 2 * 96, "fsdp: gradients scattered": 96}),
        ("data=4", {"gradients summed": 2 * 96}),
        (
            "data=2,fsdp=2",
            {
                "fsdp: weights gathered": 128,
                "fsdp: gradients scattered": 64,
                "gradients summed": 64,
            },
        ),
    ):
        placement = ef.Placement(ef.abstract_mesh(spelling))
        places = placement.places(skeleton)
        assert sent(body, places, placement.sizes, Share(1, 1, 1), 4) == wanted


def test_products_keys_and_tokens_are_sent_by_the_axes_that_cut_them():
    tensor = estimated("data=4,tensor=2", batch=4, precision=FULL).sent
    tokens = 4 * 16 * 16  # bytes of the 16 tokens that a device has
    assert tensor["tensor: products summed"] == 2 / 2 * tokens * (2 * 5 + 2)
    sequence = estimated("data=2,sequence=4", batch=2, precision=FULL).sent
    assert sequence["sequence: keys and values gathered"] == 3 * 3 * (4 * 4) * 32 * 2
    mixture = ef.Experts.Config(count=4, top=2, expert=ef.MLP.Config(hidden=8))
    config = CONFIG.edit("blocks.*", feed_forward=mixture)
    expert = estimated("data=2,expert=4", config, batch=8, precision=FULL).sent
    assert expert["expert: tokens sent and returned"] == 5 * 3 * tokens * 2


def test_every_kind_of_model_of_tokens_is_estimated_and_others_are_refused():
    encoder = ef.families.bert(vocab=32, dim=16, layers=2, heads=4, hidden=48, context=8)
    labels = ef.SequenceHead.Config(labels=2)
    pair = ef.families.transformer(vocab=32, dim=16, layers=1, heads=4, hidden=48)
    for config in (encoder, ef.EncoderWithHead.Config(encoder, labels), pair):
        needed = estimated("fsdp=2,tensor=4", config, batch=2)
        total = sum(math.prod(x.shape) for x in jax.tree.leaves(ef.shapes(config)))
        assert total / 8 < needed.weights / 4 < total / 4  # vectors are whole in part
    with pytest.raises(NotImplementedError, match="Estimated are decoders, encoders and"):
        estimated("data=8", ef.preset("whisper-tiny"))
    with pytest.raises(ValueError, match=r"rows of a batch .* multiple of fsdp=64.*got 12"):
        estimated("fsdp=64", batch=12)
    with pytest.raises(ValueError, match=r"tokens of a row .* multiple of sequence=3.*got 16"):
        estimated("sequence=3")
    whole = estimated("tensor=8", CONFIG).whole
    assert whole == [
        "blocks.*.attention.query.weight, blocks.*.attention.out.weight: "
        "heads=4 is not a multiple of tensor=8",
        "blocks.*.attention.key.weight, blocks.*.attention.value.weight: "
        "kv_heads=4 is not a multiple of tensor=8",
    ]
