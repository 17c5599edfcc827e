"""Losses of labels: a class or some numbers per sequence, or a class per token."""

import equinox as eqx
import jax.numpy as jnp

from eqxformer.data.batches import check_weights_shape
from eqxformer.data.labelled import LabelledBatch
from eqxformer.losses.cross_entropy import Loss, check_share, cross_entropy
from eqxformer.losses.objective import Answer, Question, Supervised


class LabelLoss(Supervised):
    """Cross-entropy of classes: what the losses below have in common.

    Arguments:
        label_smoothing: see `cross_entropy`.
        class_weights: how much labels of each class count, one number per class; all alike if
            None. The mean is over what counts: weights of all classes times two change nothing.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> model = lambda tokens, *, key=None: jnp.zeros((2, 3))  # all of 3 classes alike
        >>> batch = ef.LabelledBatch(jnp.ones((2, 5), int), labels=jnp.array([0, 2]))
        >>> loss = ef.SequenceClassification(class_weights=(1.0, 1.0, 4.0))(model, batch)
        >>> round(float(loss.mean), 3), float(loss.weight)
        (1.099, 5.0)
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def check(self) -> None:
        check_share("label_smoothing", self.label_smoothing)
        if self.class_weights is not None and min(self.class_weights, default=-1.0) < 0.0:
            raise ValueError(
                "`class_weights` must have a number of at least 0 for every class; "
                f"got {self.class_weights}."
            )

    def question(self, batch: LabelledBatch, /) -> Question:
        """The labels, each weighted by its class too."""
        asked = of_labels(batch)
        if self.class_weights is None:
            return asked
        given, labels = jnp.asarray(self.class_weights, jnp.float32), asked.targets
        inside = (labels >= 0) & (labels < len(given))  # `cross_entropy` refuses the others
        by_class = jnp.where(inside, given[jnp.where(inside, labels, 0)], 1.0)
        return asked._replace(weights=asked.weights * by_class)

    def judge(self, answer: Answer, question: Question) -> Loss:
        """The cross-entropy of the labels."""
        scores, labels = answer.scores, question.targets
        check_labels_shape(labels.shape, scores.shape[:-1])
        if self.class_weights is not None and len(self.class_weights) != scores.shape[-1]:
            raise ValueError(
                f"`class_weights` must have a number for each of the model's {scores.shape[-1]} "
                f"classes; got {len(self.class_weights)}."
            )
        smoothing = self.label_smoothing
        return cross_entropy(scores, labels, weights=question.weights, label_smoothing=smoothing)


class SequenceClassification(LabelLoss):
    """The loss of a model that gives each sequence scores of classes, such as a `SequenceHead`.

    A batch is a `LabelledBatch` with `labels` of shape `*batch`. Decoders and encoder-decoders with
    a head are asked in the same way.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> inner = ef.families.bert(vocab=65, dim=16, layers=1, heads=2, hidden=32)
        >>> config = ef.EncoderWithHead.Config(inner, ef.SequenceHead.Config(labels=3))
        >>> batch = ef.LabelledBatch(jnp.ones((2, 5), int), labels=jnp.array([0, 2]))
        >>> loss = ef.SequenceClassification()(config.build(key=jax.random.key(0)), batch)
        >>> float(loss.weight)
        2.0
    """


class TokenClassification(LabelLoss):
    """The loss of a model that gives each token scores of classes, such as a `LabelHead`.

    A batch is a `LabelledBatch` with `labels` of shape `*batch seq`; a token that has none gets the
    label -100 or the weight 0.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> inner = ef.families.bert(vocab=65, dim=16, layers=1, heads=2, hidden=32)
        >>> config = ef.EncoderWithHead.Config(inner, ef.LabelHead.Config(labels=3))
        >>> labels = jnp.array([[0, 2, -100]])
        >>> batch = ef.LabelledBatch(jnp.array([[5, 6, 7]]), labels)
        >>> loss = ef.TokenClassification()(config.build(key=jax.random.key(0)), batch)
        >>> float(loss.weight)
        2.0
    """


class SequenceRegression(Supervised):
    """The squared error of a model that gives each sequence some numbers.

    `mean((scores - labels)^2)` over the numbers of all sequences. A batch is a `LabelledBatch` with
    `labels` of shape `*batch values`; each number counts by its own weight.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> inner = ef.families.bert(vocab=65, dim=16, layers=1, heads=2, hidden=32)
        >>> config = ef.EncoderWithHead.Config(inner, ef.SequenceHead.Config(labels=1))
        >>> batch = ef.LabelledBatch(jnp.ones((2, 5), int), labels=jnp.array([[0.5], [3.0]]))
        >>> loss = ef.SequenceRegression()(config.build(key=jax.random.key(0)), batch)
        >>> float(loss.weight)
        2.0
    """

    def question(self, batch: LabelledBatch, /) -> Question:
        """The numbers, whole ones too, of which those below 0 are no missing classes."""
        numbers = jnp.asarray(batch.labels).astype(jnp.float32)
        return of_labels(eqx.tree_at(lambda b: b.labels, batch, numbers))

    def judge(self, answer: Answer, question: Question) -> Loss:
        """The squared error."""
        check_labels_shape(question.targets.shape, answer.scores.shape)
        check_weights_shape(question.weights.shape, question.targets.shape)
        weights, wanted = question.weights, question.targets.astype(jnp.float32)
        # Masked before it is squared: 0 x NaN would be NaN in the gradient.
        error = jnp.where(weights != 0, answer.scores.astype(jnp.float32) - wanted, 0.0)
        return Loss(jnp.sum(weights * jnp.square(error)), jnp.sum(weights))


def of_labels(batch: LabelledBatch) -> Question:
    """The question that asks for the labels of a batch."""
    labels = jnp.asarray(batch.labels)
    return Question((jnp.asarray(batch.tokens),), batch.options(), labels, batch.label_weights())


def check_labels_shape(labels: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raises `ValueError` where labels are not those that the scores are for."""
    if labels != wanted:
        raise ValueError(
            f"`labels` must have the shape {wanted}, which the model gives scores for; "
            f"got {labels}."
        )
