"""Models to disk and back."""

from eqxformer.checkpoints.names import named_arrays
from eqxformer.checkpoints.native import load, load_config, save
from eqxformer.checkpoints.rebuild import rebuild, shapes

__all__ = ["load", "load_config", "named_arrays", "rebuild", "save", "shapes"]
