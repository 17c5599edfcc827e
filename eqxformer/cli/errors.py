"""Errors that are one line on the terminal: a mistake in what was asked for, or a failure."""

import contextlib
from collections.abc import Iterator

import click


class Mistake(click.ClickException):
    """What was asked for cannot be; the message says what to do."""

    exit_code = 2


class Failure(click.ClickException):
    """What was begun could not be brought to its end; the message says what is left."""

    exit_code = 1


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns the errors that the library raises for bad input into one line without a traceback."""
    try:
        yield
    except BrokenPipeError:  # the reader of a pipe has gone: nobody is there to be told
        raise
    except (ValueError, TypeError, NotImplementedError, ImportError, OSError) as error:
        raise Mistake(str(error) or type(error).__name__) from error
