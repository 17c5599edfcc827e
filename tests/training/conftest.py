import pytest

from tests.helpers.shared import shared_programs


@pytest.fixture(autouse=True, scope="module")
def _quick():
    """Trainers that are made alike share their programs."""
    with shared_programs():
        yield
