"""A tiny checkpoint, and ways to change what is in one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import eqxformer as ef
from tests.helpers.models import filled

CONFIG = ef.families.llama(vocab=11, dim=12, layers=2, heads=3, kv_heads=1, hidden=14)
MODEL = filled(CONFIG.edit("blocks.*.attention", rotary=ef.Rotary(base=500.0)))


def edit_settings(directory: Path, *removed: str, **changed: Any) -> None:
    """Changes keys of `config.json`."""
    path = directory / "config.json"
    values = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({k: v for k, v in values.items() if k not in removed}))


def edit_tensors(directory: Path, *removed: str, **changed: Any) -> None:
    """Changes tensors; dots in names are written as two underscores."""
    path = directory / "model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if k not in removed}
    added = {k.replace("__", "."): np.ascontiguousarray(v) for k, v in changed.items()}
    save_file({**tensors, **added}, path, metadata={"format": "pt"})


def rename_tensors(directory: Path, rename: Any) -> None:
    """Gives every tensor the name that `rename` makes of its own."""
    path = directory / "model.safetensors"
    save_file({rename(k): v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
