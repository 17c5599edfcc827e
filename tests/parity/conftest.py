"""Skips all tests of parity where torch or transformers is not installed.

Programs are optimised here, as they are for users; the other tests compile quickly.
"""

import jax
import pytest


def pytest_pycollect_makemodule() -> None:
    for reference in ("torch", "transformers"):
        pytest.importorskip(reference)


@pytest.fixture(autouse=True, scope="session")
def _optimised():
    jax.config.update("jax_disable_most_optimizations", False)
