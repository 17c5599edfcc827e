"""`eqxformer tour`: every component with its formula, the line to type, and its shapes."""

import click


@click.command(
    epilog="""\b
Examples:
  eqxformer tour                 # a stop at a time, any key for the next
  eqxformer tour --all | less    # all at once
"""
)
@click.option("--all", "everything", is_flag=True, help="Do not wait for a key between stops.")
def tour(everything: bool) -> None:
    """Walk through every component of a transformer, with the shapes that go in and come out.

    The code of each stop is run as it is shown, which takes the tour most of a minute.
    """
    from eqxformer.tour import tour as walk  # here, so that help comes at once

    def wait() -> None:
        click.pause("Any key for the next stop, Ctrl-C to leave.")  # nobody to wait for: goes on
        click.echo()

    walk(click.echo, None if everything else wait)
