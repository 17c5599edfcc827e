"""The compiler's view of a function: its jaxpr, its optimised HLO, its cost and its memory.

A function is traced on shapes alone. The parts of a model are named while that is done, so that
equations and instructions say where they come from: `blocks.3/attention/query`.
"""

import collections
import contextlib
import contextvars
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax

from eqxformer.checkpoints.names import is_array
from eqxformer.inspect.buffers import Buffer, buffers_of, dumped
from eqxformer.inspect.observe import Visit, run_observed
from eqxformer.inspect.tabulate import short_shape
from eqxformer.layers.dot_product import Choice, backend_report


@dataclasses.dataclass(frozen=True)
class ProgramMemory:
    """Bytes that a compiled program needs on a device.

    Arguments:
        arguments, outputs, temporary: what it is given, gives, and holds in between.
        shared: of the outputs, what lies where donated arguments were.
        peak: the most that it holds at once.
        buffers: what it holds, the largest first.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> shape = jax.ShapeDtypeStruct((4, 8), jnp.float32)
        >>> memory = ef.inspect.program(lambda x: 2 * x, shape).memory
        >>> memory.arguments, memory.outputs
        (128, 128)
    """

    arguments: int
    outputs: int
    temporary: int
    shared: int
    peak: int
    buffers: tuple[Buffer, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A function as JAX has traced it for some shapes; it is compiled when that is first needed.

    Arguments:
        traced: what `jax.jit(function).trace` gives.
        backends: which attention backend serves each attention, by its path, and why.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        >>> forward = ef.inspect.program(lambda model, x: model(x), ef.shapes(config), tokens)
        >>> forward.primitives()["dot_general"], forward.backends["blocks.0.attention"].backend
        (9, 'plain')
    """

    traced: Any
    backends: dict[str, Choice]

    @property
    def signature(self) -> str:
        """The shapes of what is returned."""
        return ", ".join(short_shape(leaf) for leaf in jax.tree.leaves(self.traced.out_info))

    @property
    def jaxpr(self) -> str:
        """The equations, each with the part that it is of."""
        text = self.traced.jaxpr.pretty_print(name_stack=True, use_color=False)
        return re.sub(r" +# \[\]$", "", re.sub(r" {2,}# \[", "  # [", text), flags=re.MULTILINE)

    def primitives(self) -> dict[str, int]:
        """How many equations there are of each primitive, those within loops and calls included."""
        counts = collections.Counter(equation for equation in _equations(self.traced.jaxpr.jaxpr))
        return dict(counts.most_common())

    @functools.cached_property
    def hlo(self) -> str:
        """The instructions that the compiler has made of it for this machine."""
        return self._compiled[0].as_text() or ""

    @property
    def cost(self) -> dict[str, float]:
        """Floating point operations and bytes moved, as the compiler reckons them.

        It counts the body of a loop once, whose number of rounds it does not know: `flops`, and
        `bytes` that instructions read and write.
        """
        found = self._compiled[0].cost_analysis() or {}
        return {"flops": found.get("flops", 0.0), "bytes": found.get("bytes accessed", 0.0)}

    @property
    def memory(self) -> ProgramMemory:
        """What it holds at most, and in which buffers."""
        compiled, assignment = self._compiled
        found = compiled.memory_analysis()
        sizes = (
            found.argument_size_in_bytes,
            found.output_size_in_bytes,
            found.temp_size_in_bytes,
            found.alias_size_in_bytes,
        )
        peak = sum(sizes[:3]) - sizes[3]
        return ProgramMemory(*sizes, peak, buffers_of(assignment, self.hlo))

    @functools.cached_property
    def _compiled(self) -> tuple[Any, str]:
        """The compiled program, and what the compiler has written down of its buffers."""
        return dumped(self.traced.lower())


def program(function: Callable[..., Any], model: Any, *args: Any) -> Program:
    """A function of a model as a `Program`; nothing is computed, and shapes serve as arguments.

    Arguments:
        function: is called with the model and `args`; may differentiate, or run a step of decoding.
        model: a module, or its shapes, as `ef.shapes(config)` gives them.
        args: arrays, trees of them, or their shapes (`jax.ShapeDtypeStruct`).

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax, jax.numpy as jnp
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> forward = ef.inspect.program(lambda part, x: part(x), mlp, jnp.ones((2, 8)))
        >>> forward.signature
        'f32[2,8]'
    """
    model_arrays, model_rest = eqx.partition(model, is_array)
    arrays, rest = eqx.partition(args, is_array)
    places: list[str] = []

    def traced(model: Any, args: Any) -> Any:
        given = eqx.combine(args, rest)
        observer = functools.partial(_named, report, places)
        whole = eqx.combine(model, model_rest)
        out = run_observed(lambda parts: function(parts, *given), whole, observer, unroll=False)
        return eqx.filter(out, eqx.is_array)

    with backend_report() as report:
        found = jax.jit(traced).trace(model_arrays, arrays)
    return Program(found, dict(zip(places, report, strict=False)))


_WHERE: contextvars.ContextVar[tuple[str, ...]] = contextvars.ContextVar("where", default=())


def _named(report: list[Choice], places: list[str], visit: Visit) -> Any:
    """The result of a part, its equations under its name; notes by whom backends were chosen."""
    above = _WHERE.get()
    places += ["".join(above[-1:])] * (len(report) - len(places))
    holder = next((path for path in reversed(above) if visit.path.startswith(f"{path}.")), "")
    name = visit.path.removeprefix(f"{holder}.")
    token = _WHERE.set((*above, visit.path))
    try:
        with jax.named_scope(name) if name else contextlib.nullcontext():
            out = visit.go_on()
    finally:
        _WHERE.reset(token)
    places += [visit.path] * (len(report) - len(places))
    return out


def _equations(jaxpr: Any) -> Iterator[str]:
    """The primitives of a jaxpr's equations, and of those inside of them.

    Of branches among which the platform chooses, those of this machine's are taken.
    """
    chosen: dict[Any, int] = {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "platform_index":
            chosen[equation.outvars[0]] = _of_platform(equation.params["platforms"])
            continue
        inner = [each for value in equation.params.values() for each in _jaxprs(value)]
        if equation.primitive.name == "cond" and id(equation.invars[0]) in map(id, chosen):
            inner = [inner[chosen[equation.invars[0]]]]
        if not inner:
            yield equation.primitive.name
        for each in inner:
            yield from _equations(each)


def _of_platform(platforms: Any) -> int:
    """Which of some groups of platforms has this machine's; the last is for all others."""
    here = jax.default_backend()
    return next((i for i, group in enumerate(platforms) if group and here in group), -1)


def _jaxprs(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for each in value:
            yield from _jaxprs(each)
    elif hasattr(value, "eqns"):
        yield value
    elif hasattr(value, "jaxpr"):
        yield value.jaxpr
