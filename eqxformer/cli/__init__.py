"""The command line: `eqxformer train`, `eqxformer generate` and what else `commands` lists.

Nothing heavy is imported before a command runs, so that help and errors come at once.
"""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

_NEEDED = ("click", "matplotlib", "rich")  # what the extra `train` brings


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and ends the process with its exit code.

    0 is success, 2 a mistake in what was asked for, 1 what was begun and could not be ended, 130
    and 143 the end by Ctrl-C and SIGTERM.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"Error: the command line needs {' and '.join(missing)}; "
            "run: pip install 'eqxformer[train]'",
            file=sys.stderr,
        )
        sys.exit(2)
    try:
        from eqxformer.cli.commands import run
        from eqxformer.cli.interrupts import none_lost

        with none_lost():
            code = run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:  # while the modules are loaded
        code = 130
    sys.exit(code)
