"""Settings of these tests."""

import pytest
from jaxtyping import config


@pytest.fixture
def unchecked():
    """Without shape checks, as for users who have not switched them on."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
