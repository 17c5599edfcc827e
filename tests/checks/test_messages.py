"""What a `ShapeError` says: the place, the axis, expected and got, and who fixed it."""

import json
import textwrap

import pytest

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
