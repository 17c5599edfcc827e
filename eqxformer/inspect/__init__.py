"""Looking at models."""

from eqxformer.inspect.capture import Capture, Captured, capture, patch
from eqxformer.inspect.sites import sites
from eqxformer.inspect.table import count, table
from eqxformer.inspect.tapping import without_patches
from eqxformer.inspect.watch import Fault, Watch

__all__ = [
    "Capture",
    "Captured",
    "Fault",
    "Watch",
    "capture",
    "count",
    "patch",
    "sites",
    "table",
    "without_patches",
]
