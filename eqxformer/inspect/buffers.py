"""The buffers of a compiled program, from what the compiler writes down of them.

XLA gives every allocation a size, and says which values lie in it one after the other. It writes
that as text into a directory when it is asked to; nothing of it stays behind.
"""

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

_KEEPS = "jax_enable_compilation_cache"
_ALLOCATION = re.compile(r"^allocation (\d+): size (\d+),? ?(.*):$")
_VALUE = re.compile(r"^ value: <\d+ ([\w.\-]+).*?> \(size=(\d+),offset=(\d+)\): (\S+)")
_NAMED = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name="([^"]*)"', re.MULTILINE)
_KINDS = {"parameter": "argument", "maybe-live-out": "output", "constant": "constant"}


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Memory that a program holds, and the largest value that lies in it at some time.

    Arguments:
        size: in bytes.
        kind: `argument`, `output`, `constant` or `temporary`.
        shape: of the value, as XLA writes it.
        place: the parts and the operation that it comes from; empty where XLA does not say.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> shape = jax.ShapeDtypeStruct((4, 8), jnp.float32)
        >>> buffer = ef.inspect.program(lambda x: 2 * x, shape).memory.buffers[0]
        >>> buffer.size, buffer.shape
        (128, 'f32[4,8]')
    """

    size: int
    kind: str
    shape: str
    place: str


def dumped(lowered: Any) -> tuple[Any, str]:
    """A lowered program compiled, and the text on its buffers; empty where XLA writes none."""
    with tempfile.TemporaryDirectory() as folder, _compiled_anew():
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        texts = sorted(Path(folder).glob("*-buffer-assignment.txt"))
        return compiled, texts[-1].read_text(encoding="utf-8") if texts else ""


@contextlib.contextmanager
def _compiled_anew() -> Iterator[None]:
    """Nothing is taken from JAX's cache of programs, to which the compiler has nothing to write."""
    before = getattr(jax.config, _KEEPS)
    jax.config.update(_KEEPS, False)
    reset_cache()  # JAX has looked only once whether there is one
    try:
        yield
    finally:
        jax.config.update(_KEEPS, before)
        reset_cache()


def buffers_of(assignment: str, hlo: str) -> tuple[Buffer, ...]:
    """The buffers in XLA's text, the largest first; values of one temporary each by itself.

    Temporaries share one large allocation, in which values lie at offsets for as long as they are
    needed: of values at one place, the largest is told.
    """
    places = {name: _place(path) for name, path in _NAMED.findall(hlo)}
    found: list[Buffer] = []
    for size, kind, values in _allocations(assignment):
        largest: dict[int, tuple[int, str, str]] = {}
        for name, bytes_, offset, shape in values:
            at = offset if kind == "temporary" else 0
            if bytes_ > largest.get(at, (0, "", ""))[0]:
                largest[at] = (bytes_, shape, places.get(name, ""))
        for bytes_, shape, place in largest.values():
            found.append(Buffer(bytes_ if kind == "temporary" else size, kind, shape, place))
    return tuple(sorted(found, key=lambda buffer: -buffer.size))


Value = tuple[str, int, int, str]


def _allocations(text: str) -> list[tuple[int, str, list[Value]]]:
    """Size, kind and values (name, bytes, offset, shape) of every allocation."""
    found: list[tuple[int, str, list[Value]]] = []
    for line in text.splitlines():
        if head := _ALLOCATION.match(line):
            kinds = (kind for word, kind in _KINDS.items() if word in head[3])
            found.append((int(head[2]), next(kinds, "temporary"), []))
        elif found and (value := _VALUE.match(line)):
            shape = re.sub(r"\{[^}]*\}$", "", value[4])
            found[-1][2].append((value[1], int(value[2]), int(value[3]), shape))
    return [each for each in found if each[2] and "thread-local" not in each[1]]


def _place(path: str) -> str:
    """`jit(f)/blocks.0/attention/query/dot_general` without the name of the function."""
    return re.sub(r"^jit\([^)]*\)/", "", path)
