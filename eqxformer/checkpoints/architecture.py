"""What an architecture is: its tasks, and for each a config from settings and a table of rules."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.rules import Rules
from eqxformer.checkpoints.settings import Settings
from eqxformer.checkpoints.stored import Computed
from eqxformer.config import Config


def nothing_computed(settings: Settings) -> Mapping[str, Computed]:
    """No tensors: all that is written is learned."""
    return {}


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of model an architecture is used as, named in `architectures` of `config.json`.

    Arguments:
        config: the config tree that the settings describe.
        rules: where the arrays of a model with this config are stored.
        prefix: what stands before the names of the base model's tensors (`model.`, `bert.`), which
            files of the base model alone go without.
        ignored: patterns of tensors that a file may hold and the model has no use for, such as
            buffers and the parts of another head.
        saved_as: the name of the class that a model of this task is saved as, where the task's own
            has parts that ours goes without.
        computed: tensors that are written though they follow from the settings, by their names.

    Example:
        >>> import eqxformer as ef
        >>> ef.architecture("gpt2").tasks["GPT2LMHeadModel"].prefix
        'transformer.'
    """

    config: Callable[[Settings], Any]
    rules: Callable[[Any], Rules]
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    saved_as: str | None = None
    computed: Callable[[Settings], Mapping[str, Computed]] = nothing_computed


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A `model_type`: the tasks by the name of their class, the first being the default.

    Arguments:
        model_type: as in `config.json`.
        tasks: by the names that `architectures` in `config.json` uses.
        describe: the keys of `config.json` that say what a config tree and its task are, the
            inverse of a task's `config`; None where models can only be saved as they were loaded.
        body: the name of the class without a head.
        modules: words in the names of tensors for which transformers' own modules have others, by
            the former; in files of adapters the names are those of the modules.

    Example:
        >>> import eqxformer as ef
        >>> known = ef.architecture("gpt2")
        >>> known.model_type, next(iter(known.tasks)), known.body
        ('gpt2', 'GPT2LMHeadModel', 'GPT2Model')
    """

    model_type: str
    tasks: Mapping[str, Task]
    describe: Callable[[Config], Mapping[str, Any]] | None = None
    body: str | None = None
    modules: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def task(self, settings: Settings) -> tuple[str, Task]:
        """The first of the classes that `architectures` names and this architecture has."""
        named = settings.get("architectures", None) or [next(iter(self.tasks))]
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise settings.wrong("architectures", "a list of names", named)
        for name in named:
            if name in self.tasks:
                return name, self.tasks[name]
        raise CheckpointError(
            f"{settings.where}: `architectures` must name one of {', '.join(self.tasks)}, the "
            f"classes of {self.model_type} that can be loaded; got {', '.join(named)}."
        )
