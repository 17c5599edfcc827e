"""All references by name."""

from collections.abc import Iterable
from typing import Any

import pytest

from tests.parity.decoders import DECODERS
from tests.parity.encoders import ENCODERS
from tests.parity.more_decoders import MORE_DECODERS
from tests.parity.seq2seq import SEQ2SEQ

CASES = {**DECODERS, **MORE_DECODERS, **ENCODERS, **SEQ2SEQ}


def grouped(names: Iterable[str]) -> list[Any]:
    """Names as parameters whose tests share a worker, and so what it compiles, when asked to:

    pytest tests/parity --dist loadgroup
    """
    return [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in names]
