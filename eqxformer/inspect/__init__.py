"""Looking at models."""

from eqxformer.inspect.capture import Capture, Captured, capture, patch
from eqxformer.inspect.sites import sites
from eqxformer.inspect.table import count, table

__all__ = ["Capture", "Captured", "capture", "count", "patch", "sites", "table"]
