"""What a step needs of a device, on paper, against what eight devices hold and send."""

import dataclasses
import math

import jax
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.training.estimate import held
from eqxformer.training.traffic import Share, scored_vocab, sent
from tests.sharding.meshes import placed

SIZES = {"vocab": 32, "dim": 16, "heads": 4, "hidden": 48}
CONFIG = ef.families.llama(**SIZES, layers=2)
ENCODER = ef.families.bert(**SIZES, layers=2, context=16)
PAIR = ef.families.transformer(**SIZES, layers=1)
FULL = ef.Precision()


def estimated(spelling, config=CONFIG, *, batch=8, length=16, **options):
    placement = ef.Placement(ef.abstract_mesh(spelling))
    return ef.estimate(config, placement, batch=batch, length=length, **options)


def activations(spelling, config=CONFIG):
    """Bytes that are sent of activations in bfloat16: of 8 rows of 16 tokens on all devices."""
    sizes = ef.Placement(ef.abstract_mesh(spelling)).sizes
    rows, length = 8 // sizes.get("expert", 1), 16 // sizes.get("sequence", 1)
    return sent(config, [], sizes, Share(rows, length, sizes.get("tensor", 1)), 2)


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


def test_what_tensor_cannot_cut_is_whole_on_every_device():
    """Three heads and an odd vocabulary; hidden units are cut, and their products summed."""
    config = ef.families.gpt(vocab=33, dim=48, layers=2, heads=3, context=16)
    alone, two = estimated("data=1", config), estimated("tensor=2", config)
    assert [two.scores, two.logits, two.kept] == [alone.scores, alone.logits, alone.kept]
    assert two.scores == 2 * 4 * 3 * 8 * 16 * 16
    assert alone.block / 2 < two.block < 0.95 * alone.block
    numbers = 8 * 16 * 48 * 2  # bytes of all tokens in bfloat16
    assert two.sent == {"tensor: products summed": numbers * (2 * 2)}
    config = ef.families.llama(vocab=33, dim=48, layers=2, heads=4, hidden=97)
    assert activations("tensor=2", config) == {"tensor: products summed": numbers * (2 * 3)}
    assert activations("tensor=5", config) == {}


def test_what_is_kept_between_blocks_is_whole_however_many_heads_of_keys_there_are():
    config = ef.families.llama(vocab=64, dim=72, layers=2, heads=9, kv_heads=3, hidden=192)
    alone, three = (estimated(mesh, config) for mesh in ("data=1", "tensor=3"))
    assert three.kept == alone.kept
    assert alone.block / 3 < three.block < 0.8 * alone.block


def test_a_device_gathers_the_keys_of_its_own_heads():
    keys = "sequence: keys and values gathered"
    alone, cut = (activations(mesh)[keys] for mesh in ("sequence=2", "sequence=2,tensor=4"))
    assert cut * 4 == alone
    config = CONFIG.edit("blocks.*.attention", kv_heads=2)
    assert activations("sequence=2,tensor=4", config)[keys] == alone / 2


def test_blocks_that_are_repeated_send_with_every_run_and_are_computed_again_together():
    block = CONFIG.blocks[0]
    inner = ef.Repeated.Config(blocks=(block,), times=2)
    one, shared, apart = (
        activations("sequence=2,tensor=2", CONFIG.edit(blocks=blocks))
        for blocks in ((block,), (ef.Repeated.Config(blocks=(inner,), times=3),), (block,) * 6)
    )
    keys, products = "sequence: keys and values gathered", "tensor: products summed"
    assert shared[keys] == apart[keys] == 6 * one[keys]
    assert apart[products] / one[products] == (6 * 5 + 2) / (5 + 2)
    assert shared[products] / one[products] == (6 * 6 - 1 + 2) / (5 + 2)


def test_blocks_that_are_repeated_have_the_weights_of_one_and_the_scores_of_all():
    once, thrice = (
        CONFIG.edit(blocks=(ef.Repeated.Config(blocks=CONFIG.blocks[:1], times=times),))
        for times in (1, 3)
    )
    for_weights = ("fsdp: weights gathered", "fsdp: gradients scattered")
    one, three = estimated("fsdp=2", once), estimated("fsdp=2", thrice)
    assert [one.sent[name] for name in for_weights] == [three.sent[name] for name in for_weights]
    assert one.weights == three.weights
    assert three.scores == 3 * one.scores == estimated("fsdp=2", thrice, remat=None).scores


def test_experts_that_are_repeated_get_tokens_with_every_run():
    def exchanged(count, times):
        mixture = ef.Experts.Config(count=count, top=2, expert=ef.MLP.Config(hidden=8))
        block = CONFIG.edit("blocks.*", feed_forward=mixture).blocks[0]
        blocks = (ef.Repeated.Config(blocks=(block,), times=times),)
        sent = activations("expert=2", CONFIG.edit(blocks=blocks))
        return sent.get("expert: tokens sent and returned", 0)

    assert exchanged(4, times=3) / exchanged(4, times=1) == (3 * 6 - 1) / 5
    assert exchanged(3, times=3) == 0  # every device holds all three


def test_scores_are_those_of_all_attentions():
    """Two in the block of a decoder that looks at a source, three in both sides together."""
    one = 2 * 4 * 4 * 8 * 16 * 16  # of 4 heads, 8 rows of 16 tokens
    assert estimated("data=1", PAIR).scores == 2 * one
    assert estimated("data=1", PAIR, remat=None).scores == 3 * one


def test_logits_are_those_of_heads_that_score_tokens():
    labels, tied = ef.SequenceHead.Config(labels=2), ef.TiedHead.Config()
    read = ef.EncoderDecoderWithHead.Config(PAIR.edit("decoder", head=tied), labels, start=0)
    masked = ef.EncoderWithHead.Config(ENCODER, tied)
    for config, vocab, sums in (
        (ENCODER, 0, 2 * 5 + 1),  # of two blocks, and of the rows of the table
        (ef.EncoderWithHead.Config(ENCODER, labels), 0, 2 * 5 + 1),
        (read, 0, 5 + 8 + 2),
        (masked, 32, 2 * 5 + 2),
        (PAIR, 32, 5 + 8 + 3),
        (CONFIG, 32, 2 * 5 + 2),
    ):
        assert scored_vocab(config) == vocab
        assert activations("tensor=2", config) == {
            "tensor: products summed": 8 * 16 * 16 * 2 * sums  # bytes of all tokens in bfloat16
        }
    assert estimated("tensor=2", ENCODER).logits == 0
    assert estimated("tensor=2", PAIR).logits == 3 * 4 * (8 * 16) * 32 / 2


def test_a_model_without_blocks_keeps_nothing_for_them():
    needed = estimated("tensor=2", ef.DecoderLM.Config(vocab=32, dim=16, blocks=()))
    assert (needed.block, needed.scores) == (0, 0)


def test_every_kind_of_model_of_tokens_is_estimated_and_others_are_refused():
    labels = ef.SequenceHead.Config(labels=2)
    for config in (ENCODER, ef.EncoderWithHead.Config(ENCODER, labels), PAIR):
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
