"""What a training step on a mesh needs of each device, as `eqxformer info` says it."""

from typing import Any

from eqxformer.inspect.table import size
from eqxformer.sharding.mesh import abstract_mesh, spelled
from eqxformer.sharding.placement import Placement
from eqxformer.sharding.rules import Rules
from eqxformer.training.estimate import Estimate, estimate

_LENGTH = 2048  # tokens of a row where nothing is said


def mesh_report(config: Any, mesh: str, batch: int | None, length: int | None) -> str:
    """What is needed, in lines; without a batch, of one row for each device that shares rows."""
    placement = Placement(abstract_mesh(mesh))
    rows, length = batch or placement.row_shares, length or _LENGTH
    needed = estimate(config, placement, batch=rows, length=length)
    table = [("memory", needed.memory), *_memory(needed), ("sent in a step", _sent(needed))]
    table += [(f"  {what}", number) for what, number in needed.sent.items()]
    wide = max(len(what) for what, _ in table)
    number = placement.mesh.size
    mesh = f"{spelled(placement.sizes)}, {number:,} device{'s' * (number > 1)}"
    return "\n".join(
        [
            f"A step of {rows:,} rows of {length:,} tokens on {mesh}.",
            "Weights in float32 are computed with in bfloat16; blocks are scanned, and computed",
            "again in the backward pass. Of each device:",
            *(f"  {what:<{wide}}  {size(number):>8}" for what, number in table),
            *([_more(needed)] if needed.scores else []),
            *(f"Not cut: {line}." for line in needed.whole),
        ]
    )


def on_mesh(skeleton: Any, mesh: str) -> Any:
    """The shapes of a model as they would lie on a mesh; what it cannot cut is whole."""
    return Placement(abstract_mesh(mesh), Rules(uneven="whole")).abstract(skeleton)


def _memory(needed: Estimate) -> list[tuple[str, int]]:
    parts = {
        "weights": needed.weights,
        "gradients": needed.gradients,
        "moments of AdamW": needed.optimizer,
        "weights that are computed with": needed.computing,
        "activations kept": needed.kept,
        "activations of a block": needed.block,
        "logits": needed.logits,
    }
    return [(f"  {what}", number) for what, number in parts.items()]


def _sent(needed: Estimate) -> int:
    return sum(needed.sent.values())


def _more(needed: Estimate) -> str:
    return f"Where no fused kernel serves, attention scores take {size(needed.scores)} more."
