"""Checks are turned on for a whole process: each claim is tried in a process of its own."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import eqxformer

PRELUDE = """
import sys
import eqxformer as ef
{switch}
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
from demo_package import parts as p

key = jax.random.key(0)
tokens = jnp.zeros((2, 5), jnp.int32)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs Python source in a fresh process that can import the package; gives what it printed."""
    root = tmp_path_factory.mktemp("checks")
    shutil.copytree(Path(__file__).parent / "demo_package", root / "demo_package")
    home = os.path.dirname(os.path.dirname(eqxformer.__file__))

    def run(
        source, switch="ef.check_shapes('demo_package')", prelude=PRELUDE, checks="", fails=False
    ):
        environment = dict(os.environ, EQXFORMER_CHECKS=checks, JAX_PLATFORMS="cpu")
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # cached bytecode is part of the matter
        environment["PYTHONPATH"] = os.pathsep.join([str(root), home])
        program = prelude.format(switch=switch) + textwrap.dedent(source)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else done.stdout

    return run
