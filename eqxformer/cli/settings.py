"""`--set path=value`: any field of an experiment from the command line."""

import json
from typing import Any

from eqxformer.config import Config
from eqxformer.training.experiment import Experiment


def edited(experiment: Experiment, settings: tuple[str, ...]) -> Experiment:
    """The experiment with every `path=value` applied in turn.

    A path is that of `Config.edit` and the name of a field, as in `model.blocks.*.attention.heads`.
    A value is JSON (`3`, `1e-3`, `null`, `[0.9, 0.99]`, `{"type": "SGD"}`), else plain text.
    Raises `ValueError` or `TypeError` for what does not exist or does not fit.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip("."):
            raise ValueError(f"--set needs path=value, as in --set model.dim=256; got {setting!r}.")
        where, _, field = path.strip().rpartition(".")
        experiment = experiment.edit(where, **{field: _value(text)})
    return experiment


def _value(text: str) -> Any:
    try:
        return _tree(json.loads(text))
    except json.JSONDecodeError:
        return {"None": None, "none": None, "True": True, "False": False}.get(text.strip(), text)


def _tree(value: Any) -> Any:
    """Lists as tuples and objects as configs, as fields want them."""
    if isinstance(value, list):
        return tuple(map(_tree, value))
    return Config.from_dict(value) if isinstance(value, dict) else value
