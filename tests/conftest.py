"""The strictest settings, made before JAX or eqxformer is imported."""

import gc
import os
import tempfile

os.environ.setdefault("EQXFORMER_CHECKS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",  # virtual devices, for tests of sharding
        # Arrays are tiny and most programs run once: not to try hard takes half the time.
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
).strip()

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# Tracing makes millions of small objects; looking through them seldom takes a twentieth less time.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(autouse=True, scope="session")
def _what_one_file_compiles_serves_the_next():
    """Each worker has a directory of its own: programs are not written in one stroke."""
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        yield


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_end_with_their_file():
    """What a file has compiled is let go after it: a worker would grow to gigabytes otherwise."""
    yield
    jax.clear_caches()
