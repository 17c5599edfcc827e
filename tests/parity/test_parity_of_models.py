"""Models built from our parts compute what the reference implementations compute."""

import pytest
from decoder_families import DECODERS
from encoder_families import ENCODERS
from expert_families import EXPERT_DECODERS
from reference import Error, Regime, errors
from seq2seq_families import SEQ2SEQ

FAMILIES = {**DECODERS, **EXPERT_DECODERS, **ENCODERS, **SEQ2SEQ}

every_family = pytest.mark.parametrize("family", FAMILIES)
both_regimes = pytest.mark.parametrize("regime", ["cold", "hot"])


def assert_within_noise(found: list[Error]) -> None:
    wrong = [each for each in found if not each.error <= each.tolerance]
    assert not wrong, "\n" + "\n".join(map(str, wrong))


@both_regimes
@every_family
def test_every_hidden_state_and_output_is_that_of_the_reference(family: str, regime: Regime):
    assert_within_noise(errors(FAMILIES[family], regime)[0])


@both_regimes
@every_family
def test_every_gradient_is_that_of_the_reference(family: str, regime: Regime):
    gradients = errors(FAMILIES[family], regime)[1]
    assert not [each.name for each in gradients if each.size == 0.0]  # it would prove nothing
    assert_within_noise(gradients)
