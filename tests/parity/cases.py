"""All references by name."""

from tests.parity.decoders import DECODERS
from tests.parity.encoders import ENCODERS
from tests.parity.more_decoders import MORE_DECODERS
from tests.parity.seq2seq import SEQ2SEQ

CASES = {**DECODERS, **MORE_DECODERS, **ENCODERS, **SEQ2SEQ}
