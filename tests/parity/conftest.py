"""Skips all tests of parity where torch or transformers is not installed.

Programs are optimised here, as they are for users; the other tests compile quickly.
"""

import jax
import pytest


def pytest_pycollect_makemodule() -> None:
    for reference in ("torch", "transformers"):
        pytest.importorskip(reference)


@pytest.fixture(autouse=True, scope="module")
def _optimised():
    """As long as a file lasts: what a worker tests after it is compiled quickly again."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)
