"""Every objective beside a slow twin in NumPy, in value and in the gradient of every array."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.compare import assert_agrees, assert_close

ROWS, SEQ, VOCAB, DIM = 3, 5, 7, 4
FLOAT32 = 1e-5  # of the largest number: losses are made in it
RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(0, VOCAB, (ROWS, SEQ)).astype(np.int32)
RAGGED = np.arange(SEQ)[None] < np.array([5, 3, 4])[:, None]
SIDES = {"right": RAGGED, "left": RAGGED[:, ::-1]}


def table(*shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape)


def small(*shape):
    """The same in float32, for JAX."""
    return jax.device_put(np.float32(table(*shape)))


class Table(eqx.Module):
    """A model that sees one token at a time, and of sequences the mean of those that are real."""

    scores: jax.Array

    def __call__(self, tokens, *, mask=None, key=None):
        return self.scores[tokens]


class Pooled(Table):
    """One row of scores per sequence."""

    def __call__(self, tokens, *, mask=None, key=None):
        real = jnp.ones(tokens.shape) if mask is None else mask.valid.astype(self.scores.dtype)
        rows = self.scores[tokens] * real[..., None]
        return rows.sum(-2) / real.sum(-1, keepdims=True)

    embed = __call__


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def pooled(scores, tokens, valid):
    return np.stack(
        [scores[row[real]].mean(axis=0) for row, real in zip(tokens, valid, strict=True)]
    )


def wide(loss):
    """The mean of a loss as an array of one number; it is made in float32 whatever the scores."""
    return loss.mean[None].astype(jnp.float64)


def of(loss, model, batch):
    """A function from scores to the mean of the loss, as an array of one number."""
    return lambda scores: wide(loss(model(scores), batch))


@pytest.mark.parametrize("side", SIDES)
def test_prefix_lm(side):
    valid = SIDES[side]
    prefix = np.argmax(valid, axis=1) + np.array([2, 1, 3])
    batch = ef.PrefixBatch(TOKENS, prefix, valid=valid)

    def twin(scores):
        total, count = 0.0, 0
        for row, real, begin in zip(TOKENS, valid, prefix, strict=True):
            for place in range(begin, SEQ):
                if real[place]:
                    total -= log_softmax(scores[row[place - 1]])[row[place]]
                    count += 1
        return np.array([total / count])

    assert_agrees(of(ef.PrefixLM(), Table, batch), twin, table(VOCAB, VOCAB), tolerance=FLOAT32)


def test_masked_lm_asks_for_what_was_hidden_alone():
    noise = ef.MaskTokens(mask=VOCAB - 1, vocab=VOCAB - 1, share=0.4)
    batch = noise(TOKENS, RAGGED, random=np.random.default_rng(2))

    def twin(scores):
        picked = [
            -log_softmax(scores[batch.tokens[i, j]])[TOKENS[i, j]]
            for i, j in np.argwhere(batch.weights)
        ]
        return np.array([np.mean(picked)])

    assert_agrees(of(ef.MaskedLM(), Table, batch), twin, table(VOCAB, VOCAB), tolerance=FLOAT32)


CLASSES = (0.5, 2.0, 1.0)
LABELS = {"sequence": np.array([0, 2, 1]), "token": TOKENS % 3}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("settings", [{}, {"class_weights": CLASSES, "label_smoothing": 0.1}])
def test_classification(kind, settings):
    labels = LABELS[kind]
    loss = {"sequence": ef.SequenceClassification, "token": ef.TokenClassification}[kind](
        **settings
    )
    batch = ef.LabelledBatch(TOKENS, labels, valid=RAGGED)
    weights = np.ones(3) if kind == "sequence" else RAGGED.astype(float)
    weights = weights * (np.array(CLASSES)[labels] if settings else 1.0)
    share = settings.get("label_smoothing", 0.0)

    def twin(scores):
        rows = pooled(scores, TOKENS, RAGGED) if kind == "sequence" else scores[TOKENS]
        logs = log_softmax(rows)
        own = np.take_along_axis(logs, labels[..., None], axis=-1)[..., 0]
        losses = -(1 - share) * own - share * logs.mean(axis=-1)
        return np.array([(weights * losses).sum() / weights.sum()])

    model = Pooled if kind == "sequence" else Table
    assert_agrees(of(loss, model, batch), twin, table(VOCAB, 3), tolerance=FLOAT32)


def test_regression_is_the_mean_squared_error_of_what_counts():
    wanted, weights = table(ROWS, 2, seed=3), np.array([[1.0, 1.0], [0.0, 1.0], [2.0, 0.5]])
    batch = ef.LabelledBatch(TOKENS, wanted, weights, valid=RAGGED)

    def twin(scores):
        error = pooled(scores, TOKENS, RAGGED) - wanted
        return np.array([(weights * error**2).sum() / weights.sum()])

    assert_agrees(
        of(ef.SequenceRegression(), Pooled, batch), twin, table(VOCAB, 2), tolerance=FLOAT32
    )
    poisoned = np.where(weights == 0, np.nan, wanted)
    dirty = ef.LabelledBatch(TOKENS, poisoned.astype(np.float32), weights.astype(np.float32))
    found = eqx.filter_jit(ef.SequenceRegression())(Pooled(small(VOCAB, 2)), dirty)
    assert np.isfinite(found.mean)


@pytest.mark.parametrize("kind", LABELS)
def test_a_label_below_0_is_none_in_a_step_too(kind):
    all_labels, row = LABELS[kind].astype(np.int32), 1 if kind == "sequence" else (1, 2)
    labels = all_labels.copy()
    labels[row] = -100
    loss = {"sequence": ef.SequenceClassification, "token": ef.TokenClassification}[kind]()
    loss = eqx.filter_jit(loss)
    model = (Pooled if kind == "sequence" else Table)(small(VOCAB, 3))
    measured = loss(model, ef.LabelledBatch(TOKENS, labels, valid=RAGGED))
    weights = np.where(RAGGED, 1.0, 0.0) if kind == "token" else np.ones(ROWS)
    weights[row] = 0.0
    known = ef.LabelledBatch(TOKENS, all_labels, np.float32(weights), valid=RAGGED)
    assert float(measured.mean) == float(loss(model, known).mean)
    assert float(measured.weight) == weights.sum()


def test_whole_numbers_below_0_count_in_a_regression():
    model = Pooled(small(VOCAB, SEQ))
    wanted = TOKENS - VOCAB
    loss, whole, broken = (
        eqx.filter_jit(ef.SequenceRegression()),
        ef.LabelledBatch(TOKENS, wanted, valid=RAGGED),
        ef.LabelledBatch(TOKENS, wanted.astype(np.float32), valid=RAGGED),
    )
    assert float(loss(model, whole).weight) == wanted.size
    assert float(loss(model, whole).mean) == float(loss(model, broken).mean)


@pytest.mark.parametrize("directions", ["forth", "both"])
@pytest.mark.parametrize("count", [0, 2])
def test_contrastive(directions, count):
    others = np.random.default_rng(4).integers(0, VOCAB, (ROWS, 4)).astype(np.int32)
    hard = np.random.default_rng(5).integers(0, VOCAB, (ROWS, max(count, 1), 3)).astype(np.int32)
    negatives = ef.Sentences(hard) if count else None
    batch = ef.ContrastiveBatch(ef.Sentences(TOKENS, RAGGED), ef.Sentences(others), negatives)
    loss = ef.Contrastive(temperature=0.3, directions=directions)

    def unit(rows):
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    def twin(scores):
        anchors = unit(pooled(scores, TOKENS, RAGGED))
        positives = unit(scores[others].mean(axis=1))
        candidates = positives
        if count:
            candidates = np.concatenate(
                [positives, unit(scores[hard].mean(axis=2).reshape(-1, DIM))]
            )
        forth = -np.diag(log_softmax(anchors @ candidates.T / 0.3)).mean()
        back = -np.diag(log_softmax(positives @ anchors.T / 0.3)).mean()
        return np.array([forth if directions == "forth" else (forth + back) / 2])

    assert_agrees(of(loss, Pooled, batch), twin, table(VOCAB, DIM), tolerance=FLOAT32)


def test_contrastive_accuracy_is_how_often_an_anchor_picks_its_own():
    tokens = np.arange(3, dtype=np.int32)[:, None]
    model, loss = Pooled(np.eye(VOCAB, dtype=np.float32)), eqx.filter_jit(ef.Contrastive())
    for positives, share in ((tokens, 1.0), (tokens[[0, 2, 1]], 1 / 3)):
        batch = ef.ContrastiveBatch(ef.Sentences(tokens), ef.Sentences(positives))
        assert_close(loss(model, batch).means()["accuracy"], share, 1e-6)


def answers(seed):
    random = np.random.default_rng(seed)
    tokens = random.integers(0, VOCAB, (ROWS, SEQ)).astype(np.int32)
    return ef.TokenBatch(tokens, (random.random((ROWS, SEQ)) < 0.7).astype(np.float32))


def sequence_logs(scores, batch):
    logs = np.take_along_axis(
        log_softmax(scores[batch.tokens[:, :-1]]), batch.tokens[:, 1:, None], -1
    )
    return (batch.weights[:, 1:] * logs[..., 0]).sum(axis=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_direct_preference(smoothing):
    batch = ef.PreferenceBatch(answers(6), answers(7))
    loss, reference = (
        ef.DirectPreference(beta=0.7, label_smoothing=smoothing),
        table(VOCAB, VOCAB, seed=8),
    )

    def twin(scores):
        gain = [
            sequence_logs(scores, b) - sequence_logs(reference, b)
            for b in (batch.chosen, batch.rejected)
        ]
        margin = 0.7 * (gain[0] - gain[1])
        chances = 1 / (1 + np.exp(-margin))
        losses = -(1 - smoothing) * np.log(chances) - smoothing * np.log(1 - chances)
        return np.array([losses.mean()])

    def ours(scores):
        return wide(loss.against(Table(jnp.asarray(reference)))(Table(scores), batch))

    def given(scores):
        filled = loss.with_reference(batch, Table(jnp.asarray(reference)))
        return wide(loss(Table(scores), filled))

    for form in (ours, given):
        assert_agrees(form, twin, table(VOCAB, VOCAB), tolerance=FLOAT32)


def test_a_model_that_is_its_own_reference_has_no_preference():
    batch, model = ef.PreferenceBatch(answers(6), answers(7)), Table(small(VOCAB, VOCAB))
    found = eqx.filter_jit(ef.DirectPreference().against(model))(model, batch).means()
    assert_close(found["loss"], np.log(2), 1e-6)
    assert (found["margin"], found["accuracy"]) == (0, 0)


TASKS = {
    "tokens": (ef.NextToken(), ef.TokenBatch(TOKENS, RAGGED), Table),
    "labels": (
        ef.SequenceClassification(class_weights=(1.0, 2.0, 0.5, 1.0, 1.0, 1.0, 1.0)),
        ef.LabelledBatch(TOKENS, np.array([0, 2, 1]), valid=RAGGED),
        Pooled,
    ),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("temperature", "soft"), [(1.0, 1.0), (2.5, 0.7)])
def test_distillation(task, temperature, soft):
    hard, batch, model = TASKS[task]
    loss = ef.Distillation(hard, temperature=temperature, soft=soft)
    teacher = table(VOCAB, VOCAB, seed=9)

    def asked(scores):
        if task == "labels":
            return (
                pooled(scores, TOKENS, RAGGED),
                batch.labels,
                np.array(hard.class_weights)[batch.labels],
            )
        return scores[TOKENS[:, :-1]], TOKENS[:, 1:], RAGGED[:, 1:].astype(float)

    def twin(scores):
        (mine, targets, weights), (theirs, _, _) = asked(scores), asked(teacher)
        q, p = log_softmax(mine / temperature), log_softmax(theirs / temperature)
        apart = (np.exp(p) * (p - q)).sum(axis=-1)
        own = -np.take_along_axis(log_softmax(mine), targets[..., None], -1)[..., 0]
        losses = soft * temperature**2 * apart + (1 - soft) * own
        return np.array([(weights * losses).sum() / weights.sum()])

    def ours(scores):
        return wide(loss.against(model(jnp.asarray(teacher)))(model(scores), batch))

    assert_agrees(ours, twin, table(VOCAB, VOCAB), tolerance=FLOAT32)
