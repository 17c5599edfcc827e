"""Checkpoints that transformers wrote, loaded by us: what we compute from them is the same."""

import pytest

from tests.helpers.parity import errors
from tests.parity.cases import CASES, grouped
from tests.parity.live import REGIMES, expected_of, store


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", grouped(CASES))
def test_outputs_and_gradients_are_those_of_the_reference(name, regime, tmp_path):
    case = CASES[name]
    model = case.reference(regime)
    store(model, tmp_path)
    found = errors(tmp_path, expected_of(case, model))
    wrong = [str(error) for error in found if not error.passed]
    assert not wrong, "\n".join(wrong)
