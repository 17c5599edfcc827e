"""What a command is given to look at: whose format a directory is in."""

import pathlib

from eqxformer.pretrained.checkpoint import read_settings


def is_native(directory: pathlib.Path) -> bool:
    """Whether a directory is in our own format; `CheckpointError` where it has no settings."""
    _, values = read_settings(directory)
    return values.get("format") == "eqxformer"
