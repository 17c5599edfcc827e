"""On a CPU, gradients are made of some rows at a time: the same, in less memory."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.losses.tokens import objective_of
from eqxformer.training import accumulation
from eqxformer.training.accumulation import few_rows, rows_at_once
from eqxformer.training.flat import Flat
from eqxformer.training.watching import first_fault
from tests.helpers.compare import assert_close, same_bits
from tests.helpers.models import filled
from tests.training.test_accumulation import decoder, seq2seq, shallow

ROWS, SEQ = 120, 33  # a decoder reads 32 tokens of each row: 30 rows are the most that fit
DRAW = np.random.default_rng(0)
TOKENS = DRAW.integers(0, 11, (ROWS, SEQ)).astype(np.int32)
ENDS = DRAW.integers(0, SEQ, (ROWS, 1)) * (np.arange(ROWS) % 7 > 0)[:, None]  # some are empty
BEFORE, BEHIND = np.arange(SEQ) < ENDS, np.arange(SEQ) >= SEQ - ENDS
BATCHES = {
    "all tokens": ef.TokenBatch(TOKENS),
    "padding behind": ef.TokenBatch(TOKENS, BEFORE),
    "padding before": ef.TokenBatch(TOKENS, valid=BEHIND),
    "packed": ef.TokenBatch(TOKENS, segments=np.cumsum(DRAW.random((ROWS, SEQ)) < 0.1, axis=1)),
    "pairs": ef.PairBatch(TOKENS, TOKENS[:, ::-1], source_valid=BEHIND, target_weights=BEFORE),
}
LOSSES = {
    "pairs": ef.SequenceToSequence(label_smoothing=0.1),
    "all tokens of a function": ef.next_token_loss,
}


@functools.cache
def wide():
    return filled(ef.families.gpt(vocab=11, dim=8, layers=1, heads=2, context=64))


MODELS = {"pairs": seq2seq, "all tokens of a function": shallow}


def temporary(step, state, batch):
    """Bytes that the compiled step needs beside its arguments."""
    return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes


OPTIMIZER = ef.SGD(0.5, momentum=0.9, clip=ef.ClipByNorm(0.5)).build(steps=2)


@pytest.mark.parametrize("name", [*BATCHES, "all tokens of a function"])
def test_the_step_is_that_of_all_rows_at_once(name):
    loss = LOSSES.get(name, ef.NextToken(z_loss=0.01))
    batch, model = BATCHES.get(name, BATCHES["all tokens"]), MODELS.get(name, wide)()
    at_once = rows_at_once(loss, model, batch)
    assert at_once in range(2, ROWS // 2)

    def trained(microbatch):
        state = ef.TrainState.create(model, OPTIMIZER, key=jax.random.key(1))
        step = ef.make_step(loss, OPTIMIZER, microbatch=microbatch)
        needed = temporary(step, state, batch)
        for _ in range(2):
            state, metrics = step(state, batch)
        return (state.model, state.optimizer, metrics), needed

    (found, few), (wanted, many) = trained(None), trained(ROWS)
    assert set(found[2]) == {"loss", "gradient_norm"}
    assert_close(found, wanted, 2e-5)
    assert few < 0.6 * many


def test_it_is_what_a_microbatch_of_so_many_rows_does():
    """Bit by bit, with the random numbers of each."""
    embedding = ef.InputEmbedding.Config(dropout=0.3)
    model = filled(ef.DecoderLM.Config(vocab=11, dim=8, blocks=(), embedding=embedding))
    batch = BATCHES["all tokens"]
    rows = rows_at_once(ef.next_token_loss, model, batch)

    def stepped(microbatch):
        state = ef.TrainState.create(model, OPTIMIZER, key=jax.random.key(1))
        return ef.make_step(ef.next_token_loss, OPTIMIZER, microbatch=microbatch)(state, batch)

    found, wanted, other = (stepped(each) for each in (None, rows, 2 * rows))
    assert same_bits(found[1], wanted[1])
    assert other[1]["loss"] != wanted[1]["loss"]


BALANCED = ef.NextToken(load_balance=0.5, router_z=0.1)
balanced_step = functools.cache(lambda rows: ef.make_step(BALANCED, OPTIMIZER, microbatch=rows))
balanced_slopes = eqx.filter_jit(
    eqx.filter_value_and_grad(lambda model, batch: BALANCED(model, batch).mean)
)


@pytest.mark.parametrize("padding", [BEFORE, BEHIND])
def test_the_balance_of_experts_is_that_of_all_rows(padding):
    """Balance is no sum over rows, so that a mixture of experts learns from all at once."""
    tokens, valid = (np.concatenate([a[:, :9], a[:, 9:18]]) for a in (TOKENS, padding))
    model, batch = decoder(experts=True), ef.TokenBatch(tokens, valid=valid)
    assert rows_at_once(BALANCED, model, batch) is not None
    (new, metrics), (other, _) = (
        balanced_step(rows)(ef.TrainState.create(model, OPTIMIZER, key=jax.random.key(1)), batch)
        for rows in (None, 12)
    )
    wanted, slopes = balanced_slopes(model, batch)
    assert_close(metrics["loss"], wanted, 1e-6)
    squares = sum(np.square(leaf).sum() for leaf in map(np.asarray, jax.tree.leaves(slopes)))
    assert_close(metrics["gradient_norm"], np.sqrt(squares), 1e-5)
    routers = [m.blocks[0].feed_forward.router.weight for m in (new.model, other.model)]
    assert not np.allclose(*routers, rtol=1e-4)


class Together(ef.Objective):
    """A loss whose rows depend on one another."""

    @property
    def splits(self):
        return False

    def __call__(self, model, batch, /, *, key=None):
        return ef.Loss(jnp.sum(model.embedding.tokens.weight) * batch.tokens.mean(), jnp.ones(()))


class Plain(Together):
    """The same, said to be a sum of its rows."""

    @property
    def splits(self):
        return True


class Shared(eqx.Module):
    """A batch of one's own, whose rows have their places in common."""

    tokens: np.ndarray
    places: np.ndarray

    @property
    def token_count(self):
        return self.tokens.size


SQUARE = np.zeros((64, 64), np.int32)
WHOLE = {
    "a function of which nothing is known": (lambda m, b, key=None: 0.0, BATCHES["all tokens"]),
    "rows that depend on one another": (Together(), BATCHES["all tokens"]),
    "a batch without a count of tokens": (Plain(), {"tokens": TOKENS}),
    "a single sequence": (Plain(), ef.TokenBatch(np.zeros(5001, np.int32))),
    "a single row": (Plain(), ef.TokenBatch(np.zeros((1, 5001), np.int32))),
    "few tokens": (Plain(), ef.TokenBatch(TOKENS[:15])),
    "a prime number of short rows": (Plain(), ef.TokenBatch(np.zeros((127, 33), np.int32))),
    "places that all rows share": (Plain(), Shared(TOKENS, np.arange(SEQ))),
    "places that might be rows": (Plain(), Shared(SQUARE, SQUARE[0])),
    "no arrays": (Plain(), None),
}


@pytest.mark.parametrize("case", WHOLE)
def test_all_rows_are_taken_at_once_where_they_may_belong_together(case):
    loss, batch = WHOLE[case]
    assert rows_at_once(loss, shallow(), batch) is None


def test_labels_of_rows_and_pairs_of_answers_are_split():
    labels = ef.LabelledBatch(TOKENS, labels=TOKENS[:, 0])
    assert rows_at_once(Plain(), shallow(), labels) == 30
    both = ef.PreferenceBatch(BATCHES["padding behind"], BATCHES["all tokens"])
    assert rows_at_once(Plain(), shallow(), both) == 15


@pytest.mark.parametrize(
    ("rows", "tokens", "weights", "wanted"),
    [
        (128, 32, 600_000, 32),  # 1024 tokens
        (24, 64, 800_000, 12),
        (16, 256, 10_700_000, 4),
        (8, 1024, 124_000_000, 1),
        (8, 256, 93_000_000, 4),
        (4, 225, 93_000_000, None),  # 930 tokens are not divided
        (64, 256, 1_000_000_000, 32),
        (8, 100_000, 1, 1),  # a row is not cut
        (8, 64, 1, None),  # all of them fit
        (1, 5000, 1, None),
        (127, 32, 1, None),  # single rows of 32 tokens would take longer than all
        (127, 128, 1, 1),
        (100, 0, 1, None),
    ],
)
def test_pieces_are_worth_what_they_cost(rows, tokens, weights, wanted):
    assert few_rows(rows, tokens, weights) == wanted


@pytest.mark.parametrize(("kept", "wanted"), [(True, 6), (False, None)])
def test_what_the_process_keeps_the_memory_of_is_not_divided(kept, wanted, monkeypatch):
    monkeypatch.setattr(accumulation, "programs_are_kept", lambda: kept)
    assert few_rows(12, 64, 800_000) == wanted  # 768 tokens
    assert few_rows(8, 64, 1) is None


def test_who_asks_for_all_rows_gets_them():
    batch = BATCHES["all tokens"]
    state = ef.TrainState.create(shallow(), OPTIMIZER, key=jax.random.key(1))

    def loops(**options):
        step = ef.make_step(ef.next_token_loss, OPTIMIZER, **options)
        return step.lower(state, batch).as_text().count("stablehlo.while")

    assert loops() == loops(microbatch=30) == 1
    assert loops(microbatch=ROWS) == loops(microbatch=1000) == 0


def test_a_function_that_wraps_a_loss_or_holds_an_objective_is_not_taken_for_it():
    @functools.wraps(ef.next_token_loss)
    def punished(model, batch, *, key=None):
        return 2.0 * ef.next_token_loss(model, batch, key=key)

    class Doubled(eqx.Module):
        objective: ef.NextToken = ef.NextToken()

        def __call__(self, model, batch, /, *, key=None):
            return 2.0 * self.objective(model, batch, key=key).mean

    assert objective_of(ef.next_token_loss) == ef.NextToken()
    assert objective_of(ef.sequence_to_sequence_loss) == ef.SequenceToSequence()
    pairs = (seq2seq(), BATCHES["pairs"])
    assert rows_at_once(ef.sequence_to_sequence_loss, *pairs) == 15
    assert rows_at_once(ef.SequenceToSequence(), *pairs) == 15
    losses = []
    for loss in (ef.next_token_loss, punished, Doubled()):
        state = ef.TrainState.create(shallow(), OPTIMIZER, key=jax.random.key(1))
        losses.append(ef.make_step(loss, OPTIMIZER)(state, BATCHES["all tokens"])[1]["loss"])
    assert objective_of(punished) is objective_of(Doubled()) is None
    np.testing.assert_allclose(losses[1:], 2.0 * losses[0], rtol=1e-5)


def test_penalties_are_named_and_stay_so_in_sums():
    plain = ef.Loss(jnp.array(6.0), jnp.array(2.0), {"accuracy": jnp.array(1.0)})
    punished = plain.plus({"z": jnp.array(0.5)}).plus({"y": jnp.array(0.5)})
    assert plain.penalties == frozenset()
    assert punished.penalties == (plain + punished).penalties == {"y", "z"}


def test_where_the_arrays_lie_decides(monkeypatch):
    class Elsewhere:
        platform = "gpu"

    monkeypatch.setattr(jax, "local_devices", lambda: [Elsewhere()])
    assert Flat.of(jnp.ones(3)).on_cpu
    assert not Flat.of(np.ones(3)).on_cpu
    monkeypatch.undo()
    assert Flat.of(np.ones(3)).on_cpu == (jax.default_backend() == "cpu")


def test_a_mesh_takes_all_of_its_rows_at_once():
    placement = ef.Placement(ef.make_mesh("data=2", devices=jax.devices()[:2]))
    state = ef.TrainState.create(placement.put(shallow()), OPTIMIZER, key=jax.random.key(1))
    batch = placement.batch(BATCHES["all tokens"])
    step = ef.make_step(ef.next_token_loss, OPTIMIZER)
    assert "stablehlo.while" not in step.lower(state, batch).as_text()


def test_what_broke_is_sought_in_the_rows_that_were_made_at_once():
    model = ef.patch(shallow(), {"head": lambda x: x / 0.0})
    state = ef.TrainState.create(model, OPTIMIZER, key=jax.random.key(1))
    fault = first_fault(ef.Watch(), ef.next_token_loss, state, BATCHES["all tokens"])
    assert "float32[30, 32" in str(fault)
