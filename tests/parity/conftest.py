"""Skips all tests of parity where torch or transformers is not installed."""

import pytest


def pytest_pycollect_makemodule() -> None:
    for reference in ("torch", "transformers"):
        pytest.importorskip(reference)
