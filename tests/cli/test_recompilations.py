"""`eqxformer recompilations`: what a script or a command compiles, and why it does so again."""

import re
import sys

import pytest

from tests.cli.test_mistakes import refused

SCRIPT = """
import sys
import jax, jax.numpy as jnp
from beside import NUMBER

@jax.jit
def double(x):
    return 2 * x

print(sys.argv, __name__)
double(jnp.ones(NUMBER)), double(jnp.ones(4)), double(jnp.ones(4))
sys.exit(3)
"""


@pytest.fixture
def script(here):
    (here / "scripts").mkdir()
    (here / "scripts" / "beside.py").write_text("NUMBER = 3")
    (here / "scripts" / "mine.py").write_text(SCRIPT)
    yield "scripts/mine.py"
    sys.modules.pop("beside", None)


def test_a_script_is_run_as_python_runs_it_and_each_compilation_is_told(command, script):
    before = sys.argv, list(sys.path)
    code, out, err = command("recompilations", script, "--its", "own")
    assert code == 3
    assert out == f"{[script, '--its', 'own']} __main__\n"
    first, again, total = err.splitlines()
    assert re.fullmatch(r"double: compiled in [\d.]+ s", first)
    assert re.fullmatch(
        r"double: compiled again \(number 2\), .* s: x was f32\[3\], is f32\[4\]", again
    )
    assert re.fullmatch(r"Compiled: 1 functions, and 1 times one again; [\d.]+ s\.", total)
    assert (sys.argv, list(sys.path)) == before


def test_a_command_of_eqxformer_gets_its_own_options_and_keeps_its_exit_code(command, here):
    code, out, err = command("recompilations", "info", "gpt2", "--depth", 1)
    assert (code, err) == (0, "")  # nothing is compiled by it
    assert "embedding" in out
    error = refused(command, here, "recompilations", "info", "gpt2", "--nope")
    assert "No such option '--nope'; see eqxformer info --help" in error


@pytest.mark.parametrize(
    ("name", "message"), [("nothing", "neither a Python script"), ("none.py", "There is no file")]
)
def test_what_is_neither_is_refused(command, here, name, message):
    assert message in refused(command, here, "recompilations", name)
