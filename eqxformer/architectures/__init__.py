"""One file per `model_type`: what its settings mean, and where its tensors are.

A file defines `ARCHITECTURE`; nothing else needs to know of it. One of your own is made known with
`register`.
"""

import functools
import importlib
import pathlib

from eqxformer.architectures._decoders import decoder as decoder_architecture
from eqxformer.architectures._encoders import encoder as encoder_architecture
from eqxformer.checkpoints.architecture import Architecture, Task
from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.settings import nearest

_own: dict[str, Architecture] = {}


def register(architecture: Architecture) -> None:
    """Makes an architecture of your own known to `from_pretrained` and `save_pretrained`.

    Example:
        >>> import dataclasses
        >>> from eqxformer.architectures import architecture, register
        >>> register(dataclasses.replace(architecture("llama"), model_type="my_llama"))
        >>> architecture("my_llama").model_type
        'my_llama'
    """
    _own[architecture.model_type] = architecture


def architecture(model_type: str) -> Architecture:
    """The architecture of this `model_type`; `CheckpointError` with the nearest ones otherwise.

    Only files of this folder and what was registered can be named: nothing else is imported.

    Example:
        >>> import eqxformer as ef
        >>> ef.architecture("llama").body
        'LlamaModel'
    """
    if model_type in _own:
        return _own[model_type]
    file = model_type.replace("-", "_")
    if file not in _files():
        raise CheckpointError(
            f"`model_type` {model_type!r:.60} is not supported.{nearest(file, _files())} "
            f"Supported are: {', '.join(model_types())}."
        )
    return importlib.import_module(f"eqxformer.architectures.{file}").ARCHITECTURE


def model_types() -> list[str]:
    """Every `model_type` that can be loaded, in alphabetical order.

    Example:
        >>> import eqxformer as ef
        >>> ef.model_types()[:3]
        ['albert', 'bart', 'bert']
    """
    ours = (importlib.import_module(f"eqxformer.architectures.{file}") for file in _files())
    return sorted({*(module.ARCHITECTURE.model_type for module in ours), *_own})


@functools.cache
def _files() -> tuple[str, ...]:
    folder = pathlib.Path(__file__).parent
    return tuple(sorted(f.stem for f in folder.glob("[a-z]*.py")))


__all__ = [
    "Architecture",
    "Task",
    "architecture",
    "decoder_architecture",
    "encoder_architecture",
    "model_types",
    "register",
]
