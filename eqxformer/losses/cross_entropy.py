"""Token-weighted cross-entropy, and the sum and weight that it comes in.

Sums and weights are kept apart, so that batches of unequal token counts add up to the true mean.
"""

import dataclasses
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from eqxformer.data.batches import check_weights_shape

Weights = Float[Array, "*batch"] | Bool[Array, "*batch"]


class Loss(eqx.Module):
    """A sum over tokens and the weight of those tokens: `mean = total / weight`.

    Losses add: `sum(losses, Loss.zero())` is the loss of the batches together, weighted by token.
    `metrics` holds what else was measured, each summed with the weight of its batch.

    Arguments:
        total: the sum over tokens, each times its weight; in nats for a cross-entropy.
        weight: the sum of the weights.
        metrics: sums likewise, by name.
        penalties: which of the metrics belong to a batch as a whole, such as the balance of
            experts, so that those of its halves do not sum to them; `plus` names them here.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> few = ef.Loss(jnp.array(6.0), weight=jnp.array(2.0))
        >>> many = ef.Loss(jnp.array(2.0), weight=jnp.array(6.0))
        >>> float(few.mean), float((few + many).mean)
        (3.0, 1.0)
    """

    total: Float[Array, ""]
    weight: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)
    penalties: frozenset[str] = eqx.field(static=True, default=frozenset())

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
        total = sum(scaled.values(), self.total)
        named = self.penalties.union(scaled)
        return Loss(total, self.weight, {**self.metrics, **scaled}, named)

    def __add__(self, other: "Loss") -> "Loss":
        names = {**self.metrics, **other.metrics}
        zero = jnp.zeros((), jnp.float32)
        both = {n: self.metrics.get(n, zero) + other.metrics.get(n, zero) for n in names}
        total, weight = self.total + other.total, self.weight + other.weight
        return Loss(total, weight, both, self.penalties | other.penalties)


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
    `ValueError`, or makes the loss NaN where ids are not known yet, inside `jax.jit`. Targets and
    weights of another shape than the places of the logits raise it too: neither is broadcast.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> loss = ef.cross_entropy(jnp.zeros((2, 4)), jnp.array([1, 3]))
        >>> float(loss.total), float(loss.weight)
        (2.7725887298583984, 2.0)
    """
    if weights is None:
        weights = jnp.ones(targets.shape, jnp.float32)
    weights = weights.astype(jnp.float32)
    options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
    return Loss(jnp.sum(cross_entropies(logits, targets, weights, **options)), jnp.sum(weights))


def cross_entropies(
    logits: Float[Array, "*batch vocab"],
    targets: Int[Array, "*batch"],
    weights: Float[Array, "*batch"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Float[Array, "*batch"]:
    """The weighted cross-entropy at each place, before `cross_entropy` adds them up."""
    check_share("label_smoothing", label_smoothing)
    if targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"`targets` must have the shape {logits.shape[:-1]}, an id for each place of the "
            f"logits; got {targets.shape}."
        )
    check_weights_shape(weights.shape, targets.shape)
    counted, targets = weights != 0, wide_ids(targets)
    check_targets(targets, counted, logits.shape[-1])
    # Not only the result is masked but the logits too: 0 x NaN would be NaN in the gradient.
    logits = jnp.where(counted[..., None], logits, jnp.zeros((), logits.dtype)).astype(jnp.float32)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    loss = log_sum - (1.0 - label_smoothing) * _at(logits, targets, counted)
    if label_smoothing:
        loss = loss - label_smoothing * logits.mean(axis=-1)
    if z_loss:
        loss = loss + z_loss * jnp.square(log_sum)
    return weights * loss


def wide_ids(ids: Array) -> Array:
    """Ids in a type that holds every vocabulary's size, which that of bytes, say, does not."""
    return ids.astype(jnp.int32) if ids.dtype.itemsize < 4 else ids


def _at(logits: Array, targets: Array, counted: Array) -> Array:
    """`logits[target]` as a masked sum, whose gradient needs no scatter; NaN outside the rows."""
    vocab = logits.shape[-1]
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    picked = jnp.sum(jnp.where(ids == targets[..., None], logits, 0.0), axis=-1)
    inside = (targets >= 0) & (targets < vocab)
    return jnp.where(inside | ~counted, picked, jnp.nan)


def check_targets(targets: Array, counted: Array, vocab: int) -> None:
    """Raises `ValueError` for a target that counts and is no id of the vocabulary, if known yet."""
    if isinstance(targets, Tracer) or isinstance(counted, Tracer):
        return
    wrong = counted & ((targets < 0) | (targets >= vocab))
    if bool(wrong.any()):
        raise ValueError(
            f"`targets` must be ids from 0 to {vocab - 1} where their weight is not 0; "
            f"got {int(targets[wrong][0])}. Give padding the weight 0."
        )


def check_share(name: str, value: float) -> None:
    """Raises `ValueError` for a share that is not from 0 to below 1."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"`{name}` must be at least 0 and below 1; got {value}.")
