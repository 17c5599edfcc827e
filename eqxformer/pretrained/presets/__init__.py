"""Presets: well-known models by their names, as the settings of their own checkpoints.

Beside this file lies one of JSON per `model_type`. An entry has the keys of the model's
`config.json`, or those in which it differs from the entry that `like` names; the published number
of its parameters, a tied head counted with its table; and for models of sentences what of the
tokens' states is pooled, which their checkpoints say in files of their own.
"""

import difflib
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.label_heads import Pooling
from eqxformer.models.origin import Origin
from eqxformer.pretrained.checkpoint import architecture_of, read_tree


class Preset(NamedTuple):
    """A model's settings, the number of its parameters, and what of its states is pooled."""

    settings: dict[str, Any]
    parameters: int
    pooling: Any = None


def preset(name: str) -> Any:
    """The config tree of a well-known model; its `build(key=key)` is that model before training.

    The tree is what `from_pretrained` would give the checkpoint of this name, and a model built
    from it is saved in the words of that checkpoint. Models of sentences have their own pooling and
    not the unused one of their checkpoint. Nothing is downloaded.

    Arguments:
        name: as on the Hugging Face Hub, without the organisation and in lower case;
            `preset_names` lists all.

    Raises `CheckpointError`, a `ValueError`, for any other name, with those nearest to it.

    Example:
        >>> import eqxformer as ef
        >>> config = ef.preset("qwen3-0.6b")
        >>> config.dim, len(config.blocks), ef.count(ef.shapes(config))
        (1024, 28, 596049920)
    """
    found = preset_of(name)
    _, tree = described(found.settings, f"the preset {name}")
    if found.pooling is not None:
        tree = tree.edit(pooling=Pooling.Config(take=found.pooling, unit_length=True))
    text = json.dumps(found.settings, indent=2, sort_keys=True) + "\n"
    return tree.edit(origin=Origin(text))


def preset_names() -> list[str]:
    """The names of all presets, in alphabetical order.

    Example:
        >>> import eqxformer as ef
        >>> "bert-base-uncased" in ef.preset_names()
        True
    """
    return sorted(_presets())


def preset_of(name: str) -> Preset:
    """What is known of a preset; errors as in `preset`."""
    known = _presets()
    if name in known:
        return known[name]
    bare = name.rpartition("/")[2].lower()
    near = difflib.get_close_matches(bare, known, n=3)
    hint = f" Did you mean {' or '.join(f'`{each}`' for each in near)}?" if near else ""
    raise CheckpointError(
        f"There is no preset `{name:.80}`.{hint} `preset_names()` lists all {len(known)}."
    )


def described(values: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """The class and the config tree that settings name, where no tensors lie beside them.

    Raises `CheckpointError` for settings that are not known, as `from_pretrained` does.
    """
    known, settings = architecture_of(values, where), Settings(values, where=where)
    class_name, task = known.task(settings)
    return class_name, read_tree(known, task.config, settings)


@functools.cache
def _presets() -> dict[str, Preset]:
    """Every preset by its name, the settings of those that are like others filled in."""
    found: dict[str, Preset] = {}
    for file in sorted(pathlib.Path(__file__).parent.glob("*.json")):
        for name, entry in json.loads(file.read_text(encoding="utf-8")).items():
            base = found[entry["like"]].settings if "like" in entry else {}
            settings = {**base, **entry.get("settings", {})}
            found[name] = Preset(settings, entry["parameters"], entry.get("pooling"))
    return found
