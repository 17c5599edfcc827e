"""Losses: token-weighted cross-entropy, and what language models are trained on with it.

Sums and weights are kept apart, so that batches of unequal token counts add up to the true mean.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from eqxformer.config import Config
from eqxformer.layers.feed_forward import RouterLosses
from eqxformer.training.batches import PairBatch, TokenBatch, shifted, weights_of

Weights = Float[Array, "*batch"] | Bool[Array, "*batch"]


class Loss(eqx.Module):
    """A sum over tokens and the weight of those tokens: `mean = total / weight`.

    Losses add: `sum(losses, Loss.zero())` is the loss of the batches together, weighted by token.
    `metrics` holds what else was measured, each summed with the weight of its batch.
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)

    @classmethod
    def zero(cls) -> "Loss":
        """No tokens at all: the start of a sum."""
        nothing = jnp.zeros((), jnp.float32)
        return cls(nothing, nothing)

    @property
    def mean(self) -> Float[Array, ""]:
        """`total / weight`; 0 where there is no weight."""
        return self.per_token(self.total)

    def per_token(self, total: Float[Array, ""]) -> Float[Array, ""]:
        """`total / weight`; 0 where there is no weight, with finite gradients."""
        nothing = self.weight == 0
        return jnp.where(nothing, 0.0, total / jnp.where(nothing, 1.0, self.weight))

    def means(self) -> dict[str, Float[Array, ""]]:
        """`loss` and every metric, per token."""
        return {"loss": self.mean, **{k: self.per_token(v) for k, v in self.metrics.items()}}

    def plus(self, penalties: Mapping[str, Float[Array, ""]]) -> "Loss":
        """This loss with `penalties` added to its mean, each also kept as a metric by its name.

        Penalties are means already, and scaled.
        """
        scaled = {name: self.weight * value for name, value in penalties.items()}
        return Loss(sum(scaled.values(), self.total), self.weight, {**self.metrics, **scaled})

    def __add__(self, other: "Loss") -> "Loss":
        names = {**self.metrics, **other.metrics}
        zero = jnp.zeros((), jnp.float32)
        both = {n: self.metrics.get(n, zero) + other.metrics.get(n, zero) for n in names}
        return Loss(self.total + other.total, self.weight + other.weight, both)


class LossFunction(Protocol):
    """What a training step minimises: a `Loss`, or simply a scalar.

    `key` switches dropout on and is absent when the model is evaluated.
    """

    def __call__(
        self, model: Any, batch: Any, /, *, key: PRNGKeyArray | None = None
    ) -> Loss | Float[Array, ""]: ...


def cross_entropy(
    logits: Float[Array, "*batch vocab"],
    targets: Int[Array, "*batch"],
    *,
    weights: Weights | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Loss:
    """Weighted sum of `log(sum(exp(logits))) - logits[target]`, and the sum of the weights.

    Arguments:
        logits: unnormalised log-probabilities of any float type; the sums are made in float32.
        targets: the right ids. Where the weight is 0 any id may stand.
        weights: how much each position counts, 1 for all by default. What the logits and ids are
            where the weight is 0 has no influence, not even as NaN.
        label_smoothing: share `e` of the target's probability spread over the whole vocabulary,
            as in Szegedy et al. 2016: `lse - (1 - e) * logits[target] - e * mean(logits)`.
        z_loss: factor of `lse ** 2`, which keeps logits from drifting (Chowdhery et al. 2022).

    Returns a `Loss`; its `mean` is in nats per token. A target outside the vocabulary raises
    `ValueError`, or makes the loss NaN where ids are not known yet, inside `jax.jit`.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> loss = ef.cross_entropy(jnp.zeros((2, 4)), jnp.array([1, 3]))
        >>> float(loss.total), float(loss.weight)
        (2.7725887298583984, 2.0)
    """
    _check_share("label_smoothing", label_smoothing)
    if weights is None:
        weights = jnp.ones(targets.shape, jnp.float32)
    weights = weights.astype(jnp.float32)
    counted = weights != 0
    _check_targets(targets, counted, logits.shape[-1])
    # Not only the result is masked but the logits too: 0 x NaN would be NaN in the gradient.
    logits = jnp.where(counted[..., None], logits, jnp.zeros((), logits.dtype)).astype(jnp.float32)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    loss = log_sum - (1.0 - label_smoothing) * _at(logits, targets, counted)
    if label_smoothing:
        loss = loss - label_smoothing * logits.mean(axis=-1)
    if z_loss:
        loss = loss + z_loss * jnp.square(log_sum)
    return Loss(jnp.sum(weights * loss), jnp.sum(weights))


class TokenLoss(Config):
    """What the losses below have in common.

    Arguments:
        label_smoothing, z_loss: see `cross_entropy`.
        load_balance, router_z: factors of what the routers of a mixture of experts add to the
            mean; without effect in models that have none.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    load_balance: float = 0.01
    router_z: float = 0.001

    def check(self) -> None:
        _check_share("label_smoothing", self.label_smoothing)

    def __call__(self, model: Any, batch: Any, /, *, key: PRNGKeyArray | None = None) -> Loss:
        """The loss over a batch; a key switches dropout on."""
        raise NotImplementedError(f"{self.type_name} must say what it asks the model.")

    def measure(
        self, model: Any, *inputs: Array, targets: Array, weights: Array, **more: Any
    ) -> Loss:
        """The loss of a model's answer to `inputs`."""
        logits, routers = run(model, *inputs, **more)
        loss = cross_entropy(
            logits,
            targets,
            weights=weights,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        )
        if routers is None:
            return loss
        balance, z = self.load_balance * routers.load_balance, self.router_z * routers.z
        return loss.plus({"load_balance": balance, "router_z": z})


class NextToken(TokenLoss):
    """The loss of a decoder-only model: each token from those before it.

    `NextToken()(model, batch, key=key)` is a `Loss`. The model gets all tokens but the last and is
    asked for all but the first; a token counts as a target by its weight.
    """

    def __call__(
        self, model: Any, batch: TokenBatch, /, *, key: PRNGKeyArray | None = None
    ) -> Loss:
        """The loss over a batch; a key switches dropout on."""
        tokens, targets = shifted(batch.tokens)
        weights = weights_of(batch.weights, batch.tokens)[..., 1:]
        return self.measure(model, tokens, targets=targets, weights=weights, key=key)


class SequenceToSequence(TokenLoss):
    """The loss of an encoder-decoder: each target token from the source and those before it.

    `SequenceToSequence()(model, batch, key=key)` is a `Loss`. The decoder gets all target tokens
    but the last, the first being the start token, and is asked for all but the first.
    """

    def __call__(self, model: Any, batch: PairBatch, /, *, key: PRNGKeyArray | None = None) -> Loss:
        """The loss over a batch; a key switches dropout on."""
        tokens, targets = shifted(batch.target)
        weights = weights_of(batch.target_weights, batch.target)[..., 1:]
        source, mask = jnp.asarray(batch.source), batch.source_mask()
        return self.measure(
            model, source, tokens, targets=targets, weights=weights, source_mask=mask, key=key
        )


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
    """
    return SequenceToSequence()(model, batch, key=key).mean


def run(model: Any, *inputs: Array, **more: Any) -> tuple[Array, RouterLosses | None]:
    """The logits, and the losses of routers where a model has `run` and `logits` to tell them."""
    if not hasattr(model, "run"):
        return model(*inputs, **more), None
    hidden, *_, routers = model.run(*inputs, **more)
    return model.logits(hidden), routers


def _at(logits: Array, targets: Array, counted: Array) -> Array:
    """`logits[target]` as a masked sum, whose gradient needs no scatter; NaN outside the rows."""
    vocab = logits.shape[-1]
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    picked = jnp.sum(jnp.where(ids == targets[..., None], logits, 0.0), axis=-1)
    inside = (targets >= 0) & (targets < vocab)
    return jnp.where(inside | ~counted, picked, jnp.nan)


def _check_targets(targets: Array, counted: Array, vocab: int) -> None:
    if isinstance(targets, Tracer) or isinstance(counted, Tracer):
        return
    wrong = counted & ((targets < 0) | (targets >= vocab))
    if bool(wrong.any()):
        raise ValueError(
            f"`targets` must be ids from 0 to {vocab - 1} where their weight is not 0; "
            f"got {int(targets[wrong][0])}. Give padding the weight 0."
        )


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"`{name}` must be at least 0 and below 1; got {value}.")
