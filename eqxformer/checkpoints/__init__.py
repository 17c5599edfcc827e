"""Models to disk and back."""

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.names import named_arrays
from eqxformer.checkpoints.native import load, load_config, save
from eqxformer.checkpoints.rebuild import rebuild, shapes
from eqxformer.checkpoints.settings import Settings

__all__ = [
    "CheckpointError",
    "Settings",
    "load",
    "load_config",
    "named_arrays",
    "rebuild",
    "save",
    "shapes",
]
