"""Shape contracts: what is checked, what a failure says, and that nothing is there when off.

Checks are turned on for a whole process, so each claim is tried in a process of its own, on a
package that is written for the occasion.
"""

import json
import os
import subprocess
import sys
import textwrap

import pytest

import eqxformer

PACKAGE = '''
"""A small model with one mistake to order, and functions of every kind."""
import asyncio
import contextlib
import dataclasses
import functools
import typing
from typing import Annotated, Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree


class Linear(eqx.Module):
    weight: Float[Array, "in_dim out_dim"]
    bias: Annotated[Float[Array, " out_dim"] | None, "optional"]

    def __init__(self, in_dim: int, out_dim: int, extra: int = 0, *, key: PRNGKeyArray):
        self.weight = jax.random.normal(key, (in_dim, out_dim))
        self.bias = jnp.zeros(out_dim + extra)

    def __call__(self, x: Float[Array, "*batch in_dim"]) -> Float[Array, "*batch out_dim"]:
        return x @ self.weight


@dataclasses.dataclass(frozen=True)
class Config:
    heads: int
    scale: float = 1.0
    activation: Literal["relu", "gelu"] = "relu"
    sizes: tuple[int, ...] = ()
    options: dict[str, int] = dataclasses.field(default_factory=dict)


class AbstractLayer(eqx.Module):
    name: eqx.AbstractVar[str]

    def __call__(self, x: Float[Array, "*batch seq dim"]) -> Float[Array, "*batch seq dim"]:
        raise NotImplementedError


class Attention(AbstractLayer):
    query: Linear
    key: Linear
    config: Config = eqx.field(static=True)
    name: str = eqx.field(static=True, default="attention")

    def __call__(
        self, x: Float[Array, "*batch seq dim"], mask: Bool[Array, "seq seq"] | None = None
    ) -> Float[Array, "*batch seq dim"]:
        return self.query(x) + self.key(x)

    @property
    def width(self) -> int:
        return self.query.weight.shape[1]

    @property
    def lying(self) -> int:
        return "seven"

    @classmethod
    def make(cls, dim: int, missing: int = 0, *, key: PRNGKeyArray) -> "Attention":
        query = Linear(dim - missing, dim, key=key)
        return cls(query, Linear(dim, dim, key=key), Config(2))

    @staticmethod
    def half(x: Float[Array, "n m"]) -> Float[Array, "n m/2"]:
        return x[:, ::2]


class Block(eqx.Module):
    attention: Attention

    def __call__(self, x: Float[Array, "*batch seq dim"]) -> Float[Array, "*batch seq dim"]:
        return x + self.attention(x)


class Model(eqx.Module):
    table: Float[Array, "vocab dim"]
    blocks: tuple[Block, ...]

    def __init__(self, missing: int = 0, *, key: PRNGKeyArray):
        self.table = jax.random.normal(key, (11, 8))
        width = [0, missing, missing]
        self.blocks = tuple(Block(Attention.make(8, n, key=key)) for n in width)

    def __call__(
        self, tokens: Int[Array, "*batch seq"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*batch seq vocab"]:
        x = self.table[tokens]
        for block in self.blocks:
            x = block(x)
        return x @ self.table.T

    def scanned(self, x: Float[Array, "*batch seq dim"]) -> Float[Array, "*batch seq dim"]:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.blocks[1:])
        return jax.lax.scan(lambda x, block: (block(x), None), x, stacked)[0]


def product(
    a: Float[Array, "n m"], b: Float[Array, "m k"], *, scale: float = 1.0
) -> Float[Array, "n k"]:
    return scale * (a @ b)


def cropped(x: Float[Array, "n m"]) -> Float[Array, "n m"]:
    return x[:, 1:]


def shifted(x: Float[Array, " n"]) -> Float[Array, " n-1"]:
    return x


def both(
    pair: tuple[Float[Array, " n"], Float[Array, " m"]], like: Float[Array, "n m"]
) -> dict[str, Float[Array, " n"]]:
    return {"second": pair[1], "first": pair[0]}


def pair_after(
    like: Float[Array, "n m"], pair: tuple[Float[Array, " n"], Float[Array, " m"]]
) -> Float[Array, ""]:
    return jnp.sum(like)


@jax.custom_vjp
def doubled(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    return 2 * x


def _forward(x: Float[Array, "*any"]) -> tuple[Float[Array, "*any"], None]:
    return doubled(x), None


def _backward(_: None, g: Float[Array, "*any"]) -> tuple[Float[Array, "*any"]]:
    return (2 * g,)


doubled.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnames="times")
def repeated(x: Float[Array, " n"], times: int) -> Float[Array, " {times}*n"]:
    return jnp.tile(x, times)


def halved(x: Float[Array, " n"], by: int) -> Float[Array, " n//{by}"]:
    return x[::2]


def moved(x: Float[Array, "*batch seq"], by: Float[Array, "*#batch seq"]) -> None: ...


def counted(stop: int):
    for i in range(stop):
        yield i


def arrays(x: Float[Array, "n m"]) -> typing.Iterator[Float[Array, " m"]]:
    yield from x


@contextlib.contextmanager
def scope(name: str) -> typing.Iterator[str]:
    yield name


async def waited(x: int) -> int:
    return x


def later(x: "Late", y: "NotThere" = None) -> typing.List["Late"]:
    return [x]


class Late:
    def self_(self, among: tuple[int, ...] = ()) -> typing.Self:
        return self

    def named(self, count: int) -> "Late":
        """Returns itself.

        >>> Late().named(1) is None
        False
        """
        return self


def tree(x: PyTree[Float[Array, "..."]]) -> np.ndarray:
    """Two.

    >>> 1 + 1
    2
    """
    return np.ones(2)


@typing.no_type_check
def free(x: int) -> str:
    return x


def unannotated(x):
    return x


class Pair(NamedTuple):
    x: int


class Sparse(eqx.Module):
    weight: Float[Array, "in_dim out_dim"] | None
    index: Int[Array, " rows"] = eqx.field(converter=jnp.asarray)
'''

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
    (root / "demo_package").mkdir()
    (root / "demo_package" / "__init__.py").write_text("")
    (root / "demo_package" / "parts.py").write_text(PACKAGE)
    home = os.path.dirname(os.path.dirname(eqxformer.__file__))

    def run(
        source, switch="ef.check_shapes('demo_package')", prelude=PRELUDE, checks="", fails=False
    ):
        environment = dict(os.environ, EQXFORMER_CHECKS=checks, JAX_PLATFORMS="cpu")
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


MISTAKES = {
    "width": "p.Model(3, key=key)(tokens)",
    "jit": "eqx.filter_jit(p.Model(3, key=key))(tokens)",
    "grad": "eqx.filter_grad(lambda m: m(tokens).sum())(p.Model(3, key=key))",
    "vmap": "jax.vmap(p.Model(3, key=key))(tokens)",
    "scan": "p.Model(3, key=key).scanned(jnp.ones((2, 5, 8)))",
    "dtype": "p.Model(key=key)(tokens.astype(float))",
    "rank": "p.Model(key=key)(jnp.zeros((), int))",
    "numpy": "p.Model(key=key)(np.zeros((2, 5), np.int32))",
    "key": "p.Model(key=key)(tokens, key=jnp.zeros(2))",
    "keys": "p.Model(key=key)(tokens, key=jax.random.split(key))",
    "square": "p.Model(key=key).blocks[0].attention(jnp.ones((5, 8)), jnp.ones((5, 4), bool))",
    "two arguments": "p.product(jnp.ones((2, 3)), jnp.ones((4, 5)))",
    "plain argument": "p.product(jnp.ones((2, 3)), jnp.ones((3, 5)), scale='x')",
    "no array": "p.product(jnp.ones((2, 3)), None)",
    "result": "p.cropped(jnp.ones((2, 3)))",
    "expression": "p.shifted(jnp.ones(4))",
    "inside a tuple": "p.pair_after(jnp.ones((2, 3)), (jnp.ones(2), jnp.ones(4)))",
    "inside a result": "p.both((jnp.ones(2), jnp.ones(3)), jnp.ones((2, 3)))",
    "frozen dataclass": "p.Config('8')",
    "literal": "p.Config(8, activation='silu')",
    "item": "p.Config(8, sizes=(1, 2, 2.5))",
    "module argument": "p.Block(p.Linear(2, 3, key=key))",
    "constructor": "p.Linear(2.5, 4, key=key)",
    "fields": "p.Linear(2, 4, 1, key=key)",
    "part built": "p.Attention.make(8, '1', key=key)",
    "property": "p.Attention.make(8, key=key).lying",
    "static method": "p.Attention.half(jnp.ones((4, 3)))",
    "forward reference": "p.later(3)",
    "broadcast": "p.moved(jnp.ones((2, 5)), jnp.ones((3, 5)))",
    "expression of an argument": "p.halved(jnp.ones(6), 4)",
}

MESSAGES = {
    "width": """
        `x` of blocks.1.attention.query (Linear.__call__): axis `in_dim` must be 5; got 8.
          x: float32[2,5,8], annotated Float[Array, "*batch in_dim"]
          self.weight: float32[5,8], annotated Float[Array, "in_dim out_dim"]; sets in_dim=5
        """,
    "scan": """
        `x` of blocks.*.attention.query (Linear.__call__): axis `in_dim` must be 5; got 8.
          x: float32[2,5,8], annotated Float[Array, "*batch in_dim"]
          self.weight: float32[5,8], annotated Float[Array, "in_dim out_dim"]; sets in_dim=5
        """,
    "vmap": """
        `x` of blocks.1.attention.query (Linear.__call__): axis `in_dim` must be 5; got 8.
          x: float32[5,8], annotated Float[Array, "*batch in_dim"]
          self.weight: float32[5,8], annotated Float[Array, "in_dim out_dim"]; sets in_dim=5
        """,
    "dtype": """
        `tokens` of Model.__call__: must be Int; got float32.
          tokens: float32[2,5], annotated Int[Array, "*batch seq"]
        """,
    "rank": """
        `tokens` of Model.__call__: must have at least 1 axis; got 0.
          tokens: int32[], annotated Int[Array, "*batch seq"]
        """,
    "numpy": """
        `tokens` of Model.__call__: must be a JAX array (jax.numpy.asarray makes one); got numpy \
int32[2,5].
          tokens: numpy int32[2,5], annotated Int[Array, "*batch seq"]
        """,
    "key": """
        `key` of Model.__call__: must be a key from jax.random.key; got float32.
          key: float32[2], annotated PRNGKeyArray | None
        """,
    "keys": """
        `key` of Model.__call__: must have 0 axes; got 1.
          key: key<fry>[2], annotated PRNGKeyArray | None
        """,
    "square": """
        `mask` of Attention.__call__: axis `seq` must be 5; got 4.
          mask: bool[5,4], annotated Bool[Array, "seq seq"] | None
          x: float32[5,8], annotated Float[Array, "*batch seq dim"]; sets seq=5
        """,
    "two arguments": """
        `b` of product: axis `m` must be 3; got 4.
          b: float32[4,5], annotated Float[Array, "m k"]
          a: float32[2,3], annotated Float[Array, "n m"]; sets m=3
        """,
    "plain argument": "`scale` of product: must be float; got the str 'x'.",
    "no array": '`b` of product: must be Float[Array, "m k"]; got None.',
    "result": """
        The result of cropped: axis `m` must be 3; got 2.
          result: float32[2,2], annotated Float[Array, "n m"]
          x: float32[2,3], annotated Float[Array, "n m"]; sets m=3
        """,
    "expression": """
        The result of shifted: axis `n-1` must be 3; got 4.
          result: float32[4], annotated Float[Array, "n-1"]
          x: float32[4], annotated Float[Array, "n"]; sets n=4
        """,
    "inside a tuple": """
        `pair[1]` of pair_after: axis `m` must be 3; got 4.
          pair[1]: float32[4], annotated Float[Array, "m"]
          like: float32[2,3], annotated Float[Array, "n m"]; sets m=3
        """,
    "inside a result": """
        The result['second'] of both: axis `n` must be 2; got 3.
          result['second']: float32[3], annotated Float[Array, "n"]
          like: float32[2,3], annotated Float[Array, "n m"]; sets n=2
        """,
    "frozen dataclass": "`heads` of Config: must be int; got the str '8'.",
    "literal": '`activation` of Config: must be Literal["relu", "gelu"]; got the str \'silu\'.',
    "item": "`sizes[2]` of Config: must be int; got the float 2.5.",
    "module argument": "`attention` of Block: must be Attention; got a Linear.",
    "constructor": "`in_dim` of Linear: must be int; got the float 2.5.",
    "fields": """
        `bias` of Linear: axis `out_dim` must be 4; got 5.
          bias: float32[5], annotated Float[Array, "out_dim"] | None
          weight: float32[2,4], annotated Float[Array, "in_dim out_dim"]; sets out_dim=4
        """,
    "part built": "`missing` of Attention.make: must be int; got the str '1'.",
    "property": "The result of Attention.lying: must be int; got the str 'seven'.",
    "static method": """
        The result of Attention.half: axis `m/2` must be 1.5; got 2.
          result: float32[4,2], annotated Float[Array, "n m/2"]
          x: float32[4,3], annotated Float[Array, "n m"]; sets m=3
        """,
    "forward reference": "`x` of later: must be Late; got the int 3.",
    "broadcast": """
        `by` of moved: axes `*#batch` must broadcast to (2,); got (3,).
          by: float32[3,5], annotated Float[Array, "*#batch seq"]
          x: float32[2,5], annotated Float[Array, "*batch seq"]; sets batch=(2,)
        """,
    "expression of an argument": """
        The result of halved: axis `n//{by}` must be 1; got 3.
          result: float32[3], annotated Float[Array, "n//{by}"]
          x: float32[6], annotated Float[Array, "n"]; sets n=6
        """,
}
MESSAGES["jit"] = MESSAGES["grad"] = MESSAGES["width"]


@pytest.fixture(scope="module")
def messages(run):
    source = """
    import json
    found = {}
    for name, mistake in %r.items():
        try:
            eval(mistake)
        except ef.ShapeError as error:
            assert isinstance(error, TypeError)
            assert error.__suppress_context__ or error.__context__ is None
            found[name] = str(error)
    print(json.dumps(found))
    """
    return json.loads(run(source % MISTAKES))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_few_lines_with_place_axis_expected_and_got(messages, name):
    assert messages[name] == textwrap.dedent(MESSAGES[name]).strip()
    assert messages[name].count("\n") < 7


def test_what_is_right_passes_through_every_transformation(run):
    source = """
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
    print("passed")
    """
    assert run(source) == "passed\n"


def test_a_stacked_or_described_field_says_nothing_about_the_axes(run):
    source = """
    linear = p.Linear(3, 4, key=key)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), linear)
    assert jax.vmap(lambda l, x: l(x))(stacked, jnp.ones((2, 5, 3))).shape == (2, 5, 4)
    coarse = eqx.tree_at(lambda l: l.weight, linear, linear.weight.astype(jnp.int8))
    assert coarse.weight.dtype == jnp.int8
    assert eqx.filter_eval_shape(lambda l: p.Attention(l, l, p.Config(2)).width, linear) == 4
    print("passed")
    """
    assert run(source) == "passed\n"


def test_a_call_that_does_not_match_the_signature_gets_pythons_own_message(run):
    error = run("p.product(jnp.ones((2, 3)))", fails=True)
    assert error.endswith("product() missing 1 required positional argument: 'b'\n")


def test_the_traceback_shows_the_users_lines_and_one_of_the_checks(run):
    error = run("p.Model(3, key=key)(tokens)", fails=True)
    assert error.count("x = block(x)") == error.count("return self.query(x)") == 1
    assert "jaxtyping" not in error
    assert error.count("_contract.py") == 1
    assert "\neqxformer.ShapeError: `x` of blocks.1.attention.query" in error


def test_the_source_keeps_its_lines_names_signatures_and_doctests(run):
    source = """
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
    print("passed")
    """
    assert run(source) == "passed\n"


def test_the_compiled_program_is_the_same_with_and_without(run):
    source = """
    step = eqx.filter_jit(eqx.filter_value_and_grad(lambda m, t: m(t).sum()))
    print(step.lower(p.Model(key=key), tokens).as_text())
    """
    assert run(source) == run(source, switch="")


def test_nothing_of_the_checks_is_there_while_they_are_off(run):
    source = """
    assert not hasattr(p.product, "__wrapped__")
    assert not any(name.startswith("eqxformer.checks.") for name in sys.modules)
    assert not any("eqxformer" in type(finder).__module__ for finder in sys.meta_path)
    assert p.Config("8").heads == "8"
    print("passed")
    """
    assert run(source, switch="") == "passed\n"
    assert run(source, switch="", checks="0") == "passed\n"


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


def test_checks_asked_for_after_the_parts_are_loaded_say_what_to_do(run):
    error = run("ef.check_shapes('demo_package')", switch="", fails=True)
    assert error.splitlines()[-1] == (
        "RuntimeError: `check_shapes` must run before demo_package is loaded; demo_package, "
        "demo_package.parts already is. Call it directly after `import eqxformer`, before anything "
        "else of it is used or imported, or start Python with "
        "EQXFORMER_CHECKS=eqxformer,demo_package."
    )


def test_asking_twice_is_the_same_as_asking_once(run):
    source = """
    ef.check_shapes()
    ef.check_shapes("demo_package")
    hooks = [f for f in sys.meta_path if type(f).__module__ == "eqxformer.checks._hook"]
    assert len(hooks) == 1 and p.product.__wrapped__.__name__ == "product"
    assert not hasattr(p.product.__wrapped__, "__wrapped__")
    print("passed")
    """
    assert run(source) == "passed\n"


def test_a_name_that_is_no_package_is_refused(run):
    error = run("", switch="ef.check_shapes('my package')", fails=True)
    assert "must be a name such as `mypackage`; got 'my package'." in error
