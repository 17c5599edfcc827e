"""What language models are trained on: cross-entropy of tokens that are to come or were hidden."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from eqxformer.data.batches import PairBatch, TokenBatch, shifted, weights_of
from eqxformer.data.labelled import LabelledBatch
from eqxformer.data.prefixes import PrefixBatch
from eqxformer.losses.chunked import cross_entropy_of
from eqxformer.losses.cross_entropy import Loss, check_share, cross_entropy
from eqxformer.losses.labels import of_labels
from eqxformer.losses.objective import Answer, LossFunction, Objective, Question, Supervised


class TokenLoss(Supervised):
    """Cross-entropy of tokens: what the losses below have in common.

    Arguments:
        label_smoothing, z_loss: see `cross_entropy`.
        load_balance, router_z: factors of what the routers of a mixture of experts add to the
            mean; without effect in models that have none. It is a mean over all tokens that are
            read, but for those that a `Padding` of the batch (its `valid`) says are none.

    Example:
        >>> import eqxformer as ef
        >>> loss = ef.NextToken(label_smoothing=0.1, z_loss=1e-4)
        >>> isinstance(loss, ef.TokenLoss), loss
        (True, NextToken(label_smoothing=0.1, z_loss=0.0001))
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    load_balance: float = 0.01
    router_z: float = 0.001

    def check(self) -> None:
        check_share("label_smoothing", self.label_smoothing)

    def answer(self, model: Any, question: Question, *, key: PRNGKeyArray | None = None) -> Answer:
        """What the model answers.

        A model with `run`, which gives hidden states, routers' losses last (or None), and `logits`
        of hidden states, is asked through these; the logits then need not all exist at once.
        """
        if not hasattr(model, "run"):
            return super().answer(model, question, key=key)
        hidden, *_, routers = model.run(*question.inputs, **question.options, key=key)
        return Answer(hidden, model.logits, routers)

    def judge(self, answer: Answer, question: Question) -> Loss:
        """The cross-entropy of the targets."""
        counts, smoothing, z = question.weights, self.label_smoothing, self.z_loss
        options = {"weights": counts, "label_smoothing": smoothing, "z_loss": z}
        if answer.head is None:
            return cross_entropy(answer.hidden, question.targets, **options)
        return cross_entropy_of(answer.hidden, answer.head, question.targets, **options)

    def penalised(self, loss: Loss, answer: Answer) -> Loss:
        """The loss with what the routers of the model add to it."""
        if answer.routers is None:
            return loss
        balance = self.load_balance * answer.routers.load_balance
        return loss.plus({"load_balance": balance, "router_z": self.router_z * answer.routers.z})


class NextToken(TokenLoss):
    """The loss of a decoder-only model: each token from those before it.

    `NextToken()(model, batch, key=key)` is a `Loss`. The model gets all tokens but the last and is
    asked for all but the first; a token counts as a target by its weight. Of rows that hold several
    documents, it gets `mask` and `positions` too: the loss is that of the documents one by one; but
    where rotary frequencies depend on the length of a text (`LongRoPE`, `DynamicNTK`), the longest
    document of a row sets them for all of it.

    The mean is `-sum(w[t] * log p(x[t] | x[:t])) / sum(w[t])`, in nats per token. Arguments as for
    `TokenLoss`. Padding behind the text changes nothing where its weights are 0, but in what the
    routers of a mixture of experts add: these leave out what a batch's `valid` says is padding.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> model = lambda tokens, *, key=None: jnp.zeros((*tokens.shape, 4))  # all of 4 ids alike
        >>> loss = ef.NextToken()(model, ef.TokenBatch(jnp.array([[1, 2, 3]])))
        >>> round(float(loss.mean), 3), float(loss.weight)
        (1.386, 2.0)
    """

    def question(self, batch: TokenBatch, /) -> Question:
        """Each token but the first, from those before it."""
        tokens, targets = shifted(batch.tokens)
        return Question((tokens,), batch.context(), targets, batch.target_weights())

    def answer(self, model: Any, question: Question, *, key: PRNGKeyArray | None = None) -> Answer:
        """What the model answers; one in which positions would change nothing is not told them."""
        if not getattr(model, "reads_positions", True):
            told = {name: x for name, x in question.options.items() if name != "positions"}
            question = question._replace(options=told)
        return super().answer(model, question, key=key)


class PrefixLM(TokenLoss):
    """The loss of a decoder that sees its prompt both ways (Raffel et al. 2020, section 3.2.1).

    The first tokens of a row, its prefix, see each other; what follows sees all before it, and it
    alone is learned.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> model = config.build(key=jax.random.key(0))
        >>> batch = ef.PrefixBatch(jnp.arange(18).reshape(2, 9), prefix=jnp.array([3, 5]))
        >>> float(ef.PrefixLM()(model, batch).weight)
        10.0
    """

    def question(self, batch: PrefixBatch, /) -> Question:
        """Each token behind the prefix, from those before it."""
        tokens, targets = shifted(batch.tokens)
        weights = batch.target_weights()[..., 1:]
        return Question((tokens,), {"mask": batch.mask()}, targets, weights)


class MaskedLM(TokenLoss):
    """The loss of an encoder that restores hidden tokens (Devlin et al. 2019, section 3.1).

    `MaskTokens` makes batches for it. The model is an `EncoderWithHead` whose head scores tokens.

    Example:
        >>> import eqxformer as ef, jax, numpy as np
        >>> inner = ef.families.bert(vocab=66, dim=16, layers=1, heads=2, hidden=32)
        >>> config = ef.EncoderWithHead.Config(inner, ef.MaskedLMHead.Config())
        >>> model = config.build(key=jax.random.key(0))
        >>> hide = ef.MaskTokens(mask=65, vocab=65)
        >>> batch = hide(np.arange(40).reshape(2, 20), random=np.random.default_rng(0))
        >>> float(ef.MaskedLM()(model, batch).weight)
        6.0
    """

    def question(self, batch: LabelledBatch, /) -> Question:
        """The tokens that were there, where they count."""
        return of_labels(batch)


class SequenceToSequence(TokenLoss):
    """The loss of an encoder-decoder: each target token from the source and those before it.

    `SequenceToSequence()(model, batch, key=key)` is a `Loss`. The decoder gets all target tokens
    but the last, the first being the start token, and is asked for all but the first.

    The mean is `-sum(w[t] * log p(y[t] | source, y[:t])) / sum(w[t])`, in nats per token. Arguments
    as for `TokenLoss`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> def model(source, target, *, source_mask=None, key=None):
        ...     return jnp.zeros((*target.shape, 4))  # all of 4 ids alike
        >>> batch = ef.PairBatch(source=jnp.array([[5, 6]]), target=jnp.array([[1, 3, 2]]))
        >>> loss = ef.SequenceToSequence()(model, batch)
        >>> round(float(loss.mean), 3), float(loss.weight)
        (1.386, 2.0)
    """

    def question(self, batch: PairBatch, /) -> Question:
        """Each target token but the first, from the source and those before it."""
        tokens, targets = shifted(batch.target)
        weights = weights_of(batch.target_weights, batch.target)[..., 1:]
        source, mask = jnp.asarray(batch.source), batch.source_mask()
        return Question((source, tokens), {"source_mask": mask}, targets, weights)


def next_token_loss(
    model: Any, batch: TokenBatch, *, key: PRNGKeyArray | None = None
) -> Float[Array, ""]:
    """Mean cross-entropy in nats of each token from those before it; a scalar to differentiate.

    Arguments:
        model: maps `Int[*batch seq]` to logits `Float[*batch seq vocab]`.
        batch: tokens and how much each counts as a target.
        key: switches dropout on.

    `NextToken` is the same with label smoothing, z-loss and the token count kept apart.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> model = config.build(key=jax.random.key(0))
        >>> batch = ef.TokenBatch(jnp.arange(18).reshape(2, 9))
        >>> loss, gradients = eqx.filter_value_and_grad(ef.next_token_loss)(model, batch)
        >>> loss.shape
        ()
    """
    return NextToken()(model, batch, key=key).mean


def sequence_to_sequence_loss(
    model: Any, batch: PairBatch, *, key: PRNGKeyArray | None = None
) -> Float[Array, ""]:
    """Mean cross-entropy in nats of each target token from the source and those before it.

    Arguments:
        model: maps source and target ids to logits `Float[*batch seq vocab]`.
        batch: sources, targets that begin with the start token, and what counts in both.
        key: switches dropout on.

    `SequenceToSequence` is the same with label smoothing and z-loss.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> def model(source, target, *, source_mask=None, key=None):
        ...     return jnp.zeros((*target.shape, 4))  # all of 4 ids alike
        >>> batch = ef.PairBatch(source=jnp.array([[5, 6]]), target=jnp.array([[1, 3, 2]]))
        >>> round(float(ef.sequence_to_sequence_loss(model, batch)), 3)
        1.386
    """
    return SequenceToSequence()(model, batch, key=key).mean


_MEANS: tuple[tuple[LossFunction, Objective], ...] = (
    (next_token_loss, NextToken()),
    (sequence_to_sequence_loss, SequenceToSequence()),
)


def objective_of(loss: LossFunction) -> Objective | None:
    """The objective that a loss is, or whose mean it is known to be; None for all others.

    Known are the functions of this file, and none that merely wraps one of them.
    """
    if isinstance(loss, Objective):
        return loss
    return next((objective for function, objective in _MEANS if function is loss), None)
