"""Where numbers break: the first value of a run that is NaN, infinite, or too large for a type."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from eqxformer.checkpoints.names import named_arrays, unrolled
from eqxformer.config import Config
from eqxformer.constraints import fetched
from eqxformer.inspect.sites import Site, every_site, parts
from eqxformer.inspect.tapping import Wish, with_taps
from eqxformer.layers.biases import PositionBias
from eqxformer.layers.norms import Identity
from eqxformer.layers.taps import HELD, Taken, collecting

Slots = dict[tuple[str, str], Array]
_NOT_WATCHED = ("scores", "weights", "chosen_experts", "chosen_weights", "residual")


class Fault(NamedTuple):
    """Numbers that are broken.

    Arguments:
        name: of a part or an array, as in the parameter table.
        what: what of it: "weight", "input", "output", or the gradient of one of these.
        shape: of all numbers.
        dtype: their type.
        nans, infinite, beyond: how many are NaN, infinite, and finite but beyond `fits`.
        largest: the largest absolute value of those that are finite; of the gradient of a part that
            is used several times, the sum over its uses, as the counts are.
        fits: the type whose range they were to fit.

    Example:
        >>> import eqxformer as ef
        >>> print(ef.inspect.Fault("up", "output", (2, 8), "float32", 1, 0, 0, 2.5, "float32"))
        output of up, float32[2, 8]: 1 NaN of 16 numbers; the largest finite one is 2.5
    """

    name: str
    what: str
    shape: tuple[int, ...]
    dtype: str
    nans: int
    infinite: int
    beyond: int
    largest: float
    fits: str

    def __str__(self) -> str:
        counts = {
            "NaN": self.nans,
            "infinite": self.infinite,
            f"beyond {self.fits}": self.beyond,
        }
        found = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
        where = f"{self.what} of {self.name}" if self.name else self.what
        return (
            f"{where}, {self.dtype}{list(self.shape)}: {found} of {math.prod(self.shape)} numbers; "
            f"the largest finite one is {self.largest:.3g}"
        )


class Measured(eqx.Module):
    """How many numbers of an array are NaN, infinite, too large, and the largest finite one."""

    numbers: Float[Array, "*several 4"]
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: str = eqx.field(static=True)


class Keep(eqx.Module):
    """The counts of an array's broken numbers, and its largest finite one; of floats alone."""

    fits: str = eqx.field(static=True)

    def __call__(self, x: Any) -> Measured | None:
        if not eqx.is_inexact_array(x):
            return None
        size, finite = jnp.abs(x).astype(jnp.float32), jnp.isfinite(x)
        largest = jnp.max(jnp.where(finite, size, 0.0), initial=0.0)
        beyond = finite & (size > float(jnp.finfo(self.fits).max))
        counts = [jnp.sum(each, dtype=jnp.float32) for each in (jnp.isnan(x), jnp.isinf(x), beyond)]
        return Measured(jnp.stack([*counts, largest]), x.shape, str(x.dtype))

    def each(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The counts of every array of floating type, in trees by name."""
        return {name: jax.tree.map(self, x) for name, x in arrays.items()}


class Watch(Config):
    """Finds the first broken numbers of a call, in the order in which they are made.

    It looks at weights, then at what goes into and comes out of every part, first to last; with
    `gradient`, then at the gradients of these, last to first, and of the weights. Only counts are
    kept, no values. What goes into a part may break between parts, in an activation, say; then it
    is the input of a part whose predecessor's output is still sound.

    Arguments:
        fits: the type whose range numbers must fit, also those that are of a larger one:
            `Watch("bfloat16")` finds in float32 what will overflow in bfloat16.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> large = ef.patch(mlp, {"up": lambda x: x + 1e5})
        >>> print(ef.Watch("float16").forward(large, jnp.ones((2, 8))))
        output of up, float32[2, 16]: 32 beyond float16 of 32 numbers; the largest finite one is
        1e+05
    """

    fits: Literal["float32", "bfloat16", "float16"] = "float32"

    def forward(
        self, model: Any, *args: Any, call: Callable[..., Any] | None = None, **kwargs: Any
    ) -> Fault | None:
        """The first fault of a call of the model, or of `call` with it; None where all is sound."""
        keep = Keep(self.fits)
        tapped = with_taps(model, (Wish(site, keep=keep) for site in _watched(model)))
        weights, taken, outputs = _forward(keep, model, tapped, call, args, kwargs)
        return self._first([*_of("weight", weights), *_inside(taken), *_of("", outputs)])

    def gradient(
        self, model: Any, *args: Any, call: Callable[..., Any], **kwargs: Any
    ) -> Fault | None:
        """The first fault of `call(model, ...)`, a loss, or of its gradient; None if all is sound.

        Example:
            >>> import eqxformer as ef, jax, jax.numpy as jnp
            >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
            >>> steep = ef.patch(mlp, {"down": lambda x: jnp.sqrt(0.0 * x)})
            >>> print(ef.Watch().gradient(steep, jnp.ones((2, 8)), call=lambda f, x: f(x).sum()))
            gradient of input of down, float32[2, 16]: 32 NaN of 32 numbers; the largest finite one
            is 0
        """
        keep, wishes = Keep(self.fits), []
        for site in _watched(model):
            probe = Probe(jnp.zeros(4), self.fits)
            wishes += [Wish(site, change=probe), Wish(site, keep=keep)]
        tapped = with_taps(model, wishes)
        weights, taken, loss, slots, arrays = _both(keep, model, tapped, call, args, kwargs)
        forward = _inside(taken)
        backward = _backward(slots, forward)
        found = [*_of("weight", weights), *forward, *_of("", loss), *backward]
        return self._first([*found, *_of("gradient of weight", arrays)])

    def _first(self, found: Iterable[tuple[str, str, Measured]]) -> Fault | None:
        """The first of what was measured that is not sound."""
        for name, what, measured in found:
            nans, infinite, beyond, largest = _summed(fetched(measured.numbers))
            if nans or infinite or beyond:
                counts = (int(nans), int(infinite), int(beyond))
                shape, dtype = measured.shape, measured.dtype
                return Fault(name, what, shape, dtype, *counts, largest, self.fits)
        return None


class Probe(eqx.Module):
    """The value that it is given, whose gradient is measured: it is the gradient of `slot`."""

    slot: Float[Array, "4"]
    fits: str = eqx.field(static=True)

    def __call__(self, value: Any) -> Any:
        if not eqx.is_inexact_array(value):
            return value
        return _probed(self.fits, value, self.slot)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _probed(fits: str, value: Array, slot: Array) -> Array:
    return value


def _probed_forward(fits: str, value: Array, slot: Array) -> tuple[Array, None]:
    return value, None


def _probed_backward(fits: str, _: None, gradient: Array) -> tuple[Array, Array]:
    measured = Keep(fits)(gradient)
    assert measured is not None  # gradients are of floating types
    return gradient, measured.numbers


_probed.defvjp(_probed_forward, _probed_backward)


@eqx.filter_jit
def _forward(
    keep: Keep, model: Any, tapped: Any, call: Callable[..., Any] | None, args: Any, kwargs: Any
) -> tuple[dict[str, Any], Taken, dict[str, Any]]:
    """What is measured of weights, inside, and of the outputs."""
    with collecting() as collector:
        outputs = tapped(*args, **kwargs) if call is None else call(tapped, *args, **kwargs)
    return keep.each(_weights(model)), collector.taken(), keep.each({"outputs": outputs})


@eqx.filter_jit
def _both(
    keep: Keep, model: Any, tapped: Any, call: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[dict[str, Any], Taken, dict[str, Any], Slots, dict[str, Any]]:
    """What is measured of weights, inside, of the loss, of gradients inside and of weights."""

    def run(tapped: Any) -> tuple[Array, Any]:
        with collecting() as collector:
            loss = call(tapped, *args, **kwargs)
        return loss, (collector.taken(), keep.each({"loss": loss}))

    (_, (taken, loss)), gradients = eqx.filter_value_and_grad(run, has_aux=True)(tapped)
    weights, changes = (keep.each(_weights(tree)) for tree in (model, gradients))
    return weights, taken, loss, _slots(gradients), changes


def _weights(model: Any) -> dict[str, Any]:
    """The model's arrays by name, without those of patches."""
    return {name: x for name, x in named_arrays(model).items() if HELD not in name}


def _watched(model: Any) -> list[Site]:
    """All sites but those that say nothing new; a bias of scores may be minus infinity."""
    shapes = unrolled(eqx.filter_eval_shape(lambda: model))
    left_out = (Identity, PositionBias)
    paths = {path for path, part in parts(shapes) if not isinstance(part, left_out)}
    every = every_site(model)
    return [site for site in every if site.what not in _NOT_WATCHED and site.path in paths]


def _inside(taken: Taken) -> list[tuple[str, str, Measured]]:
    """What was measured at sites, with their paths and what they are."""
    found = []
    for (name,), measured in zip(taken.names, taken.values, strict=True):
        if measured is not None:
            path, _, last = name.rpartition(".")
            inner = last in ("input", "queries", "keys", "values", "heads")
            found.append((path, last, measured) if inner else (name, "output", measured))
    return found


def _of(what: str, measured: dict[str, Any]) -> list[tuple[str, str, Measured]]:
    leaves = jax.tree_util.tree_leaves_with_path(
        measured, is_leaf=lambda node: isinstance(node, Measured)
    )
    return [(path[0].key, what, leaf) if what else ("", path[0].key, leaf) for path, leaf in leaves]


def _slots(gradients: Any) -> Slots:
    """What was measured of the gradient at each site."""
    return {
        (path, tap.site): tap.change.slot
        for path, part in parts(unrolled(gradients))
        for tap in getattr(part, HELD, ())
        if isinstance(tap.change, Probe)
    }


def _backward(
    slots: Slots, forward: list[tuple[str, str, Measured]]
) -> list[tuple[str, str, Measured]]:
    """What was measured of gradients, from the last value that was made to the first."""
    order = {(path, what): measured for path, what, measured in forward}
    return [
        (path, f"gradient of {what}", Measured(slots[path, what], like.shape, like.dtype))
        for (path, what), like in reversed(order.items())
        if slots.get((path, what)) is not None
    ]


def _summed(numbers: Any) -> tuple[float, ...]:
    """The counts of one value, or of one that was made several times over."""
    rows = numbers.reshape(-1, 4)
    return (*rows[:, :3].sum(0).tolist(), float(rows[:, 3].max()))
