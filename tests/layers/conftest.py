"""Settings of these tests: most programs here run once, so the compiler's optimiser would cost more than it saves."""

import jax
import pytest
from jaxtyping import config


@pytest.fixture(autouse=True, scope="module")
def _little_optimised():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def unchecked():
    """Without shape checks, as for users who have not switched them on."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
