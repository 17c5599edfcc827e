"""Looking at models: tables, values inside of them by name, pictures, and the compiler's view."""

from eqxformer.inspect import pictures
from eqxformer.inspect.buffers import Buffer
from eqxformer.inspect.capture import Capture, Captured, capture, patch
from eqxformer.inspect.compiler import Program, ProgramMemory, program
from eqxformer.inspect.inputs import input_shapes
from eqxformer.inspect.recompilations import Recompilation, recompilations
from eqxformer.inspect.shades import shades
from eqxformer.inspect.sites import sites
from eqxformer.inspect.table import count, table
from eqxformer.inspect.tabulate import tabulate
from eqxformer.inspect.tapping import without_patches
from eqxformer.inspect.watch import Fault, Watch

__all__ = [
    "Buffer",
    "Capture",
    "Captured",
    "Fault",
    "Program",
    "ProgramMemory",
    "Recompilation",
    "Watch",
    "capture",
    "count",
    "input_shapes",
    "patch",
    "pictures",
    "program",
    "recompilations",
    "shades",
    "sites",
    "table",
    "tabulate",
    "without_patches",
]
