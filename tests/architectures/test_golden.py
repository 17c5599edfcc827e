"""The golden checkpoints: outputs and gradients stored by `tests/parity/golden.py`; no torch."""

from pathlib import Path

import pytest

from tests.helpers.parity import Expected, errors

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = sorted(folder.name for folder in GOLDEN.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_what_a_golden_checkpoint_computes_is_what_the_reference_computed(name):
    expected = Expected.load(GOLDEN / name / "expected.safetensors")
    wrong = [str(error) for error in errors(GOLDEN / name, expected) if not error.passed]
    assert not wrong, "\n".join(wrong)
