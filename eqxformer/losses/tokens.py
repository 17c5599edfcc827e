"""What language models are trained on: cross-entropy of the next token, and of an answer."""

from typing import Any, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.config import Config
from eqxformer.data.batches import PairBatch, TokenBatch, shifted, weights_of
from eqxformer.losses.chunked import cross_entropy_of
from eqxformer.losses.cross_entropy import Loss, check_share, cross_entropy


class LossFunction(Protocol):
    """What a training step minimises: a `Loss`, or simply a scalar.

    `key` switches dropout on and is absent when the model is evaluated.
    """

    def __call__(
        self, model: Any, batch: Any, /, *, key: PRNGKeyArray | None = None
    ) -> Loss | Float[Array, ""]: ...


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
        check_share("label_smoothing", self.label_smoothing)

    def __call__(self, model: Any, batch: Any, /, *, key: PRNGKeyArray | None = None) -> Loss:
        """The loss over a batch; a key switches dropout on."""
        raise NotImplementedError(f"{self.type_name} must say what it asks the model.")

    def measure(
        self, model: Any, *inputs: Array, targets: Array, weights: Array, **more: Any
    ) -> Loss:
        """The loss of a model's answer to `inputs`.

        A model with `run`, which gives hidden states, routers' losses last (or None), and `logits`
        of hidden states, is asked through these; the logits then need not all exist at once.
        """
        if not hasattr(model, "run"):
            return cross_entropy(
                model(*inputs, **more),
                targets,
                weights=weights,
                label_smoothing=self.label_smoothing,
                z_loss=self.z_loss,
            )
        hidden, *_, routers = model.run(*inputs, **more)
        loss = cross_entropy_of(
            hidden,
            model.logits,
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
    asked for all but the first; a token counts as a target by its weight. Of rows that hold several
    documents, it gets `mask` and `positions` too: the loss is that of the documents one by one.
    """

    def __call__(
        self, model: Any, batch: TokenBatch, /, *, key: PRNGKeyArray | None = None
    ) -> Loss:
        """The loss over a batch; a key switches dropout on."""
        tokens, targets, context = asked(model, batch)
        weights = batch.target_weights()
        return self.measure(model, tokens, targets=targets, weights=weights, key=key, **context)


def asked(
    model: Any, batch: TokenBatch
) -> tuple[Int[Array, "*batch prefix"], Int[Array, "*batch prefix"], dict[str, Any]]:
    """What a decoder-only model reads, what it should say to it, and what else it is told."""
    tokens, targets = shifted(batch.tokens)
    context = batch.context()
    if not getattr(model, "reads_positions", True):
        context.pop("positions", None)
    return tokens, targets, context


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
