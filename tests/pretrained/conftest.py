"""A directory with a tiny checkpoint that a test may change."""

import pytest

import eqxformer as ef
from tests.pretrained.tiny import MODEL


@pytest.fixture
def tiny(tmp_path):
    """A Llama of two blocks."""
    ef.save_pretrained(MODEL, tmp_path / "tiny", model_type="llama")
    return tmp_path / "tiny"
