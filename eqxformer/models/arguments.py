"""What a model is not given: sizes that cannot be, and what it would take and ignore."""

from typing import Any

from jaxtyping import Array

from eqxformer.blocks.block import AbstractBlock


def check_reads_source(blocks: tuple[AbstractBlock.Config, ...]) -> None:
    """Raises `ValueError` for a source, or its mask, given to blocks none of which looks at it."""
    if not any(block.reads_source for block in blocks):
        raise ValueError(
            "A source was given, and no block looks at it; set `cross_attention` in the blocks."
        )


def check_reads_positions(
    config: Any, positions: Array | None, name: str = "positions", owner: str = "model"
) -> None:
    """Raises `ValueError` for positions given to a model in which they would change nothing.

    Arguments:
        name, owner: what the caller calls the positions, and what is to read them.
    """
    if positions is not None and not reads_positions(config):
        raise ValueError(
            f"`{name}` were given, and nothing in this {owner} depends on them; set `positions` in "
            "its embedding, or `rotary` in its attention. A bias by distance needs none."
        )


def reads_positions(config: Any) -> bool:
    """Whether anything in a model depends on the positions of its tokens."""
    bias = getattr(config, "bias", None)  # encoders of audio share none
    somewhere = (bias is not None and bias.counts_places) or config.embedding.positions is not None
    return somewhere or any(block.reads_positions for block in config.blocks)


def check_sizes(**sizes: int) -> None:
    """Raises `ValueError` for a size below one."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"`{name}` must be positive; got {size}.")
