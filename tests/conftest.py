"""The strictest settings, made before JAX or eqxformer is imported."""

import functools
import gc
import os
import shutil
import zlib
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("EQXFORMER_CHECKS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",  # virtual devices, for tests of sharding
        # A program is compiled whole, not in parts for many cores, which takes a third more time.
        "--xla_cpu_parallel_codegen_split_count=1",
        # Quicker to compile without, where there is this choice; an unknown flag ends the process.
        "--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
    ]
).strip()

import jax
import pytest
from jax._src import compilation_cache
from jax._src.interpreters import mlir

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Tracing makes millions of small objects; looking through them seldom takes a twentieth less time.
gc.set_threshold(100_000, 50, 100)
# Arrays are tiny and most programs run once: not to optimise them takes half the time.
jax.config.update("jax_disable_most_optimizations", True)
# This JAX makes a context of MLIR for every program, a quarter of the time of a small one; newer
# ones share it, as the programs of a file do here.
OLD = version("jaxlib").startswith("0.10.")
if OLD:
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)
# Without zstandard, zlib compresses what is kept: at level 1 in half the time, a fifth larger.
if (
    hasattr(compilation_cache, "compress_executable")
    and getattr(compilation_cache, "zstandard", ...) is None
    and getattr(compilation_cache, "zstd", None) is None
):
    compilation_cache.compress_executable = functools.partial(zlib.compress, level=1)

LARGEST_CACHE = 2**30  # bytes
# Files that take longest, roughly in that order: begun first, they leave no worker waiting.
SLOWEST = [
    "parity/test_parity_with_transformers.py",
    "parity/test_round_trip.py",
    "parity/test_generation_of_every_architecture.py",
    "docs/test_docstrings.py",
    "docs/test_how_to.py",
    "docs/test_pages.py",
    "architectures/test_golden.py",
    "generation/test_every_architecture_generates.py",
    "generation/test_states.py",
    "generation/test_beam_search.py",
    "cli/test_train_from.py",
    "training/test_processes.py",
    "training/test_killed_runs.py",
    "cli/test_resume.py",
    "checks/test_contracts.py",
    "training/test_translate.py",
    "training/test_finetune.py",
    "cli/test_process.py",
    "docs/test_readme.py",
    "parity/test_finetuned_weights.py",
    "parity/test_how_to_parity.py",
    "sharding/test_steps.py",
    "models/test_dropout.py",
    "tour/test_tour.py",
]


def pytest_configure(config: pytest.Config) -> None:
    """What is compiled is kept, for the other workers and for the next run.

    A program is found again as long as it, JAX and the flags are the same. `pytest --cache-clear`
    forgets all of them, as a cache that has become large does by itself.
    """
    if config.pluginmanager.has_plugin("cacheprovider"):
        kept = config.cache.mkdir("compiled")
        first = not hasattr(config, "workerinput")
        if first and sum(file.stat().st_size for file in kept.iterdir()) > LARGEST_CACHE:
            shutil.rmtree(kept)
        jax.config.update("jax_compilation_cache_dir", str(kept))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves whole files, to the same places on every worker, as pytest-xdist demands."""
    rank = {Path(__file__).parent / name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs_end_with_their_file():
    """What a file has compiled is let go after it: a worker would grow to gigabytes otherwise."""
    yield
    jax.clear_caches()
    if OLD:
        mlir.make_ir_context.cache_clear()
