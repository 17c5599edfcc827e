"""Looking at models."""

from eqxformer.inspect.table import count, table

__all__ = ["count", "table"]
