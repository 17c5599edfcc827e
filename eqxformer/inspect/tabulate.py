"""The table of parts: what goes into each and comes out, found by an abstract run."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax

from eqxformer.blocks.stack import Stack, Unrolled
from eqxformer.checkpoints.names import is_array, named_arrays
from eqxformer.inspect.observe import Visit, named_parts, run_observed


def tabulate(model: eqx.Module, *inputs: Any, depth: int | None = None, **named: Any) -> str:
    """A line per part in the order of calls: its class, what goes in and comes out, its numbers.

    The model is run on shapes alone (`jax.eval_shape`): nothing is computed, no memory is spent,
    and `ef.shapes(config)` serves as well as a model. Equal neighbours of a stack are one line
    (`blocks.0..31`), of which one is run. Arrays are written as in a jaxpr: `f32[1,5,16]`. A part
    that is called several times shows its first call; one that is not called itself, such as the
    stacked experts of a mixture, only its numbers.

    Arguments:
        inputs, named: what the model is called with, or the shapes of it (`jax.ShapeDtypeStruct`).
        depth: levels of parts to show; all if None.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> print(ef.tabulate(mlp, jnp.ones((2, 8))))
                MLP     f32[2,8]   f32[2,8]   280
          up    Linear  f32[2,8]   f32[2,16]  144
          down  Linear  f32[2,16]  f32[2,8]   136
    """
    short, stacks = _shortened(eqx.filter_eval_shape(lambda: model))
    calls = _calls(short, inputs, named)
    told = _Told(dict(named_parts(short)), calls, stacks, _numbers(short, stacks))
    lines = list(_lines("", told, depth))
    wide = [max(len(line[i]) for line in lines) for i in range(4)]
    numbers = max(len(line[4]) for line in lines)
    return "\n".join(
        "  ".join(f"{word:<{w}}" for word, w in zip(line[:4], wide, strict=True))
        + f"  {line[4]:>{numbers}}"
        for line in lines
    )


@dataclasses.dataclass
class Call:
    """What a part was given and gave when it was first called."""

    order: int
    inputs: list[str]
    outputs: list[str]
    unchanged: bool


# Of a stack, by its path: the label and the number of blocks that each of its blocks stands for.
Stacks = dict[str, dict[int, tuple[str, int]]]


@dataclasses.dataclass(frozen=True)
class _Told:
    """What the lines are made from: parts, their calls, and numbers in the arrays, all by path."""

    parts: dict[str, Any]
    calls: dict[str, Call]
    stacks: Stacks
    numbers: dict[str, int]

    def count(self, path: str) -> int:
        """The numbers in all arrays of a part."""
        return sum(n for array, n in self.numbers.items() if _within(array, path))

    def called_within(self, path: str) -> bool:
        """Whether a part inside of this one is called."""
        return any(called != path and _within(called, path) for called in self.calls)

    def first_call(self, path: str) -> int:
        """When a part, or one inside of it, was first called; after all others if it was not."""
        orders = (call.order for called, call in self.calls.items() if _within(called, path))
        return min(orders, default=len(self.calls))

    def children(self, path: str) -> list[str]:
        """The parts that are inside of a part and of no other inside of it, as they are called."""
        inside = [other for other in self.parts if other != path and _within(other, path)]
        nearest = [
            child
            for child in inside
            if not any(other != child and _within(child, other) for other in inside)
        ]
        return sorted(nearest, key=self.first_call)


def _within(path: str, other: str) -> bool:
    return not other or path == other or path.startswith(f"{other}.")


def _calls(model: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Call]:
    """The first call of every part, by its path."""
    calls: dict[str, Call] = {}
    remembered: dict[str, list[str]] = {}

    def observer(visit: Visit) -> Any:
        path, first = visit.path, visit.path not in calls
        tokens_alone = visit.method == "run_valid"  # beside them stands which of them are real
        given = _shapes(visit.args[:1] if tokens_alone else visit.args)
        if visit.method == "remember":  # the source of cross-attention, whose call is `look`
            remembered.setdefault(path, given)
            return visit.go_on()
        if first:
            calls[path] = Call(len(calls), given + remembered.get(path, []), [], False)
        out = visit.go_on()
        if first:
            calls[path].outputs = _shapes(out if isinstance(out, tuple) else (out,))
            calls[path].unchanged = bool(visit.args) and out is visit.args[0]
        return out

    def run(model: Any, inputs: Any, named: Any) -> Any:
        return run_observed(lambda parts: parts(*inputs, **named), model, observer)

    eqx.filter_eval_shape(run, model, inputs, named)
    return calls


def _shapes(values: tuple[Any, ...]) -> list[str]:
    """The arrays among some values, as `f32[2,8]`; those inside of modules are not shown."""
    return [short_shape(value) for value in values if is_array(value)]


def short_shape(array: Any) -> str:
    """An array as a jaxpr writes it: `f32[2,8]`, `i32[1,128]`, `bf16[]`."""
    name = str(array.dtype).replace("bfloat", "bf").replace("float", "f")
    name = name.replace("uint", "u").replace("int", "i")
    return f"{name}[{','.join(map(str, array.shape))}]"


def _shortened(model: Any) -> tuple[Any, Stacks]:
    """The model with one of each run of equal blocks in its stacks, and what they stand for."""
    stacks: Stacks = {}

    def of(path: Any, node: Any) -> Any:
        if not isinstance(node, Stack):
            return node
        kept, labels = [], []
        for first, block in enumerate(node):
            if kept and _alike(block, kept[-1]):
                labels[-1][1] += 1
            else:
                kept.append(block)
                labels.append([first, 1])
        where = ".".join(jax.tree_util.keystr((key,), simple=True) for key in path)
        stacks[where] = {
            place: (f"{i}..{i + n - 1}" if n > 1 else f"{i}", n)
            for place, (i, n) in enumerate(labels)
        }
        return Stack.of(kept, Unrolled(), (None,) * len(kept))

    short = jax.tree_util.tree_map_with_path(of, model, is_leaf=lambda x: isinstance(x, Stack))
    return short, stacks


def _alike(a: Any, b: Any) -> bool:
    """Whether two parts have the same structure, settings and shapes."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=False)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.shape == y.shape and x.dtype == y.dtype if is_array(x) and is_array(y) else x is y
        for x, y in pairs
    )


def _numbers(model: Any, stacks: Stacks) -> dict[str, int]:
    """The numbers in every array, by its path, in all the blocks that it stands for."""
    return {
        path: math.prod(leaf.shape) * _label(path, stacks)[2]
        for path, leaf in named_arrays(model).items()
    }


Line = tuple[str, str, str, str, str]


def _lines(path: str, told: _Told, depth: int | None) -> Iterator[Line]:
    """The line of a part and those of the parts inside of it, in the order of their calls."""
    label, level, _ = _label(path, told.stacks)
    call, numbers = told.calls.get(path), told.count(path)
    absent = call.unchanged if call else not told.called_within(path)
    if (depth is not None and level > depth) or (absent and not numbers and path):
        return  # such as a norm that is not there
    inputs, outputs = (call.inputs, call.outputs) if call else ([], [])
    kind = type(told.parts[path]).__name__
    yield "  " * level + label, kind, ", ".join(inputs), ", ".join(outputs), f"{numbers:,}"
    for child in told.children(path) if call or not absent else ():
        yield from _lines(child, told, depth)


def _label(path: str, stacks: Stacks) -> tuple[str, int, int]:
    """The last names of a path, how deep it is, and how many equal parts it stands for."""
    names, times, label = path.split(".") if path else [], 1, ""
    level = sum(not name.isdigit() for name in names) or int(bool(names))
    for i, name in enumerate(names):
        if not name.isdigit():
            label = name
            continue
        of, number = stacks.get(".".join(names[:i]), {}).get(int(name), (name, 1))
        times, label = times * number, f"{label}.{of}".removeprefix(".")
    return label, level, times
