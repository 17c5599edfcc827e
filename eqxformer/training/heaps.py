"""A program on a CPU whose temporaries stay with the process, instead of being handed over anew."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jax.extend.core import ClosedJaxpr, Jaxpr

from eqxformer.training.flat import Flat

# The C library of Linux asks the system for every piece of memory of more than 32 MB and gives it
# back at once; smaller ones it keeps for the next call (mallopt(3), M_MMAP_THRESHOLD).
LARGEST = 2**25 - 2**16
# XLA's option for one program: its temporaries in pieces of at most so many bytes, not in one.
IN_HEAPS = {"xla_multiheap_size_constraint_per_heap": LARGEST}
_KEEPING = ("jax_enable_compilation_cache", "jax_compilation_cache_dir")


class OnOneDevice:
    """`update(state, batch, held)`, compiled for a state that lies on one device and is donated.

    On a CPU it is `update_on_cpu`, and its temporaries are pieces that the process keeps, where no
    array is larger than such a piece and JAX keeps no programs on disk. Where this is called while
    something else is traced, it is a part of that program, and how temporaries lie is not its own
    to choose.
    """

    def __init__(self, update: Callable[..., Any], update_on_cpu: Callable[..., Any]) -> None:
        self._plain = jax.jit(update, donate_argnums=0)
        self._on_cpu = jax.jit(update_on_cpu, donate_argnums=0)
        self._in_heaps = jax.jit(update_on_cpu, donate_argnums=0, compiler_options=IN_HEAPS)
        self._fits: dict[Any, bool] = {}

    def __call__(self, state: Flat, batch: Flat, held: Any) -> Any:
        program = self.program(state, batch, held)
        try:
            return program(state, batch, held)
        except (JaxRuntimeError, ValueError) as error:
            if program is not self._in_heaps:
                raise
            if "No such compile option" in str(error):  # of this version of XLA
                self._in_heaps = self._on_cpu
            elif "top-level `jax.jit`" not in str(error):
                raise
        return self._on_cpu(state, batch, held)

    def program(self, state: Flat, batch: Flat, held: Any) -> Any:
        """The compiled function that they are given to; traced for it, if it is the first time."""
        if not state.on_cpu:
            return self._plain
        if state.traced or batch.traced:
            return self._on_cpu
        shapes = (len(state.arrays), *(x.shape for x in batch.arrays))
        if shapes not in self._fits:
            traced = self._on_cpu.trace(state, batch, held)  # both functions share what is traced
            self._fits[shapes] = not programs_are_kept() and fits_in_heaps(traced.jaxpr)
        return self._in_heaps if self._fits[shapes] else self._on_cpu


def programs_are_kept() -> bool:
    """Whether JAX has a persistent cache, into which not every XLA can write such a program.

    Then a step is made for a quick start: with jax 0.10 writing ends in "Multiple temp buffer
    allocations found", which JAX turns into a warning, and every process compiles anew. With 0.12
    it works.
    """
    return all(getattr(jax.config, each) for each in _KEEPING)


def fits_in_heaps(program: ClosedJaxpr | Jaxpr) -> bool:
    """Whether no array of a traced program is larger than a piece of its temporaries may be.

    Of a larger one XLA makes a piece of its own, with a warning for each, and all of them together
    take up to a quarter more memory than one piece would.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from eqxformer.training.heaps import fits_in_heaps
        >>> square = jax.jit(lambda x: jnp.outer(x, x).sum())
        >>> [fits_in_heaps(square.trace(jnp.ones(n)).jaxpr) for n in (1000, 4000)]
        [True, False]
    """
    return all(_bytes(each) <= LARGEST for each in _arrays(program))


def _arrays(program: ClosedJaxpr | Jaxpr) -> Iterator[Any]:
    """The types of all that a program is given and makes, in its loops and functions too."""
    inner = program.jaxpr if isinstance(program, ClosedJaxpr) else program
    yield from (v.aval for v in (*inner.invars, *inner.constvars))
    for equation in inner.eqns:
        yield from (v.aval for v in equation.outvars)
        for value in equation.params.values():
            for each in value if isinstance(value, tuple | list) else (value,):
                if isinstance(each, ClosedJaxpr | Jaxpr):
                    yield from _arrays(each)


def _bytes(kind: Any) -> int:
    """The size of an array; of a type that is no array's, none."""
    return getattr(kind, "size", 0) * getattr(getattr(kind, "dtype", None), "itemsize", 0)
