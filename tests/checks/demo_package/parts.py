"""A small model with one mistake to order, and functions of every kind."""

import contextlib
import dataclasses
import functools
import typing
from typing import Annotated, Literal, NamedTuple

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
    yield from range(stop)


def arrays(x: Float[Array, "n m"]) -> typing.Iterator[Float[Array, " m"]]:
    yield from x


@contextlib.contextmanager
def scope(name: str) -> typing.Iterator[str]:
    yield name


async def waited(x: int) -> int:
    return x


def later(x: "Late", y: "NotThere" = None) -> list["Late"]:
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
