"""`python -m eqxformer.cli` is the command `eqxformer`."""

from eqxformer.cli import main

main()
