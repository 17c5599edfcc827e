"""Values inside of a model by name: captured while it runs, or replaced by others."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from eqxformer.config import nearest
from eqxformer.inspect.sites import every_site, fits, matching, star
from eqxformer.inspect.tapping import Wish, with_taps
from eqxformer.layers.taps import Collector, collecting, receiving, sending


class Captured(eqx.Module, Mapping[str, Any]):
    """What was captured, by name, in order of execution: `seen["blocks.3.residual"]`.

    A pattern gives all that match it, stacked in front: `seen["blocks.*.residual"]`.

    Arguments:
        names: the names of what was captured.
        arrays: the values, in the same order.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> names = ("blocks.0.residual", "blocks.1.residual")
        >>> seen = ef.inspect.Captured(names, (jnp.zeros((1, 3)), jnp.ones((1, 3))))
        >>> seen["blocks.1.residual"].shape, seen["blocks.*.residual"].shape
        ((1, 3), (2, 1, 3))
    """

    names: tuple[str, ...] = eqx.field(static=True)
    arrays: tuple[Any, ...]

    def __getitem__(self, name: str) -> Any:
        found = [x for n, x in zip(self.names, self.arrays, strict=True) if fits(name, n)]
        if not found:
            raise KeyError(
                f"`{name}` was not captured.{nearest(name, self.names)} "
                f"There are {', '.join(dict.fromkeys(map(star, self.names)))}."
            )
        return found[0] if name in self.names else _stacked(name, found)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names


class Capture(eqx.Module):
    """A function that gives what the model gives, and beside it a `Captured`; see `capture`.

    Arguments:
        model: the model with its taps.
        call: what is called with the model; None for the model itself.
        asked: what was asked for, and the names that it stands for.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> look = ef.capture(ef.MLP(8, hidden=16, key=jax.random.key(0)), "up")
        >>> y, seen = look(jnp.ones((2, 8)))
        >>> y.shape, seen["up"].shape
        ((2, 8), (2, 16))
    """

    model: Any
    call: Callable[..., Any] | None
    asked: tuple[tuple[str, tuple[str, ...]], ...] = eqx.field(static=True)

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Captured]:
        """The outputs, and what was captured on the way; arguments as those of what is called."""
        call = self.call or (lambda model, *args, **kwargs: model(*args, **kwargs))
        if isinstance(jnp.zeros(()), jax.core.Tracer):  # compiled with all that is around it
            with collecting() as collector:
                outputs = call(self.model, *args, **kwargs)
        else:
            with _explained(), receiving() as collector:
                outputs = call(sending(self.model), *args, **kwargs)
        return outputs, _captured(collector, self.asked)


def capture(
    model: Any,
    *names: str,
    call: Callable[..., Any] | None = None,
    keep: Callable[[Any], Any] | None = None,
) -> Capture:
    """A function like the model that also gives values from inside: `outputs, seen = f(tokens)`.

    The outputs are those of the model itself: attention weights are made beside the kernel, by the
    named layers alone. It works under `jit`, `grad` and `vmap`, with blocks that are scanned or
    rematerialised, and with caches. Where some of several scanned layers are named, these run by
    themselves; a cache is then made with `init_cache` of the capture's own `model`. Of several
    models in one, as `vmap` builds them, put the vmap around `capture`.

    What the called function itself puts under a `jit` or a loop, as `ef.generate` does, is sent to
    the host while it runs, and given as a tuple: a value for each time that it was computed, here
    one for the prompts, with the padding behind them, and one for each step. That is for a capture
    that is not itself compiled, and for one device; elsewhere put the transformation around the
    capture.

    Arguments:
        model: any module.
        names: what to capture; see `sites`. They may have `*` and `**` in them.
        call: what is called with the model and the arguments, such as `ef.DecoderLM.extend` or
            `ef.next_token_loss`; the model itself if None.
        keep: a function of each value, whose result is kept in its place, such as a norm.

    What is run several times over, as `Repeated` runs its blocks, gives its values stacked, or as a
    tuple where their shapes differ (a token table that two sides share).

    Raises `ValueError` for a name that nothing has, and for single layers of several models that
    are scanned; when called, for a name that was not computed, or that cannot be brought out of
    what it was computed in.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=2, heads=4, context=8)
        >>> model = config.build(key=jax.random.key(0))
        >>> look = ef.capture(model, "blocks.*.residual", "blocks.1.attention.weights")
        >>> logits, seen = eqx.filter_jit(look)(jnp.array([[1, 2, 3]]))
        >>> seen["blocks.1.attention.weights"].shape, seen["blocks.*.residual"].shape
        ((1, 4, 3, 3), (2, 1, 3, 16))
        >>> look = ef.capture(model, "blocks.1.residual", call=ef.generate)
        >>> made, seen = look([[1, 2, 3, 4]], max_new_tokens=3)
        >>> [x.shape for x in seen["blocks.1.residual"]]
        [(1, 16, 16), (1, 1, 16), (1, 1, 16)]
    """
    if not names:
        raise ValueError("`names` must name at least one value; got none. `ef.sites` lists all.")
    known = every_site(model)
    found = {name: matching(known, name) for name in names}
    every = dict.fromkeys(site for some in found.values() for site in some)
    asked = tuple((name, tuple(site.name for site in some)) for name, some in found.items())
    return Capture(with_taps(model, [Wish(site, keep=keep) for site in every]), call, asked)


def patch(model: Any, changes: Mapping[str, Any]) -> Any:
    """The model with other values inside, wherever it runs; it is a model of the same kind.

    Arguments:
        model: any module.
        changes: by name (see `sites`; with `*` and `**` for several), a function from the value to
            the one that takes its place, or the array that does. What `capture` gives is such a
            mapping. Numbers that change are best in a module or an `eqx.Partial`, such as
            `eqx.Partial(jnp.add, vector)`: another function is compiled anew, other arrays are not.

    Several changes of one value follow one another. Attention of which weights or scores are
    replaced is computed from these, by the named layers alone; the result is equal to rounding. Of
    several models in one, as `vmap` builds them, put the vmap around `patch`.

    Raises `ValueError` for a name that nothing has, and for single layers of several models that
    are scanned; when the model runs, for a value of another
    shape or type than the one it takes the place of.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=2, heads=4, context=8)
        >>> model = config.build(key=jax.random.key(0))
        >>> without = ef.patch(model, {"blocks.1.attention.heads[2]": jnp.zeros_like})
        >>> without(jnp.array([[1, 2, 3]])).shape
        (1, 3, 65)
    """
    wishes, known = [], every_site(model)
    for name, change in changes.items():
        if isinstance(change, (np.ndarray, jax.Array)):
            change = jnp.asarray(change)
        elif not callable(change):
            raise ValueError(
                f"`{name}` must be replaced by a function of it, or by an array; "
                f"got {type(change).__name__}."
            )
        wishes += [Wish(site, change=change) for site in matching(known, name)]
    return with_taps(model, wishes)


def _captured(collector: Collector, asked: tuple[tuple[str, tuple[str, ...]], ...]) -> Captured:
    found: dict[str, list[Any]] = {}
    for (name,), value in collector.entries:
        found.setdefault(name, []).append(value)
    for wish, names in asked:
        if not any(name in found for name in names):
            raise ValueError(_not_computed(wish, names, collector.unreachable))
    arrays = (
        tuple(jax.tree.map(jnp.asarray, values)) if name in collector.sent else _together(values)
        for name, values in found.items()
    )
    return Captured(tuple(found), tuple(arrays))


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What JAX refuses to send from a program, said in terms of the capture."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        if "effects" not in str(error).lower():
            raise
        raise ValueError(
            "What is captured is computed under a transformation in what was called, out of which "
            f"JAX sends nothing: {error} Values are sent from a jit or a loop on one device. "
            "Elsewhere put the transformation around the capture; of a generation, capture one "
            "call with all of its tokens."
        ) from error


def _not_computed(wish: str, names: tuple[str, ...], unreachable: set[str]) -> str:
    if unreachable.intersection(names):
        return (
            f"`{wish}` is computed under a transformation in what was called (a jit, a gradient, a "
            "vmap, a loop), out of which it cannot be brought while the capture is compiled "
            "itself. Put the transformation around the capture, or call the capture without `jit`."
        )
    return f"`{wish}` is not computed by this call."


def _together(values: list[Any]) -> Any:
    """The one value of a name; several stacked, or where they are not alike, as a tuple."""
    if len(values) == 1:
        return values[0]
    alike = len({tuple(map(jnp.shape, jax.tree.leaves(value))) for value in values}) == 1
    return jax.tree.map(lambda *each: jnp.stack(each), *values) if alike else tuple(values)


def _stacked(name: str, values: list[Any]) -> Any:
    try:
        return jax.tree.map(lambda *each: jnp.stack(each), *values)
    except ValueError:
        shapes = ", ".join(str(jax.tree.map(jnp.shape, value)) for value in values)
        raise ValueError(
            f"`{name}` is of {len(values)} values that cannot be stacked; their shapes are "
            f"{shapes}. Name them one by one."
        ) from None
