"""Writes `tests/golden`: tiny checkpoints by transformers, and what transformers makes of them.

    python -m tests.parity.golden [NAME ...]

With these files plain `pytest` proves equality without torch. Weights are those of the hot regime;
the cold ones, which show the epsilons of norms, are compared live in `tests/parity`.
"""

import shutil
import sys
from pathlib import Path

from tests.parity.cases import CASES
from tests.parity.live import expected_of, store

GOLDEN = Path(__file__).parent.parent / "golden"
KEPT = {"config.json", "model.safetensors", "expected.safetensors"}


def write(name: str) -> None:
    """One golden directory, made anew."""
    case, folder = CASES[name], GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    model = case.reference("hot")
    store(model, folder)
    expected_of(case, model).save(folder / "expected.safetensors")
    for file in folder.iterdir():
        if file.name not in KEPT:
            file.unlink()


if __name__ == "__main__":
    for each in sys.argv[1:] or [name for name, case in CASES.items() if case.golden]:
        write(each)
        size = sum(f.stat().st_size for f in (GOLDEN / each).iterdir())
        print(f"{each}: {size / 1000:.0f} kB")
