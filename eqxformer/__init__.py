"""Transformers as Equinox modules: decoders, encoders, encoder-decoders, from one set of parts.

Names are imported when first used: `import eqxformer` itself loads nothing, so that
`eqxformer.check_shapes()` can come first.
"""

import functools
import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from eqxformer import checks
from eqxformer.__about__ import __version__
from eqxformer.checks import ShapeError, check_shapes

if TYPE_CHECKING:  # what `__getattr__` finds, said to editors and type checkers
    from eqxformer.adapters import *  # noqa: F403
    from eqxformer.architectures import *  # noqa: F403
    from eqxformer.axes import GLOSSARY, Axes, leaf_axes
    from eqxformer.blocks import *  # noqa: F403
    from eqxformer.checkpoints import *  # noqa: F403
    from eqxformer.config import Config
    from eqxformer.data import *  # noqa: F403
    from eqxformer.generation import *  # noqa: F403
    from eqxformer.inspect import *  # noqa: F403
    from eqxformer.layers import *  # noqa: F403
    from eqxformer.losses import *  # noqa: F403
    from eqxformer.models import *  # noqa: F403
    from eqxformer.optimizers import *  # noqa: F403
    from eqxformer.pretrained import *  # noqa: F403
    from eqxformer.sharding import *  # noqa: F403
    from eqxformer.text import *  # noqa: F403
    from eqxformer.training import *  # noqa: F403

checks.install_from_environment()

_ROOMS = (
    "layers",
    "blocks",
    "models",
    "checkpoints",
    "architectures",
    "sharding",
    "pretrained",
    "adapters",
    "inspect",
    "generation",
    "text",
    "data",
    "losses",
    "optimizers",
    "training",
)
_SINGLE = {"Config": "config", "Axes": "axes", "GLOSSARY": "axes", "leaf_axes": "axes"}


def __getattr__(name: str) -> Any:
    if name in _SINGLE:
        return getattr(importlib.import_module(f"eqxformer.{_SINGLE[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"eqxformer.{name}")
    if not name.startswith("_"):
        for room in _ROOMS:
            if _may_have(room, name):
                module = importlib.import_module(f"eqxformer.{room}")
                if name in module.__all__:
                    return getattr(module, name)
    raise AttributeError(f"module 'eqxformer' has no attribute {name!r}")


def _may_have(room: str, name: str) -> bool:
    """Whether a room's `__all__` can have a name: its source, which is soon read, has it."""
    source = _source(room)
    return source is None or f'"{name}"' in source


@functools.cache
def _source(room: str) -> str | None:
    """The text of a room's first file; None where there is bytecode alone."""
    name = f"eqxformer.{room}"
    spec = importlib.util.find_spec(name)
    read = getattr(getattr(spec, "loader", None), "get_source", None)
    return None if read is None else read(name)


def __dir__() -> list[str]:
    rooms = _import_rooms()
    return sorted({*globals(), *_SINGLE, *(name for room in rooms for name in room.__all__)})


def _import_rooms() -> list[Any]:
    """All that this library has, imported; for those who must know every type of config."""
    return [importlib.import_module(f"eqxformer.{room}") for room in _ROOMS]
