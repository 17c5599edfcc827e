"""Config trees in the words of an architecture: the settings that describe a model."""

import contextlib
from collections.abc import Mapping
from typing import Any

from eqxformer.architectures import architecture, model_types
from eqxformer.checkpoints.architecture import Architecture, Task
from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.moves import Shape
from eqxformer.checkpoints.rules import Binding, bind
from eqxformer.checkpoints.settings import Settings
from eqxformer.checkpoints.stored import Planned
from eqxformer.config import Config
from eqxformer.models.origin import Origin
from eqxformer.pretrained.checkpoint import read_tree
from eqxformer.pretrained.compare import OTHER_KIND, differences
from eqxformer.strict_json import json_object

Shapes = Mapping[str, Shape]

# Those that others are derived from; where one of these says it all, no other is asked, and where
# nobody does, it is named before others that are as close.
_FIRST = ("bart", "bert", "gpt2", "llama", "t5")

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# What a `describe` or a `config` meets in a tree that is of another kind than it expects.
_OTHERWISE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    StopIteration,
    TypeError,
    ValueError,
)


class Expression:
    """A config tree in the words of an architecture: its settings and its task."""

    def __init__(
        self,
        known: Architecture,
        class_name: str,
        settings: Mapping[str, Any],
        text: str | None = None,
    ) -> None:
        self.architecture, self.class_name, self.settings = known, class_name, dict(settings)
        self.text = text

    @property
    def task(self) -> Task:
        """How the arrays are stored."""
        return self.architecture.tasks[self.class_name]

    def bindings(self, config: Config, arrays: Shapes) -> list[Binding]:
        """Where the arrays of a model with this config are stored."""
        return bind(self.task.rules(config), arrays)

    def differences(self, config: Config, arrays: Shapes) -> list[str]:
        """Where the tree that the settings describe is not `config`; nothing if it is.

        Arguments:
            arrays: the shapes of a model with this config by their paths.
        """
        settings = Settings(self.settings, where=f"the settings of a {self.class_name}")
        unstored: list[str] = []
        try:
            bindings = self.bindings(config, arrays)
            names = (name for binding in bindings for name in binding.theirs)
            settings.stored = Planned(names, self.task.prefix)
        except CheckpointError as error:  # what has no place mostly differs in the tree as well
            unstored = [str(error)]
        tree = read_tree(self.architecture, self.task.config, settings)
        return differences(tree, config) or unstored


def expression(config: Config, arrays: Shapes, model_type: str | None = None) -> Expression:
    """How a config tree is said in the settings of an architecture.

    Arguments:
        arrays: the shapes of a model with this config by their paths.
        model_type: the architecture to use; if None, that of the checkpoint the model is from, or
            one that others are derived from, or else the one with the fewest settings.

    Raises `CheckpointError` where none can, with what stands in the way of the one that was asked
    for or that the model is from.
    """
    origin = getattr(config, "origin", None)
    if isinstance(origin, Origin):
        values = json_object(origin.settings)
        if model_type in (None, values["model_type"]):
            return _of_origin(config, arrays, values, origin.settings)
    if model_type is not None:
        return _described(config, arrays, architecture(model_type), {})
    for each in _FIRST:
        with contextlib.suppress(CheckpointError):
            return _described(config, arrays, architecture(each), {})
    found: list[Expression] = []
    in_the_way: dict[str, list[str]] = {}
    for each in model_types():
        with contextlib.suppress(CheckpointError):
            tried = _tried(config, arrays, architecture(each), {})
            if isinstance(tried, Expression):
                found.append(tried)
            else:
                in_the_way[each] = tried
    if not found:
        raise CheckpointError(
            "No architecture of transformers expresses this model; `save` writes it in the "
            "library's own format. `model_type=` tells what is in the way of a certain one."
            + _closest(in_the_way)
        )
    return min(found, key=lambda each: len(each.settings))


def _closest(in_the_way: Mapping[str, list[str]]) -> str:
    """What stands in the way of the architecture in whose way the least stands, if one is near."""
    names = sorted(in_the_way, key=lambda name: name not in _FIRST)
    name = min(names, key=lambda name: _distance(in_the_way[name]), default="")
    if not name or in_the_way[name][0].startswith(OTHER_KIND):
        return ""
    return f" The closest is {name}, but that this model has:\n  " + _lines(in_the_way[name])


def _distance(reasons: list[str]) -> tuple[bool, int]:
    """How far a tree is from an architecture's; one of another kind is the farthest."""
    return reasons[0].startswith(OTHER_KIND), len(reasons)


def _lines(reasons: list[str]) -> str:
    return "\n  ".join(reasons[:9])


def _of_origin(config: Config, arrays: Shapes, values: dict[str, Any], text: str) -> Expression:
    """A loaded model in the words of its checkpoint, with new ones where it has been changed."""
    known = architecture(values["model_type"])
    class_name, task = known.task(Settings(values))
    if task.saved_as is not None:
        class_name = task.saved_as
        values = {**values, "architectures": [class_name]}
    as_loaded = Expression(known, class_name, values, None if task.saved_as else text)
    tied = bool(values.get("tie_word_embeddings"))
    for each in (as_loaded, _retied(as_loaded, not tied)):
        with contextlib.suppress(CheckpointError):  # settings with more layers than there are now
            if not each.differences(config, arrays):
                return each
    return _described(config, arrays, known, values)


def _retied(expression: Expression, tied: bool) -> Expression:
    """The same with the head tied or not, as a file's tensors may say against its settings."""
    settings = {**expression.settings, "tie_word_embeddings": tied}
    return Expression(expression.architecture, expression.class_name, settings)


def _described(
    config: Config, arrays: Shapes, known: Architecture, base: Mapping[str, Any]
) -> Expression:
    """A config tree as its architecture describes it, the other settings taken from `base`."""
    tried = _tried(config, arrays, known, base)
    if isinstance(tried, Expression):
        return tried
    raise CheckpointError(
        f"This model cannot be expressed as {known.model_type}:\n  " + _lines(tried)
    )


def _tried(
    config: Config, arrays: Shapes, known: Architecture, base: Mapping[str, Any]
) -> Expression | list[str]:
    """The same, or what stands in the way of the class that comes closest."""
    name = known.model_type
    if known.describe is None:
        raise CheckpointError(f"A model can be saved as {name} only as it was loaded.")
    try:
        found = known.describe(config)
    except _OTHERWISE as error:
        raise CheckpointError(f"This model cannot be expressed as {name}: {error}") from error
    # Which ids are special is not in a tree: as far as it is known, it stays as it is.
    found = {k: v for k, v in found.items() if v is not None or k not in base or k not in _IDS}
    gone = {"rope_theta", "rope_scaling", "layer_types"}
    if "id2label" in found:  # nor are the names of labels
        same = len(base.get("id2label") or ()) == len(found["id2label"] or ())
        gone |= set() if same else {"label2id"}
        found = {k: v for k, v in found.items() if not (same and k == "id2label")}
    old = {k: v for k, v in base.items() if k not in gone}
    reasons: list[list[str]] = []
    for class_name in known.tasks:
        head = {"architectures": [class_name], "model_type": name}
        each = Expression(known, class_name, {**old, **head, **found})
        try:
            reasons.append(each.differences(config, arrays))
        except _OTHERWISE as error:
            reasons.append([f"{OTHER_KIND}, as {class_name} shows: {error}"])
        if not reasons[-1]:
            return each
    return min(reasons, key=_distance)
