"""Blocks, their residual wiring, and stacks of them."""

from eqxformer.blocks.block import AbstractBlock, Block, BlockCache, Context, ParallelBlock
from eqxformer.blocks.repeated import Repeated
from eqxformer.blocks.residual import Residual, post_norm, pre_norm, sandwich_norm
from eqxformer.blocks.stack import Layout, Scanned, Stack, Unrolled

__all__ = [
    "AbstractBlock",
    "Block",
    "BlockCache",
    "Context",
    "Layout",
    "ParallelBlock",
    "Repeated",
    "Residual",
    "Scanned",
    "Stack",
    "Unrolled",
    "post_norm",
    "pre_norm",
    "sandwich_norm",
]
