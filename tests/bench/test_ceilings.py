"""Ceilings are rates of work done; the operations of a model are counted as its paper would."""

import time

import jax
import jax.numpy as jnp
import pytest

import eqxformer as ef
from eqxformer.bench import ceilings, harness


def gpt(**more):
    sizes = {"vocab": 11, "dim": 8, "layers": 3, "heads": 2, "context": 16} | more
    return ef.families.gpt(**sizes)


def test_a_decoders_operations_are_six_per_weight_and_token_and_causal_attention():
    seq, batch, dim, layers, vocab = 16, 5, 8, 3, 11
    weights = layers * (4 * dim * dim + 2 * dim * 4 * dim) + dim * vocab
    pairs = sum(range(1, seq + 1))
    scores_and_values = layers * 2 * 2 * dim * pairs
    expected = batch * (6 * weights * seq + 3 * scores_and_values)
    assert ceilings.step_flops(gpt(), batch, seq) == expected


def test_grouped_heads_and_gates_are_counted():
    config = ef.families.llama(
        vocab=11, dim=8, layers=1, heads=4, kv_heads=2, head_dim=3, hidden=20
    )
    weights = 8 * 12 + 2 * 8 * 6 + 12 * 8 + 3 * 8 * 20 + 8 * 11
    seq = 4
    expected = 6 * weights * seq + 3 * 2 * 2 * 12 * (1 + 2 + 3 + 4)
    assert ceilings.step_flops(config, 1, seq) == expected


def test_a_narrow_tied_table_is_a_product_of_its_width_between_two_projections():
    config, seq, width = gpt(), 4, 5
    embedding = config.embedding.edit(width=width)
    head = ef.TiedHead.Config(project=ef.Linear.Config(bias=False))
    more = 8 * width + width * 11 + width * 8 - 8 * 11
    expected = ceilings.step_flops(config, 1, seq) + 6 * seq * more
    assert ceilings.step_flops(config.edit(embedding=embedding, head=head), 1, seq) == expected
    masked = config.edit(embedding=embedding, head=ef.MaskedLMHead.Config())
    assert ceilings.step_flops(masked, 1, seq) == expected


def test_an_encoder_decoder_reads_the_source_once_and_looks_at_it_in_every_layer():
    seq, source, dim, hidden, vocab = 3, 5, 8, 20, 11
    config = ef.families.transformer(vocab=vocab, dim=dim, layers=2, heads=2, hidden=hidden)
    encoder = 2 * (source * 2 * (4 * dim * dim + 2 * dim * hidden) + 4 * dim * source * source)
    own = seq * 2 * (4 * dim * dim + 2 * dim * hidden) + 4 * dim * (1 + 2 + 3)
    cross = 2 * 2 * dim * dim * (seq + source) + 4 * dim * seq * source
    expected = 3 * (encoder + 2 * (own + cross) + 2 * seq * dim * vocab)
    assert ceilings.step_flops(config, 1, seq, source=source) == expected


@pytest.mark.parametrize("kind", ["gpt", "llama", "seq2seq"])
def test_the_count_is_xlas_where_little_but_matrix_products_is_done(kind):
    sizes = {"vocab": 700, "dim": 256, "layers": 2, "heads": 4, "hidden": 1024}
    ids, source = jnp.zeros((1, 9), jnp.int32), jnp.zeros((1, 8), jnp.int32)
    if kind == "seq2seq":
        config = ef.families.transformer(**sizes)
        count = ceilings.step_flops(config, 1, 8, source=8)
        loss, batch = ef.sequence_to_sequence_loss, ef.PairBatch(source, ids)
    else:
        config = gpt(**sizes) if kind == "gpt" else ef.families.llama(**sizes)
        count = ceilings.step_flops(config, 1, 8)
        loss, batch = ef.next_token_loss, ef.TokenBatch(ids)
    lowered = jax.jit(jax.value_and_grad(loss)).lower(ef.shapes(config), batch)
    theirs = lowered.cost_analysis()["flops"]
    assert count < theirs < 1.03 * count


def test_blocks_whose_parts_are_side_by_side_are_counted_like_those_one_after_the_other():
    config = gpt()
    blocks = tuple(
        ef.ParallelBlock.Config(attention=block.attention, feed_forward=block.feed_forward)
        for block in config.blocks
    )
    flops = [ceilings.step_flops(each, 2, 8) for each in (config, config.edit(blocks=blocks))]
    assert flops[0] == flops[1]


def test_what_is_not_counted_is_refused_by_name():
    windowed = gpt().edit("blocks.*.attention", window=4)
    with pytest.raises(NotImplementedError, match="without a window.*got window=4 and MLP"):
        ceilings.step_flops(windowed, 1, 8)
    encoder = ef.families.bert(vocab=5, dim=4, layers=1, heads=1, hidden=4)
    with pytest.raises(NotImplementedError, match="a DecoderLM or an EncoderDecoder; got Encoder"):
        ceilings.step_flops(encoder, 1, 8)


def test_a_step_moves_ten_numbers_per_weight():
    weights = ef.count(ef.shapes(gpt()))
    assert ceilings.step_bytes(gpt()) == 40 * weights
    assert ceilings.step_bytes(gpt(), dtype="bfloat16") == 20 * weights


def test_rates_are_work_by_the_median_and_leave_the_candidates():
    found = {
        "eqxformer": {"median": 9.0},
        "ceiling: product": {"median": 2.0, "work": 6e9, "way": "jax"},
        "ceiling: copy": {"median": 0.5, "work": 1e9, "way": "jax"},
    }
    most = ceilings.take(found)
    assert list(found) == ["eqxformer"]
    assert {kind: facts["per_second"] for kind, facts in most.items()} == {
        "product": 3e9,
        "copy": 2e9,
    }
    assert ceilings.line(most) == "ceilings: product 3.0 GFLOP/s, copy 2.0 GB/s"


@pytest.mark.parametrize("kind", ceilings.KINDS)
def test_every_ceiling_says_its_work_and_the_faster_of_its_ways(kind, monkeypatch):
    told = {}
    monkeypatch.setattr(harness, "serve", lambda repeat, **facts: told.update(facts, repeat=repeat))
    ceilings.main([kind, "--size", "8"])
    assert told["work"] == {"product": 2 * 8**3, "copy": 2 * 4 * 8**2, "read": 4 * 8**2}[kind]
    assert told["way"] in {"product": ("jax", "numpy"), "copy": ("jax",)}.get(
        kind, ("rows", "columns")
    )
    told["repeat"]()


def test_the_fastest_way_is_taken(monkeypatch):
    told = {}
    monkeypatch.setattr(harness, "serve", lambda repeat, **facts: told.update(facts))
    ways = {"slow": lambda: time.sleep(0.02), "fast": lambda: None}
    monkeypatch.setattr(ceilings, "_products", lambda size, dtype: (ways, 1.0))
    ceilings.main(["product"])
    assert told["way"] == "fast"


def test_ceilings_are_candidates_of_the_harness(monkeypatch):
    monkeypatch.setenv("EQXFORMER_CHECKS", "0")  # for a quick start
    monkeypatch.setattr(harness, "jax_platform", jax.default_backend)  # without a process for it
    commands = ceilings.commands(("product",))
    small = {name: [*command, "--size", "16"] for name, command in commands.items()}
    most = ceilings.take(harness.compare(small, repetitions=2))
    assert most["product"]["per_second"] > 0


def test_a_step_holds_logits_only_as_far_as_the_losses_make_them_at_once():
    def needed(vocab, tokens):
        config = ef.families.gpt(vocab=vocab, dim=16, layers=2, heads=2, context=8)
        return ceilings.step_numbers(config, tokens) - 3 * ef.count(ef.shapes(config))

    assert needed(100, 5000) == 5000 * 16 * 2 + 5000 * 100
    hidden = 10**5 * 16 * 2
    assert needed(1000, 10**5) - hidden == needed(10**4, 10**5) - hidden < 10**5 * 1000


def test_a_step_does_not_hold_all_gradients_and_all_that_the_backward_pass_needs_at_once():
    config = ef.families.gpt(vocab=100, dim=16, layers=2, heads=2, context=8)
    weights = ef.count(ef.shapes(config))
    assert ceilings.step_numbers(config, tokens=1) == 4 * weights
    assert ceilings.step_numbers(config, tokens=5000) == 3 * weights + 5000 * (16 * 2 + 100)
