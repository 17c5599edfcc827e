"""Models to disk and back."""

from eqxformer.checkpoints.names import named_arrays
from eqxformer.checkpoints.native import load, load_config, save, shapes

__all__ = ["load", "load_config", "named_arrays", "save", "shapes"]
