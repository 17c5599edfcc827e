"""`python -m eqxformer` is `eqxformer`."""

from eqxformer.cli import main

main()
