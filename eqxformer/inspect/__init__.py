"""Looking at models: tables of arrays and parts, pictures, and the compiler's view."""

from eqxformer.inspect import pictures
from eqxformer.inspect.inputs import input_shapes
from eqxformer.inspect.table import count, table
from eqxformer.inspect.tabulate import tabulate

__all__ = ["count", "input_shapes", "pictures", "table", "tabulate"]
