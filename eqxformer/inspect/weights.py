"""The attention weights of one part of a model, while all of it runs as ever."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from eqxformer.inspect.observe import Visit, named_parts, one_by_one, run_observed


def weights_of(model: Any, path: str, *inputs: Any) -> Float[Array, "*batch heads seq keys"]:
    """How much each query of an attention takes of each key, when the model is called.

    Arguments:
        model: any; its blocks are numbered singly, however they are stored.
        path: of an attention, such as `blocks.0.attention` or `decoder.blocks.1.cross_attention`.
        inputs: what the model is called with.

    Raises `ValueError` for a path that leads to no attention whose weights can be had.
    """
    known = [p for p, part in named_parts(one_by_one(model)) if hasattr(part, "weights")]
    if path not in known:
        raise ValueError(
            f"`{path}` is no attention whose weights can be had; "
            f"{', '.join(known) if known else 'this model has none'}."
        )

    def run(model: Any, inputs: Any) -> Any:
        found, sources = [], []

        def observer(visit: Visit) -> Any:
            if visit.path == path and visit.method == "remember":
                sources.append(visit.args[0])
            elif visit.path == path:
                found.append(_weights(visit, sources))
            return visit.go_on()

        run_observed(lambda parts: parts(*inputs), model, observer)
        return found[0]

    return eqx.filter_jit(run)(model, inputs)


def _weights(visit: Visit, sources: list[Any]) -> Any:
    """The weights of the call that a part is about to make."""
    wanted = ("mask", "positions", "bias") if visit.method == "run" else ("mask", "bias")
    named = {name: visit.kwargs.get(name) for name in wanted}
    source = () if visit.method == "run" else (sources[-1],)
    return visit.part.weights(visit.args[0], *source, **named)
