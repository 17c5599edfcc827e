"""The one exception for everything that can be wrong with a checkpoint."""


class CheckpointError(ValueError):
    """What a checkpoint says cannot be used: a bad file, a bad config, tensors that do not fit.

    The first line says which file and what is wrong; lists of tensors follow on further lines.
    """


class MissingFile(CheckpointError, FileNotFoundError):
    """A file or directory that a checkpoint needs is not there."""
