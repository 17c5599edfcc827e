"""Settings of these tests."""

from tests.layers.conftest import unchecked as unchecked
