"""Mixture of experts: a router sends each token to a few of many feed-forwards.

Tokens are sorted by their expert and all experts run as one grouped matrix product per projection;
there is no loop over experts and no token is dropped.
"""

from typing import Annotated, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from eqxformer.axes import Axes
from eqxformer.config import Config, takes_options
from eqxformer.constraints import token_shares
from eqxformer.keys import split
from eqxformer.layers.expert_parallel import by_rows, over_mesh
from eqxformer.layers.feed_forward import FeedForward, RouterLosses
from eqxformer.layers.initializers import Initializer
from eqxformer.layers.linear import AbstractLinear, Groups, Linear, along_last
from eqxformer.layers.norms import widen
from eqxformer.layers.taps import kind_of, tap

Chosen = tuple[Float[Array, "tokens top"], Int[Array, "tokens top"], Float[Array, "tokens experts"]]


class Routing(Config):
    """How a router's scores become a choice of experts and their weights.

    Weights that sum to one are 1 where one expert is chosen, whatever its score: with `top=1` the
    router then learns nothing from the loss of the task, only from its own losses. Choose
    `SoftmaxThenTopK(normalize=False)` there, as in the Switch Transformer (Fedus et al. 2021), or
    `SigmoidTopK(normalize=False)`.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> class EvenWeights(ef.Routing):
        ...     def choose(self, logits, top, correction=None):
        ...         weights, ids = jax.lax.top_k(logits, top)
        ...         return jnp.full_like(weights, 1 / top), ids, jax.nn.softmax(logits)
        >>> weights, ids, _ = EvenWeights().choose(jnp.array([[1.0, 3.0, 2.0]]), top=2)
        >>> weights.tolist(), ids.tolist()
        ([[0.5, 0.5]], [[1, 2]])
    """

    def check_sizes(self, count: int, top: int) -> None:
        """Raises `ValueError` where `top` of `count` experts cannot be chosen so; all can here."""

    def choose(
        self,
        logits: Float[Array, "tokens experts"],
        top: int,
        correction: Float[Array, " experts"] | None = None,
    ) -> Chosen:
        """The weights and ids of the `top` experts of every token, and all probabilities.

        A correction per expert takes part in the choice alone, not in the weights.
        """
        raise NotImplementedError(f"{self.type_name} must define `choose`.")


class SoftmaxThenTopK(Routing):
    """Softmax over all experts, then the largest; `normalize` makes those sum to one (Qwen3).

    Arguments:
        normalize: whether the weights of the chosen experts sum to one.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
        >>> weights, ids, _ = ef.SoftmaxThenTopK(normalize=False).choose(logits, top=2)
        >>> print(weights.round(3), ids)
        [[0.5  0.25]] [[0 1]]
    """

    normalize: bool = True

    def choose(
        self,
        logits: Float[Array, "tokens experts"],
        top: int,
        correction: Float[Array, " experts"] | None = None,
    ) -> Chosen:
        probabilities = jax.nn.softmax(logits, axis=-1)
        weights, ids = _largest(probabilities, corrected(probabilities, correction), top)
        return (normalized(weights) if self.normalize else weights), ids, probabilities


class TopKThenSoftmax(Routing):
    """The largest scores, then a softmax over these alone (Mixtral, gpt-oss).

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> logits = jnp.log(jnp.array([[0.6, 0.2, 0.2]]))
        >>> weights, ids, _ = ef.TopKThenSoftmax().choose(logits, top=2)
        >>> print(weights.round(2), ids)
        [[0.75 0.25]] [[0 1]]
    """

    def choose(
        self,
        logits: Float[Array, "tokens experts"],
        top: int,
        correction: Float[Array, " experts"] | None = None,
    ) -> Chosen:
        largest, ids = _largest(logits, corrected(logits, correction), top)
        return jax.nn.softmax(largest, axis=-1), ids, jax.nn.softmax(logits, axis=-1)


class SigmoidTopK(Routing):
    """A sigmoid per expert, then the largest, made to sum to `scale` (DeepSeek-AI 2024, V3).

    Experts may lie in `groups`, neighbours together: then a token chooses from `top_groups` of them
    alone, those whose two best experts have the largest sum.

    Arguments:
        normalize: whether the weights of the chosen experts are made to sum to one first.
        scale: what they are multiplied by then.
        groups, top_groups: how many groups there are, and how many a token chooses.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> logits = jnp.array([[0.0, 2.0, -2.0]])
        >>> weights, ids, _ = ef.SigmoidTopK(scale=2.0).choose(logits, top=2)
        >>> print(weights.sum().round(3), ids)
        2.0 [[1 0]]
    """

    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1

    def check(self) -> None:
        if not 1 <= self.top_groups <= self.groups:
            raise ValueError(
                "`top_groups` must be between 1 and `groups`; "
                f"got top_groups={self.top_groups}, groups={self.groups}."
            )

    def check_sizes(self, count: int, top: int) -> None:
        if self.groups > 1 and (count % self.groups or count < 2 * self.groups):
            raise ValueError(
                "`groups` must divide the count of experts into groups of two or more; "
                f"got groups={self.groups}, count={count}."
            )
        if top > count // self.groups * self.top_groups:
            raise ValueError(
                f"`top` experts must be there in `top_groups` groups of {count // self.groups}; "
                f"got top={top}, top_groups={self.top_groups}."
            )

    def choose(
        self,
        logits: Float[Array, "tokens experts"],
        top: int,
        correction: Float[Array, " experts"] | None = None,
    ) -> Chosen:
        scores = jax.nn.sigmoid(logits)
        weights, ids = _largest(scores, self._within_groups(corrected(scores, correction)), top)
        weights = normalized(weights) if self.normalize else weights
        return self.scale * weights, ids, normalized(scores)

    def _within_groups(
        self, scores: Float[Array, "tokens experts"]
    ) -> Float[Array, "tokens experts"]:
        """The scores of the best groups; minus infinity for the experts of all others."""
        if self.groups == 1:
            return scores
        tokens, count = scores.shape
        grouped = scores.reshape(tokens, self.groups, count // self.groups)
        best_two = jax.lax.top_k(grouped, 2)[0].sum(-1)
        _, chosen = jax.lax.top_k(best_two, self.top_groups)
        kept = jax.nn.one_hot(chosen, self.groups, dtype=jnp.int32).sum(-2) > 0
        kept = jnp.broadcast_to(kept[..., None], grouped.shape)
        return jnp.where(kept, grouped, -jnp.inf).reshape(tokens, count)


class Experts(FeedForward):
    """Mixture of experts: `sum over chosen e of weight[e] * expert[e](x)` (Shazeer et al. 2017).

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.Experts.Config(count=4, top=2, expert=ef.GatedMLP.Config(hidden=16))
        >>> y, losses = config.build(8, key=jax.random.key(0)).run(jnp.ones((2, 3, 8)))
        >>> y.shape, losses.load_balance.shape
        ((2, 3, 8), ())
    """

    class Config(FeedForward.Config):
        """Many experts of one kind, the router, and experts that every token uses.

        Arguments:
            count: experts; each token uses `top` of them. For `top=1`, choose a routing whose
                weights are not made to sum to one: see `Routing`.
            expert: the config of each.
            routing: how scores become weights.
            router: the projection to scores.
            shared: a feed-forward for every token, beside the chosen experts.
            correction: how a number per expert starts that is added to its score where experts are
                chosen; None for none. It keeps the load even: it gets no gradient and is moved by
                whoever trains (Wang et al. 2024).
        """

        count: int
        top: int
        expert: FeedForward.Config
        routing: Routing = SoftmaxThenTopK()
        router: Linear.Config = Linear.Config(bias=False)
        shared: FeedForward.Config | None = None
        correction: Initializer | None = None

        def check(self) -> None:
            if not 1 <= self.top <= self.count:
                raise ValueError(
                    f"`top` must be between 1 and `count`; got top={self.top}, count={self.count}."
                )
            self.routing.check_sizes(self.count, self.top)
            for name in ("expert", "shared"):
                if isinstance(getattr(self, name), Experts.Config):
                    raise ValueError(f"`{name}` cannot itself be a mixture of experts.")

        def build(self, dim: int, *, key: PRNGKeyArray) -> "Experts":
            """A mixture of experts for this width."""
            return Experts(dim, self, key=key)

    sites: ClassVar[tuple[str, ...]] = ("chosen_experts", "chosen_weights")
    # Rounded, they would send tokens to other experts.
    in_float32: ClassVar[tuple[str, ...]] = ("router", "correction")

    router: Annotated[AbstractLinear, Axes(in_dim="dim", out_dim="experts")]
    experts: Annotated[FeedForward, Axes(stacked="experts")]
    shared: FeedForward | None
    correction: Float[Array, " experts"] | None
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, dim: int, config: Config, *, key: PRNGKeyArray):
        router, experts, shared, correction = split(key, 4)
        self.router = config.router.build(dim, config.count, key=router)
        self.experts = eqx.filter_vmap(lambda k: config.expert.build(dim, key=k))(
            jax.random.split(experts, config.count)
        )
        _refuse_ungrouped(self.experts)
        self.shared = None if config.shared is None else config.shared.build(dim, key=shared)
        self.correction = None
        if config.correction is not None:
            self.correction = config.correction(correction, (1, config.count))[0]
        self.config = config

    def run(
        self, x: Float[Array, "*batch dim"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*batch dim"], RouterLosses]:
        return self._routed(x, None, key)

    def run_valid(
        self,
        x: Float[Array, "*batch seq dim"],
        valid: Bool[Array, "*#batch seq"] | None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], RouterLosses]:
        if kind_of(self).run is not Experts.run:  # one of your own, which is asked as ever
            return self.run(x, key=key)
        return self._routed(x, valid, key)

    def _routed(
        self, x: Array, valid: Array | None, key: PRNGKeyArray | None
    ) -> tuple[Array, RouterLosses]:
        routed_key, shared_key = split(key, 2)
        tokens = x.reshape(-1, x.shape[-1])
        # In float32 all through: rounded scores would send tokens to other experts.
        router = jax.tree.map(lambda a: widen(a) if eqx.is_inexact_array(a) else a, self.router)
        logits = router(widen(tokens))
        weights, ids, probabilities = by_rows(
            lambda logits, correction: self.config.routing.choose(
                logits, self.config.top, correction
            ),
            logits,
            self.correction,
        )
        ids = tap(self, "chosen_experts", ids, x.shape[:-1])
        weights = tap(self, "chosen_weights", weights, x.shape[:-1])
        y = self._mix(tokens, weights, ids, routed_key).reshape(x.shape)
        if self.shared is not None:
            y = y + self.shared(x, key=shared_key)
        if valid is not None:
            valid = jnp.broadcast_to(valid, x.shape[:-1]).reshape(-1)
        return y, router_losses(logits, probabilities, ids, valid)

    def _mix(self, tokens: Array, weights: Array, ids: Array, key: PRNGKeyArray | None) -> Array:
        """Every chosen expert's result, weighted and summed per token."""
        top, count = self.config.top, self.config.count
        if token_shares() > 1:
            return over_mesh(_run, self.experts, tokens, weights, ids, count=count, key=key)
        order = jnp.argsort(ids.reshape(-1), stable=True)  # by expert; row r is token r // top
        results = _run(self.experts, tokens[order // top], ids.reshape(-1)[order], key)
        scaled = results * weights.reshape(-1, 1)[order].astype(results.dtype)
        back = jnp.zeros_like(scaled).at[order].set(scaled, unique_indices=True)
        return back.reshape(-1, top, tokens.shape[-1]).sum(1)


def router_losses(
    logits: Float[Array, "tokens experts"],
    probabilities: Float[Array, "tokens experts"],
    ids: Int[Array, "tokens top"],
    valid: Bool[Array, " tokens"] | None = None,
) -> RouterLosses:
    """Load balance: `experts * sum over e of share[e] * probability[e]`; z: mean squared log-sum.

    The share of an expert is its part of all choices, so a perfect balance gives 1 (Fedus et al.
    2021). The z-loss keeps logits small (Zoph et al. 2022). All three are means over the tokens
    that are valid; without any, both losses are zero.
    """
    (tokens, experts), top = logits.shape, ids.shape[1]
    squares = jnp.square(jax.nn.logsumexp(logits, axis=-1))
    if valid is None:
        count, chosen = max(tokens, 1), 1.0
    else:
        count = jnp.maximum(valid.sum(dtype=jnp.int32), 1).astype(logits.dtype)
        chosen = jnp.repeat(valid.astype(logits.dtype), top)
        squares = jnp.where(valid, squares, 0.0)
        probabilities = jnp.where(valid[:, None], probabilities, 0.0)
    share = jnp.zeros(experts, logits.dtype).at[ids.reshape(-1)].add(chosen) / (count * top)
    mean = probabilities.sum(0) / count
    z = squares.sum() / count
    return RouterLosses(load_balance=experts * (share * mean).sum(), z=z)


def corrected(
    scores: Float[Array, "tokens experts"], correction: Float[Array, " experts"] | None
) -> Float[Array, "tokens experts"]:
    """`scores + correction`, for a choice: neither gets a gradient through it."""
    if correction is not None:
        scores = scores + along_last(widen(correction), scores)
    return jax.lax.stop_gradient(scores)


def normalized(weights: Float[Array, "tokens n"]) -> Float[Array, "tokens n"]:
    """Weights that sum to one per token."""
    return weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-20)


def _largest(
    scores: Float[Array, "tokens experts"], by: Float[Array, "tokens experts"], top: int
) -> tuple[Float[Array, "tokens top"], Int[Array, "tokens top"]]:
    """The scores and ids of the experts that are largest in `by`."""
    _, ids = jax.lax.top_k(by, top)
    return jnp.take_along_axis(scores, ids, axis=-1), ids


def _refuse_ungrouped(experts: FeedForward) -> None:
    """Raises `NotImplementedError` for parameters not of a `Linear`, or where there are none."""
    if not any(eqx.is_array(leaf) for leaf in jax.tree.leaves(experts)):
        raise NotImplementedError(
            "An expert must have parameters, which tell the experts apart; "
            f"{type(experts).__name__} has none."
        )
    rest = jax.tree.map(
        lambda part: None if isinstance(part, Linear) else part,
        experts,
        is_leaf=lambda part: isinstance(part, Linear),
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(rest):
        if eqx.is_array(leaf):
            name = jax.tree_util.keystr(path).removeprefix(".")
            raise NotImplementedError(
                "An expert may have parameters in `Linear` maps only, which run grouped by expert; "
                f"{type(experts).__name__} has `{name}`."
            )


def _run(experts: FeedForward, rows: Array, group: Array, key: PRNGKeyArray | None) -> Array:
    """Rows that are sorted by their group, each through the expert of its own."""
    count = next(leaf.shape[0] for leaf in jax.tree.leaves(experts) if eqx.is_array(leaf))
    return _grouped(experts, Groups(group, count))(rows, key=key)


def _grouped(experts: FeedForward, groups: Groups) -> FeedForward:
    """The stacked experts as one feed-forward over rows sorted by expert."""

    def swap(part: object) -> object:
        return part.grouped(groups) if isinstance(part, AbstractLinear) else part

    return jax.tree.map(swap, experts, is_leaf=lambda part: isinstance(part, AbstractLinear))
