"""The strictest settings, made before JAX or eqxformer is imported."""

import os

os.environ.setdefault("EQXFORMER_CHECKS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight virtual devices, for tests of sharding.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_end_with_their_file():
    """What a file has compiled is let go after it: a worker would grow to gigabytes otherwise."""
    yield
    jax.clear_caches()
