"""Looking at models: tables of arrays and parts, pictures, and the compiler's view."""

from eqxformer.inspect import pictures
from eqxformer.inspect.buffers import Buffer
from eqxformer.inspect.compiler import Memory, Program, program
from eqxformer.inspect.inputs import input_shapes
from eqxformer.inspect.recompilations import Recompilation, recompilations
from eqxformer.inspect.shades import shades
from eqxformer.inspect.table import count, table
from eqxformer.inspect.tabulate import tabulate

__all__ = [
    "Buffer",
    "Memory",
    "Program",
    "Recompilation",
    "count",
    "input_shapes",
    "pictures",
    "program",
    "recompilations",
    "shades",
    "table",
    "tabulate",
]
