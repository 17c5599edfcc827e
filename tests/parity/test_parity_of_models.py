"""Models built from our parts compute what the reference implementations compute."""

import pytest

from tests.parity.decoder_families import DECODERS
from tests.parity.encoder_families import ENCODERS
from tests.parity.expert_families import EXPERT_DECODERS
from tests.parity.reference import REGIMES, errors
from tests.parity.seq2seq_families import SEQ2SEQ

FAMILIES = {**DECODERS, **EXPERT_DECODERS, **ENCODERS, **SEQ2SEQ}


# All regimes in one test: they share what was compiled.
@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_gradients_are_those_of_the_reference(name: str):
    for regime in REGIMES:
        outputs, gradients = errors(FAMILIES[name], regime)
        idle = [each.name for each in gradients if each.size == 0.0]
        assert not idle, f"no gradient to compare, {regime}: {idle}"
        wrong = [each for each in (*outputs, *gradients) if not each.error <= each.tolerance]
        assert not wrong, f"{regime}:\n" + "\n".join(map(str, wrong))
