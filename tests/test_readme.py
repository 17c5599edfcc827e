"""The README's Python runs, from top to bottom, with what its sentences presuppose."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import eqxformer as ef

README = pathlib.Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def presupposed():
    """What the snippets use without making it, small enough to be quick."""
    tokens = jnp.array([[1, 2, 3, 4, 5]])
    block = ef.families.llama(vocab=65, dim=32, layers=1, heads=4, hidden=64).blocks[0]
    return {
        "ef": ef,
        "jax": jax,
        "jnp": jnp,
        "key": jax.random.key(7),
        "tokens": tokens,
        "source": tokens,
        "target": tokens,
        "valid": tokens > 1,
        "x": jnp.ones((1, 5, 128)),
        "block": block,
        "config": ef.families.llama(vocab=65, dim=32, layers=12, heads=4, hidden=64),
        "model": ef.families.gpt(vocab=65, dim=32, layers=1, heads=4, context=8).build(
            key=jax.random.key(0)
        ),
        "batches": [ef.TokenBatch(tokens)] * 2,
    }


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_snippet_runs(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.debug_key_reuse(False):  # a page may use `key` for several things
        exec(compile(BLOCKS[number], f"README block {number}", "exec"), presupposed())


def test_the_first_screen_holds_an_example_and_the_two_commands():
    screen = README.read_text(encoding="utf-8")[:2500]
    assert "pip install '.[train]' && eqxformer train" in screen
    assert "pip install '.[test]' && pytest" in screen
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 15
