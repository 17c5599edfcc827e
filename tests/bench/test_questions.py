"""The questions of `eqxformer bench`: what they do, and how much work they say that is."""

import jax
import jax.numpy as jnp
import pytest

import eqxformer as ef
from eqxformer.bench import asking
from eqxformer.bench.asking import summary
from eqxformer.bench.ceilings import step_flops
from eqxformer.bench.questions import QUESTIONS, Setting, askable, prepare, repeated
from eqxformer.bench.report import report
from eqxformer.bench.sizes import SIZES, size

TINY = ef.families.gpt(vocab=13, dim=8, layers=1, heads=2, context=16)
SETTING = Setting(TINY, batch=3, seq=8)
WINDOWED = ef.families.llama(vocab=13, dim=8, layers=1, heads=2, hidden=8, kv_heads=1).edit(
    "blocks.*.attention", window=3
)
LATENT = TINY.edit(
    "blocks.*",
    attention=ef.LatentAttention.Config(heads=2, latent=4, head_dim=4, rotary_dim=2),
)


@pytest.mark.parametrize(
    ("question", "dtype"),
    [(name, "float32") for name in QUESTIONS if name != "train"] + [("decode", "bfloat16")],
)
def test_a_question_can_be_asked_again_and_again(question, dtype):
    work = prepare(question, SETTING._replace(dtype=dtype))
    for _ in range(2):
        for leaf in jax.tree.leaves(work.call()):
            assert jnp.all(jnp.isfinite(leaf)), question


def test_a_training_step_goes_on_from_the_one_before():
    work = prepare("train", SETTING)
    losses = [float(work.call()) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_tokens_are_those_that_are_read_or_made():
    tokens = {name: prepare(name, SETTING).tokens for name in QUESTIONS}
    # Behind 4 tokens come 4 more, the first of which follows from the prompt without a pass.
    assert tokens == {"train": 24, "forward": 24, "prefill": 24, "decode": 9, "attention": 24}
    assert prepare("decode", SETTING).parts == 3


def test_decode_makes_the_tokens_it_counts():
    made = prepare("decode", SETTING).call()
    assert made.shape == (3, 8)


def test_operations_are_those_of_the_ceilings():
    whole = step_flops(TINY, 3, 8)
    assert prepare("train", SETTING).flops == whole
    assert prepare("forward", SETTING).flops == pytest.approx(whole / 3)
    head = 2 * 8 * 13  # of a token; a prompt needs the last one's alone
    assert prepare("prefill", SETTING).flops == pytest.approx(whole / 3 - 3 * 7 * head)


def test_a_window_hides_pairs_from_the_count_of_attention():
    setting = Setting(WINDOWED, batch=3, seq=8)
    pairs = 1 + 2 + 6 * 3
    assert prepare("attention", setting).flops == 3 * 4 * 3 * 8 * pairs
    assert prepare("forward", setting).flops is None  # nobody counts those of a windowed model


def test_a_step_of_decode_reads_the_weights_once_and_every_row_of_the_cache():
    weights = ef.count(ef.shapes(TINY)) - 16 * 8  # the table of tokens is the head, too
    cache = 2 * 8 * 3 * (4 + 4 // 2)  # keys and values in the middle of the way
    assert prepare("decode", SETTING).read == 3 * 4 * (weights + cache)
    half = SETTING._replace(dtype="bfloat16")
    assert prepare("decode", half).read == 3 * 2 * (weights + cache)


def narrow():
    """A decoder whose token table is narrower than itself, as OPT-350m's."""
    project = ef.Linear.Config(bias=False)
    embedding = TINY.embedding.edit(width=4, project=project, projected="tokens")
    return TINY.edit(embedding=embedding, head=ef.TiedHead.Config(project=project))


def test_a_narrow_table_is_read_at_its_width_with_the_projections_at_both_of_its_sides():
    setting = SETTING._replace(config=narrow())
    weights = ef.count(ef.shapes(narrow())) - 16 * 8  # all but the positions, which are looked up
    assert prepare("decode", setting).read == 3 * 4 * (weights + 2 * 8 * 3 * 6)
    lost = prepare("forward", setting).flops - prepare("prefill", setting).flops
    assert lost == 3 * 7 * 2 * (8 * 4 + 4 * 13)


def test_a_row_reads_the_experts_that_it_is_sent_to_and_of_several_rows_nobody_knows_which():
    experts = ef.Experts.Config(count=4, top=2, expert=ef.MLP.Config(hidden=8))
    config = TINY.edit("blocks.*", feed_forward=experts)
    one = 2 * 8 * 8 + 2 * 8
    weights = ef.count(ef.shapes(config)) - 16 * 8 - 2 * one
    setting = Setting(config, batch=1, seq=8)
    assert prepare("decode", setting).read == 3 * 4 * (weights + 2 * 8 * 6)
    assert prepare("decode", setting._replace(batch=2)).read is None
    every = config.edit("blocks.*.feed_forward", top=4)
    setting = Setting(every, batch=2, seq=8)
    assert prepare("decode", setting).read == 3 * 4 * (weights + 2 * one + 2 * 8 * 2 * 6)


def test_nothing_is_measured_of_latent_attention_alone():
    setting = Setting(LATENT, batch=3, seq=8)
    assert askable(setting) == ("train", "forward", "prefill", "decode")
    assert askable(SETTING) == tuple(QUESTIONS)
    with pytest.raises(ValueError, match="only `Attention` is measured alone; .*`LatentAttention`"):
        prepare("attention", setting)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "`batch` must be at least 1; got 0"),
        ({"seq": 3}, "`seq` must be at least 4; got 3"),
        ({"seq": 17}, "`seq` must be at most the model's 16 positions; got 17"),
        ({"batch": 10**13}, "needs at least .* and there is memory of .*smaller"),
        ({"config": TINY.blocks[0]}, "Only a DecoderLM is measured; this is of type Block"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        prepare("train", SETTING._replace(**change))


def test_an_unknown_question_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no question `speed`; the questions are train, forward"):
        prepare("speed", SETTING)


def test_a_repetition_is_as_many_calls_as_take_a_while(monkeypatch):
    work = prepare("attention", SETTING)
    calls = []
    counted = work._replace(call=lambda: calls.append(1) or jnp.zeros(()))
    repeat, number = repeated(counted)
    before = len(calls)
    repeat()
    assert len(calls) - before == number > 1


@pytest.mark.parametrize("name", SIZES)
def test_every_size_can_be_asked_everything(name):
    config, batch, seq = size(name)
    setting = Setting(config, batch, seq)
    setting.check()
    assert askable(setting) == tuple(QUESTIONS)
    assert step_flops(config, batch, seq) > 0


def test_an_unknown_size_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="no size `huge`; the sizes are vpj, nano, baby, gpt2"):
        size("huge")


class Stopped(asking.Candidate):
    """A candidate at whose fourth repetition somebody types Ctrl-C."""

    def __init__(self, *given, **how):
        self.done = 0

    def __exit__(self, *unused):
        pass

    def kill(self):
        pass

    def facts(self):
        return FACTS

    def seconds(self):
        self.done += 1
        if self.done == 4:
            raise KeyboardInterrupt
        return float(self.done)


def test_ctrl_c_gives_what_the_question_comes_to_so_far(monkeypatch):
    monkeypatch.setattr(asking, "Candidate", Stopped)
    found = asking.ask(["train", "decode"], {}, repetitions=7, compared=False)
    question, result = next(found)
    assert (question, result["repetitions"], result["median"]) == ("train", 3, 2.0 / 5)
    with pytest.raises(KeyboardInterrupt):
        next(found)


FACTS = {
    "parts": 5,
    "tokens": 20,
    "flops": 8e9,
    "read": 4e9,
    "first_seconds": 3.0,
    "peak_memory_bytes": 2_000_000,
    "machine": {},
}


def test_a_summary_is_of_one_part_and_of_the_ceiling_of_its_kind():
    found = summary("decode", FACTS, [1.0, 2.0, 4.0], [4e9, 8e9, 8e9])
    assert (found["of"], found["median"], found["tokens_per_second"]) == ("token", 0.4, 10.0)
    assert (found["bytes_per_second"], found["share_of_ceiling"]) == (2e9, 0.25)
    assert found["quartiles"] == [0.3, 0.6]
    found = summary("train", FACTS, [1.0, 2.0, 4.0], [16e9, 16e9, 16e9])
    assert (found["flops_per_second"], found["share_of_ceiling"]) == (4e9, 0.25)


def test_without_a_ceiling_or_a_count_there_is_no_share():
    assert "share_of_ceiling" not in summary("train", FACTS, [1.0, 2.0], [])
    assert "share_of_ceiling" not in summary("train", {**FACTS, "flops": None}, [1.0, 2.0], [1e9])


MACHINE = {"platform": "gpu", "device": "Fast One", "processor": "a chip", "cores": 8}


def test_the_report_is_a_table_where_there_is_room_and_paragraphs_where_there_is_not():
    found = {"decode": summary("decode", FACTS, [1.0, 2.0, 4.0], [8e9] * 3)}
    wide, narrow = (report(found, MACHINE, width) for width in (100, 40))
    row = " ".join(wide.splitlines()[1].split())
    assert row == "decode 400 ms a token 300-600 ms 10 25% of 8 GB/s 2.0 MB"
    assert "  of the ceiling: 25% of 8 GB/s\n  memory: 2.0 MB\n" in narrow
    assert max(map(len, narrow.splitlines())) <= 48
    assert "medians of 3 on Fast One (a chip, 8 cores)" in wide
