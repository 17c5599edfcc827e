"""What a function becomes when JAX traces it: how often each primitive stands in its program."""

import collections

import equinox as eqx
import jax


def primitives(function, *arguments):
    """How often each primitive stands in the program of `function`, inner programs included."""
    found = collections.Counter()
    _count(eqx.filter_make_jaxpr(function)(*arguments)[0].jaxpr, found)
    return found


def _count(jaxpr, found):
    for equation in jaxpr.eqns:
        found[equation.primitive.name] += 1
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(inner, "eqns"):
                _count(inner, found)
            elif hasattr(inner, "jaxpr"):
                _count(inner.jaxpr, found)
