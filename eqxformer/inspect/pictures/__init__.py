"""Pictures: attention, masks, positions, losses as matplotlib figures; a config's blocks as SVG."""

from eqxformer.inspect.pictures.attention import attention
from eqxformer.inspect.pictures.diagram import diagram
from eqxformer.inspect.pictures.losses import losses
from eqxformer.inspect.pictures.masks import mask
from eqxformer.inspect.pictures.positions import position_bias, position_table, rotary

__all__ = [
    "attention",
    "diagram",
    "losses",
    "mask",
    "position_bias",
    "position_table",
    "rotary",
]
