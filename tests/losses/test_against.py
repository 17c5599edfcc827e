"""Losses that hold a frozen model, and losses in steps, microbatches, pieces and real models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.losses import chunked
from eqxformer.losses.distillation import divergence
from eqxformer.losses.objective import Answer
from eqxformer.training.accumulation import accumulated
from tests.helpers.compare import assert_close, same_bits
from tests.helpers.models import filled
from tests.helpers.programs import primitives

ROWS, SEQ, VOCAB = 5, 7, 13
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (ROWS, SEQ)).astype(np.int32)
RAGGED = np.arange(SEQ) < np.array([7, 3, 5, 0, 6])[:, None]


class Small(eqx.Module):
    """A decoder that sees two tokens, with hidden states of its own."""

    table: jax.Array
    mix: jax.Array
    out: jax.Array

    def __init__(self, seed, dim=6):
        random = np.random.default_rng(seed)
        shapes = ((VOCAB, dim), (dim, dim), (dim, VOCAB))
        drawn = (jax.device_put(np.float32(random.standard_normal(s))) for s in shapes)
        self.table, self.mix, self.out = drawn

    def run(self, tokens, *, key=None):
        x = self.table[tokens]
        return x + jnp.tanh(jnp.roll(x, 1, axis=-2) @ self.mix), None

    def logits(self, hidden):
        return hidden @ self.out


class Noisy(Small):
    """The same with noise where it gets a key, as dropout makes it."""

    def run(self, tokens, *, key=None):
        x, _ = super().run(tokens)
        return (x if key is None else x + jax.random.normal(key, x.shape)), None


STUDENT, TEACHER = Small(1), Small(2, dim=4)
BATCH = ef.TokenBatch(TOKENS, RAGGED)
PREFERENCES = ef.PreferenceBatch(BATCH, ef.TokenBatch(TOKENS[:, ::-1].copy(), RAGGED))
COMPARISONS = {
    "distillation": (ef.Distillation(soft=0.6).against(TEACHER), BATCH),
    "preference": (ef.DirectPreference(beta=2.0).against(TEACHER), PREFERENCES),
}


@eqx.filter_jit
def measured(loss, model, batch):
    return eqx.filter_value_and_grad(lambda m: loss(m, batch).mean)(model)


class Watched(eqx.Module):
    """A loss that notes whether the arrays it holds are arguments or constants of a program."""

    loss: ef.Against
    seen: list = eqx.field(static=True)

    def __call__(self, model, batch, /, *, key=None):
        arrays = jax.tree.leaves(eqx.filter(self.loss.frozen, eqx.is_array))
        self.seen.append([isinstance(x, jax.core.Tracer) for x in arrays])
        return self.loss(model, batch, key=key)


@pytest.mark.parametrize("case", COMPARISONS)
def test_a_frozen_model_is_an_argument_of_a_step_and_stays_as_it_was(case):
    loss, batch = COMPARISONS[case]
    watched, before = Watched(loss, []), jax.tree.map(jnp.copy, eqx.filter(TEACHER, eqx.is_array))
    optimizer = ef.AdamW(1e-2).build(steps=3)
    state = ef.TrainState.create(STUDENT, optimizer, key=jax.random.key(0))
    step, losses = ef.make_step(watched, optimizer), []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    assert len(watched.seen) == 1  # traced once
    assert len(watched.seen[0]) == 3
    assert all(watched.seen[0])
    assert same_bits(eqx.filter(TEACHER, eqx.is_array), before)
    found = ef.evaluator(watched)(STUDENT, [batch])
    assert_close(found.mean, losses[0], 1e-6)
    assert all(watched.seen[1])


@pytest.mark.parametrize("case", COMPARISONS)
def test_no_gradient_goes_into_the_frozen_model(case):
    loss, batch = COMPARISONS[case]
    slopes = eqx.filter_jit(eqx.filter_grad(lambda held: held(STUDENT, batch).mean))(loss)
    assert not any(slope.any() for slope in jax.tree.leaves(slopes))


def test_a_key_is_for_the_model_and_not_for_the_frozen_one():
    comparison, key = ef.Distillation(), jax.random.key(0)
    loss = eqx.filter_jit(lambda frozen, model: comparison.against(frozen)(model, BATCH, key=key))
    quiet = eqx.filter_jit(comparison.against(TEACHER))(STUDENT, BATCH)
    assert_close(loss(Noisy(2, dim=4), STUDENT).total, quiet.total, 1e-6)
    assert loss(TEACHER, Noisy(1)).total != loss(TEACHER, STUDENT).total


@pytest.mark.parametrize("case", COMPARISONS)
def test_pieces_of_sequences_give_the_loss_of_the_whole(case, monkeypatch):
    loss, batch = COMPARISONS[case]

    def program(model):
        return loss(model, batch).mean

    whole = measured(loss, STUDENT, batch)
    assert primitives(program, STUDENT)["scan"] == 0
    monkeypatch.setattr(chunked, "LARGE", 0)
    monkeypatch.setattr(chunked, "CHUNK", 4 * ROWS)  # 6 places: one piece is filled up
    assert primitives(program, STUDENT)["scan"] > 0
    pieces = eqx.filter_jit(eqx.filter_value_and_grad(lambda m: program(m)))(STUDENT)
    assert_close(pieces, whole, 1e-5)


@pytest.mark.parametrize("case", COMPARISONS)
def test_microbatches_give_the_loss_of_the_whole(case):
    loss, batch = COMPARISONS[case]
    value, gradients = eqx.filter_jit(accumulated)(loss, STUDENT, batch, microbatch=2, key=None)
    assert_close((value.mean, gradients), measured(loss, STUDENT, batch), 1e-5)


def test_a_pair_of_which_no_token_counts_is_no_preference():
    """A filler behind four pairs, one of which has an answer on one side alone."""
    some = RAGGED.copy()
    some[2] = False
    pairs = ef.PreferenceBatch(ef.TokenBatch(TOKENS, some), PREFERENCES.rejected)
    loss, kept = ef.DirectPreference(beta=2.0, label_smoothing=0.1).against(TEACHER), [0, 1, 2, 4]
    found = eqx.filter_jit(loss)(STUDENT, pairs)
    wanted = eqx.filter_jit(loss)(STUDENT, jax.tree.map(lambda x: x[np.array(kept)], pairs))
    assert float(found.weight) == 4.0
    assert_close(found, wanted, 1e-6)


def test_references_given_in_the_batch_are_those_of_the_model_held():
    loss = ef.DirectPreference(beta=2.0)
    filled_in = eqx.filter_jit(loss.with_reference)(PREFERENCES, TEACHER)
    assert filled_in.chosen_reference.shape == (ROWS,)
    held = measured(COMPARISONS["preference"][0], STUDENT, PREFERENCES)
    assert_close(measured(loss, STUDENT, filled_in), held, 1e-6)


def test_preferences_of_an_encoder_decoder():
    def model(source, target, *, source_mask=None, key=None):
        return STUDENT.logits(STUDENT.run(target)[0])

    pairs = [ef.PairBatch(TOKENS, each, RAGGED, RAGGED) for each in (TOKENS, TOKENS[:, ::-1])]
    loss = ef.DirectPreference(task=ef.SequenceToSequence())

    @jax.jit
    def both():
        sums = [found.sum() for found in loss.log_probabilities(model, ef.PreferenceBatch(*pairs))]
        return sums, [-ef.SequenceToSequence()(model, batch).total for batch in pairs]

    assert_close(*both(), 1e-5)


def test_a_teacher_with_another_vocabulary_is_refused():
    other = eqx.tree_at(lambda m: m.out, TEACHER, TEACHER.out[:, :11])
    with pytest.raises(ValueError, match="the teacher has 11 of them, the student 13"):
        jax.eval_shape(lambda: ef.Distillation().against(other)(STUDENT, BATCH))


def test_a_teacher_of_plain_numbers_is_refused():
    numbers = Answer(jnp.ones((3, 2)), lambda x: x)
    with pytest.raises(ValueError, match=r"weights \[3, 2\] are not places of \[3, 2\]"):
        divergence(numbers, numbers, jnp.ones((3, 2)), 1.0)


@pytest.mark.parametrize("both", [True, False], ids=["both forbid it", "the teacher forbids it"])
def test_a_token_that_the_teacher_forbids_adds_nothing_to_value_and_gradient(both):
    logits = eqx.filter_jit(lambda model: model.logits(model.run(TOKENS)[0])[..., :5])
    mine, theirs = (np.array(logits(model)) for model in (STUDENT, TEACHER))
    theirs[..., 2] = -np.inf
    if both:
        mine[..., 2] = -np.inf
    mine, theirs, weights = map(jax.device_put, (mine, theirs, np.float32(RAGGED)))
    kept = np.array([0, 1, 3, 4])

    def ours(mine):
        answers = (Answer(x, lambda x: x) for x in (mine, theirs))
        return divergence(*answers, weights, 2.0)

    def expected(mine):
        student, teacher = (jax.nn.log_softmax(x / 2.0)[..., kept] for x in (mine, theirs))
        apart = (jnp.exp(teacher) * (teacher - student)).sum(-1)
        return (weights * apart).sum()

    found, plain = (jax.jit(jax.value_and_grad(f))(mine) for f in (ours, expected))
    assert np.isfinite(found[0])
    assert_close(found, plain, 1e-5)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"needs a teacher: use `Distillation\(...\)\.against"):
        ef.Distillation()(STUDENT, BATCH)
    with pytest.raises(ValueError, match=r"`with_reference\(batch, reference\)`, or use `against"):
        ef.DirectPreference()(STUDENT, PREFERENCES)
    with pytest.raises(ValueError, match="`soft` above 0"):
        ef.Distillation(soft=0.0)
    with pytest.raises(ValueError, match="`label_smoothing` at least 0 and below"):
        ef.DirectPreference(label_smoothing=0.5)
    with pytest.raises(ValueError, match="`temperature` must be above 0"):
        ef.Contrastive(temperature=0.0)


def test_rows_that_depend_on_one_another_are_not_split():
    optimizer = ef.AdamW(1e-2).build(steps=3)
    with pytest.raises(ValueError, match=r"`microbatch` must be None with Contrastive.*got 2"):
        ef.make_step(ef.Contrastive(), optimizer, microbatch=2)
    ef.make_step(COMPARISONS["preference"][0], optimizer, microbatch=2)
    ef.make_step(lambda model, batch, *, key=None: 0.0, optimizer, microbatch=2)


ENCODER = ef.families.bert(vocab=VOCAB, dim=8, layers=1, heads=2, hidden=8, dropout=0.5)
MASKED = ef.EncoderWithHead.Config(ENCODER, ef.MaskedLMHead.Config())


@eqx.filter_jit
@eqx.filter_value_and_grad
def of_logits(model, batch, valid):
    logits = model(batch.tokens, mask=ef.Padding(valid))
    return ef.cross_entropy(logits, batch.labels, weights=batch.weights).mean


@pytest.mark.parametrize("side", ["left", "right"])
def test_masked_lm_of_a_model_is_the_cross_entropy_of_its_logits(side, monkeypatch):
    valid = RAGGED if side == "right" else RAGGED[:, ::-1]
    model = filled(MASKED)
    noise = ef.MaskTokens(mask=0, vocab=VOCAB, share=0.4)
    batch = noise(TOKENS, valid, random=np.random.default_rng(3))
    wanted = of_logits(model, batch, valid)
    assert_close(measured(ef.MaskedLM(), model, batch), wanted, 1e-5)
    monkeypatch.setattr(chunked, "LARGE", 0)
    assert primitives(lambda m: ef.MaskedLM()(m, batch).mean, model)["scan"] > 0
    changed = eqx.tree_at(lambda b: b.tokens, batch, np.where(valid, batch.tokens, 5))
    assert_close(measured(ef.MaskedLM(), model, changed)[0], wanted[0], 1e-5)


def test_experts_of_a_masked_lm_add_what_their_routers_ask():
    mixture = ef.Experts.Config(count=3, top=2, expert=ef.MLP.Config(hidden=5))
    model = filled(MASKED.edit("encoder.blocks.*", feed_forward=mixture))
    batch = ef.LabelledBatch(TOKENS, TOKENS)
    assert {"load_balance", "router_z"} < set(eqx.filter_jit(ef.MaskedLM())(model, batch).means())


HEAD = ef.SequenceHead.Config(labels=3, pooling=ef.Pooling.Config(take="last"))
BODY = ef.families.transformer(vocab=VOCAB, dim=8, layers=1, heads=2, hidden=8)
WITH_HEADS = {
    "encoder": ef.EncoderWithHead.Config(ENCODER, ef.SequenceHead.Config(labels=3)),
    "decoder": ef.EncoderWithHead.Config(ENCODER.edit(direction="causal"), HEAD),
    "both": ef.EncoderDecoderWithHead.Config(
        BODY.edit("decoder", head=ef.TiedHead.Config()), HEAD, start=0
    ),
}


@pytest.mark.parametrize("name", WITH_HEADS)
def test_every_kind_of_model_with_a_head_learns_labels_whatever_stands_at_padding(name):
    model, labels = filled(WITH_HEADS[name]), np.array([0, 2, 1, 2])
    rows, valid = TOKENS[[0, 1, 2, 4]], RAGGED[[0, 1, 2, 4]]
    loss = ef.SequenceClassification()
    value, gradients = measured(loss, model, ef.LabelledBatch(rows, labels, valid=valid))
    others = np.where(valid, rows, 1)
    again, _ = measured(loss, model, ef.LabelledBatch(others, labels, valid=valid))
    assert_close(again, value, 1e-6)
    assert jnp.isfinite(value)
    assert jnp.abs(gradients.head.linear.weight).max() > 0


WRONG = [
    (ef.SequenceClassification(), np.zeros((ROWS, 1), int), r"the shape \(5,\).*got \(5, 1\)"),
    (ef.SequenceRegression(), np.zeros(ROWS), r"the shape \(5, 3\).*got \(5,\)"),
    (ef.SequenceClassification(class_weights=(1.0, 2.0)), np.zeros(ROWS, int), "3 classes; got 2"),
    (ef.MaskedLM(), TOKENS, "SequenceHead, which scores labels and not tokens"),
]


@pytest.mark.parametrize(("loss", "labels", "message"), WRONG)
def test_labels_that_do_not_fit_the_scores_are_refused(loss, labels, message):
    model, batch = filled(WITH_HEADS["encoder"]), ef.LabelledBatch(TOKENS, labels)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: loss(model, batch))


def test_dropout_makes_two_vectors_of_one_sentence_and_none_is_dropped_without_a_key():
    model = filled(ENCODER)
    sentences = ef.Sentences(TOKENS)
    batch = ef.ContrastiveBatch(sentences, sentences)
    loss = eqx.filter_jit(ef.Contrastive())
    quiet = loss(model, batch)
    assert_close(loss(model, batch).total, quiet.total, 0.0)
    noisy = [loss(model, batch, key=jax.random.key(i)).total for i in range(2)]
    assert noisy[0] != noisy[1] != quiet.total
