"""Settings of these tests. Most programs run once, and take longer to optimise than to run."""

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
