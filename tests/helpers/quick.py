"""A fixture for tests in which compiling is what takes the time."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly():
    """Arrays are tiny, so XLA is asked not to try hard: a third less time for a file of tests."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)
