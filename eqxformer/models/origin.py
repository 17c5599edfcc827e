"""Where a model came from: the checkpoint whose words it is saved in again."""

import dataclasses
from typing import Any

from eqxformer.config import Config


class Origin(Config):
    """The `config.json` of the checkpoint that a model was loaded from, and its directory.

    Part of a model's config, so that `save_pretrained` can write the same words again after the
    model has been trained; what is printed of a config leaves it out.

    Arguments:
        settings: the text of `config.json`.
        directory: where it was read, for the tokenizer and other files beside it; None for a model
            that no directory holds, such as a preset's.

    Example:
        >>> import eqxformer as ef, json
        >>> config = ef.preset("gpt2")
        >>> json.loads(config.origin.settings)["model_type"], config.origin.directory
        ('gpt2', None)
    """

    settings: str
    directory: str | None = None


def unknown() -> Any:
    """The field `origin` of a config: None unless it was read from a checkpoint, never printed."""
    return dataclasses.field(default=None, repr=False)
