"""What is checked, how checks are turned on, and that nothing is there while they are off."""

import json
import os
import subprocess
import sys

import pytest

import eqxformer

CLAIMS = {
    "what is right passes through every transformation": """
    model = p.Model(key=key)
    logits = model(tokens)
    assert logits.shape == (2, 5, 11)
    for same in [eqx.filter_jit(model), jax.vmap(model), eqx.filter_checkpoint(model)]:
        assert jnp.allclose(same(tokens), logits, atol=1e-5)
    eqx.filter_grad(lambda m: m(tokens).sum())(model)
    assert model.scanned(jnp.ones((2, 5, 8))).shape == (2, 5, 8)
    described = eqx.filter_eval_shape(p.Model, key=key)
    assert described.blocks[0].attention.width == 8
    assert eqx.filter_eval_shape(model, jax.ShapeDtypeStruct((2, 5), jnp.int32)).shape == (2, 5, 11)
    stacked = eqx.filter_vmap(lambda k: p.Linear(3, 4, key=k))(jax.random.split(key, 2))
    assert stacked.weight.shape == (2, 3, 4)
    assert jax.grad(lambda x: p.doubled(x).sum())(jnp.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert p.repeated(jnp.ones(3), times=2).shape == (6,)
    assert p.Attention.half(jnp.ones((2, 4))).shape == (2, 2)
    assert p.product(jnp.ones((2, 3)), jnp.ones((3, 2)), scale=1).shape == (2, 2)
    assert list(p.counted(3)) == [0, 1, 2] and len(list(p.arrays(jnp.ones((2, 3))))) == 2
    with p.scope("name") as name:
        assert name == "name"
    import asyncio
    assert asyncio.run(p.waited(3)) == 3
    late = p.Late()
    assert p.later(late) == [late] and late.self_((1, 2)) is late and p.free(3) == 3
    p.tree({"x": jnp.ones(3)})
    p.Config(8, options={"x": 1})
    p.Sparse(None, [1, 2])
    p.Pair("x")
    """,
    "a stacked or described field says nothing about the axes": """
    linear = p.Linear(3, 4, key=key)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), linear)
    assert jax.vmap(lambda l, x: l(x))(stacked, jnp.ones((2, 5, 3))).shape == (2, 5, 4)
    coarse = eqx.tree_at(lambda l: l.weight, linear, linear.weight.astype(jnp.int8))
    assert coarse.weight.dtype == jnp.int8
    assert eqx.filter_eval_shape(lambda l: p.Attention(l, l, p.Config(2)).width, linear) == 4
    """,
    "the source keeps its lines, names, signatures and doctests": """
    import doctest, inspect, pickle
    plain = inspect.getsource(p.product)
    assert plain.startswith("def product(") and "return scale * (a @ b)" in plain
    assert list(inspect.signature(p.product).parameters) == ["a", "b", "scale"]
    assert p.product.__name__ == "product" and p.product.__module__ == "demo_package.parts"
    assert pickle.loads(pickle.dumps(p.product)) is p.product
    assert p.__doc__.startswith("A small model")
    names = [t.name.rpartition(".")[2] for t in doctest.DocTestFinder().find(p) if t.examples]
    assert sorted(names) == ["named", "tree"], names
    assert list(inspect.signature(p.Config).parameters)[0] == "heads"
    assert not hasattr(p.unannotated, "__wrapped__") and not hasattr(p.free, "__wrapped__")
    """,
    "asking twice is the same as asking once": """
    ef.check_shapes()
    ef.check_shapes("demo_package")
    hooks = [f for f in sys.meta_path if type(f).__module__ == "eqxformer.checks._hook"]
    assert len(hooks) == 1 and p.product.__wrapped__.__name__ == "product"
    assert not hasattr(p.product.__wrapped__, "__wrapped__")
    """,
}


CALLS = [
    "ask(p.Model(3, key=key))",
    "eqx.filter_jit(ask)(p.Model(3, key=key))",
    "eqx.filter_jit(p.Model(3, key=key))(tokens)",
    "eqx.filter_grad(lambda model: ask(model).sum())(p.Model(3, key=key))",
    "ef.Attention(4, heads=2, key=key)(jnp.ones((2, 5)))",
]
MISSING, MISTAKE = "p.product(jnp.ones((2, 3)))", "p.Config('8')"
PROGRAM = """
step = eqx.filter_jit(eqx.filter_value_and_grad(lambda m, t: m(t).sum()))
program = step.lower(p.Model(key=key), tokens).as_text()
"""


@pytest.fixture(scope="module")
def on(run):
    """What a process finds with checks turned on, asked everything: each takes seconds to begin.

    The refusal of a name; a compiled program; what went wrong with each of the claims; and what
    the process would end with after each call, of the last one also with all frames.
    """
    switch = """
try:
    ef.check_shapes("my package")
except ValueError as error:
    refused = str(error)
ef.check_shapes("demo_package")
"""
    source = """
import contextlib, io, json, textwrap, traceback

failures = {}
for claim, source in %r.items():
    try:
        exec(textwrap.dedent(source), dict(globals()))
    except BaseException:
        failures[claim] = traceback.format_exc()
    else:
        failures[claim] = ""

def ask(model):
    return model(tokens)

def ended(call):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            eval(call)
        except Exception:
            sys.excepthook(*sys.exc_info())
    return said.getvalue()

found = {call: ended(call) for call in %r}
jax.config.update("jax_traceback_filtering", "off")
found["all"] = ended(%r)
about = {"refused": refused, "program": program, "failures": failures, "tracebacks": found}
print(json.dumps(about))
"""
    asked = (CLAIMS, [*CALLS, MISSING, MISTAKE], CALLS[-1])
    return json.loads(run(PROGRAM + source % asked, switch=switch))


@pytest.fixture(scope="module")
def off(run):
    """What processes find without checks, where the variable is empty and where it says so."""
    source = """
import json, traceback

try:
    ef.check_shapes("demo_package")
except RuntimeError as error:
    late = "".join(traceback.format_exception_only(error))
print(json.dumps({"program": program, "late": late}))
"""
    nothing = """
assert not hasattr(p.product, "__wrapped__")
assert not any(name.startswith("eqxformer.checks.") for name in sys.modules)
assert not any("eqxformer" in type(finder).__module__ for finder in sys.meta_path)
assert p.Config("8").heads == "8"
"""
    asked = nothing + PROGRAM + source
    return {checks: json.loads(run(asked, switch="", checks=checks)) for checks in ("", "0")}


@pytest.mark.parametrize("claim", CLAIMS)
def test_with_checks_turned_on(on, claim):
    assert not on["failures"][claim], on["failures"][claim]


def test_a_call_that_does_not_match_the_signature_gets_pythons_own_message(on):
    error = on["tracebacks"][MISSING]
    assert error.endswith("product() missing 1 required positional argument: 'b'\n")


@pytest.mark.parametrize("call", CALLS)
def test_the_users_own_frame_comes_last_and_nothing_of_the_library_is_between(on, call):
    lines = on["tracebacks"][call].splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith("eqxformer.ShapeError: "))
    frames = [line for line in lines[:end] if line.startswith("  File ")]
    library = os.path.dirname(eqxformer.__file__)
    assert not any(library in frame or "equinox" in frame for frame in frames)
    # Of the demo, the last line is that of its own part which passed the wrong array.
    assert ("demo_package" if "Model" in call else "<string>") in frames[-1]


def test_a_mistake_in_a_call_of_the_library_is_told_in_under_twelve_lines(on):
    told = on["tracebacks"][CALLS[-1]]
    assert len(told.splitlines()) < 12
    said = "`x` of key (Linear.__call__): axis `in_dim` must be 4; got 5."
    assert said in told


def test_all_frames_are_shown_where_jax_is_told_not_to_filter_them(on):
    assert os.path.join("layers", "attention.py") in on["tracebacks"]["all"]


def test_the_compiled_program_is_the_same_with_and_without(on, off):
    assert on["program"] == off[""]["program"] == off["0"]["program"]


def test_cached_bytecode_with_and_without_is_kept_apart(run, on, off):
    """Both are cached by now, since `off` allowed what `on` refused."""
    assert "eqxformer.ShapeError" in on["tracebacks"][MISTAKE]
    where = "import os; print(sorted(os.listdir(os.path.dirname(p.__cached__))))\n"
    files = run(where + MISTAKE, switch="", checks="0")
    assert "eqxformer.ShapeError" in run(MISTAKE, fails=True)
    assert files.count("parts.") == 2


@pytest.mark.parametrize("checks", ["", "0"])
def test_nothing_of_the_checks_is_there_while_they_are_off(off, checks):
    assert off[checks]  # where something is there, the process fails


def test_importing_the_switch_itself_loads_neither_jax_nor_beartype():
    source = (
        "import sys, importlib.util\n"
        "spec = importlib.util.spec_from_file_location('checks', sys.argv[1])\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "print(sorted({'jax', 'numpy', 'beartype', 'jaxtyping', 'equinox'} & set(sys.modules)))"
    )
    home = os.path.dirname(os.path.dirname(eqxformer.__file__))
    file = os.path.join(home, "eqxformer", "checks", "__init__.py")
    done = subprocess.run([sys.executable, "-c", source, file], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("checks", ["eqxformer,demo_package", "1,demo_package", "demo_package"])
def test_the_environment_turns_checks_on_for_the_packages_it_lists(run, checks):
    error = run("p.product(jnp.ones((2, 3)), None)", switch="", checks=checks, fails=True)
    assert "eqxformer.ShapeError: `b` of product" in error


def test_the_environment_warns_of_modules_it_came_too_late_for(run):
    program = "import demo_package.parts\nimport eqxformer"
    error = run(program, prelude="", checks="demo_package", fails=True)
    assert error.splitlines()[-1] == (
        "UserWarning: EQXFORMER_CHECKS came too late for demo_package, demo_package.parts: loaded "
        "before eqxformer, and so not checked. Put `import eqxformer` first."
    )


def test_checks_asked_for_after_the_parts_are_loaded_say_what_to_do(off):
    assert off[""]["late"] == (
        "RuntimeError: `check_shapes` must run before demo_package is loaded; demo_package, "
        "demo_package.parts already is. Call it directly after `import eqxformer`, before anything "
        "else of it is used or imported, or start Python with "
        "EQXFORMER_CHECKS=eqxformer,demo_package.\n"
    )


def test_a_name_that_is_no_package_is_refused(on):
    assert "must be a name such as `mypackage`; got 'my package'." in on["refused"]
