"""The axis words: one vocabulary for shapes in signatures, parameter tables and sharding rules.

A parameter's axes are written once, in the annotation of its field, as in
`weight: Float[Array, "vocab dim"]`. A part that is used in several places (a `Linear`, a norm) has
words of its own, and whoever holds it says what they mean there:
`query: Annotated[Linear, Axes(in_dim="dim", out_dim="heads*head_dim")]`. Where that depends on its
config, its method `field_axes` says it, given the field's name; None is what the annotation says.
"""

import dataclasses
import functools
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import equinox as eqx

GLOSSARY: dict[str, str] = {
    "batch": "independent sequences; any number of leading axes",
    "seq": "tokens of a sequence, on the side of the queries",
    "keys": "tokens that are looked at, on the side of the keys and values",
    "dim": "width of the residual stream",
    "width": "width of the token table, where it is not that of the residual stream",
    "frames": "steps in time of what an audio encoder hears",
    "bins": "numbers per frame, such as the bands of a mel spectrogram",
    "kernel": "neighbouring places that a convolution sees at once",
    "source_dim": "width of what cross-attention looks at",
    "heads": "query heads",
    "kv_heads": "key and value heads; equal to heads or a divisor of it",
    "head_dim": "size of a query or key head",
    "value_dim": "size of a value head; head_dim unless it is said otherwise",
    "latent": "width of what keys and values are made from in latent attention",
    "query_latent": "width of what queries are made from in latent attention",
    "rotary_dim": "numbers of a head that are rotated, in latent attention",
    "plain_dim": "numbers of a head that are not rotated, in latent attention",
    "hidden": "inner width of a feed-forward",
    "experts": "feed-forwards of a mixture",
    "vocab": "token ids",
    "types": "token types (segments) of an encoder",
    "positions": "rows of a table of positions",
    "buckets": "distances of a relative position bias",
    "labels": "classes of a classification head",
    "slots": "places for tokens in a cache",
    "layers": "equal blocks stacked for a scan",
    "rank": "inner width of an adapter beside a linear map",
}
COPIES = ("layers", "experts")  # words that, in front, only count copies of an array


@dataclasses.dataclass(frozen=True)
class Axes:
    """What a child's own axis words mean in its parent; stands inside `Annotated`.

    `stacked` names an axis that the parent adds in front of every leaf of the child.

    Example:
        >>> from typing import Annotated
        >>> import equinox as eqx, eqxformer as ef, jax
        >>> class Reader(eqx.Module):
        ...     project: Annotated[ef.Linear, ef.Axes(in_dim="dim", out_dim="vocab")]
        >>> ef.leaf_axes(Reader(ef.Linear(4, 9, key=jax.random.key(0))))["project.weight"]
        ('dim', 'vocab')
    """

    words: dict[str, str] = dataclasses.field(default_factory=dict)
    stacked: str | None = None

    def __init__(self, *, stacked: str | None = None, **words: str) -> None:
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "stacked", stacked)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.words.items())), self.stacked))


def leaf_axes(model: Any) -> dict[str, tuple[str, ...]]:
    """The axis words of every array of a model, by the array's path.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax
        >>> mlp = ef.MLP(8, hidden=16, key=jax.random.key(0))
        >>> ef.leaf_axes(mlp)["up.weight"]
        ('dim', 'hidden')
    """
    return {found.path: found.words for found in _walk(model, "", {}, (), {})}


def leaf_counts(model: Any) -> dict[str, dict[str, int]]:
    """How many of a word there are, by array and word, where its part says so by `axis_counts`.

    So the axis `heads*head_dim` can be told to be of four heads, each of which must stay whole.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax
        >>> from eqxformer.axes import leaf_counts
        >>> attention = ef.Attention(8, heads=4, kv_heads=2, key=jax.random.key(0))
        >>> leaf_counts(attention)["query.weight"]
        {'heads': 4, 'kv_heads': 2}
    """
    return {found.path: found.counts for found in _walk(model, "", {}, (), {})}


def leaf_copies(model: Any) -> dict[str, int]:
    """How many axes in front of every array only count copies of it, by the array's path.

    Those are stacked layers, the experts of a mixture, and the heads of a norm that has gains for
    each: such gains are vectors, though their array has two axes.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax
        >>> from eqxformer.axes import leaf_copies
        >>> norm = {"qk_norm": ef.RMSNorm.Config(), "qk_norm_over": "each_head"}
        >>> attention = ef.Attention(8, heads=4, **norm, key=jax.random.key(0))
        >>> copies = leaf_copies(attention)
        >>> copies["query.weight"], copies["query_norm.weight"]
        (0, 1)
    """
    return {found.path: found.copies for found in _walk(model, "", {}, (), {})}


def leading_copies(words: Sequence[str]) -> int:
    """How many words in front are of `COPIES`."""
    return next((i for i, word in enumerate(words) if word not in COPIES), len(words))


def field_words(cls: type) -> dict[str, tuple[str, ...]]:
    """The axis words in the annotations of a class's own array fields, by field name."""
    words = {name: _array_words(hint) for name, hint in _hints(cls).items()}
    return {name: found for name, found in words.items() if found is not None}


class _Leaf(NamedTuple):
    """The words of an array, how many there are of them, and how many in front count copies."""

    path: str
    words: tuple[str, ...]
    counts: dict[str, int]
    copies: int


def _walk(
    node: Any,
    path: str,
    words: dict[str, str],
    front: tuple[str, ...],
    counts: dict[str, int],
) -> Iterator[_Leaf]:
    if isinstance(node, eqx.Module):
        own = field_words(type(node))
        counts = {**counts, **getattr(node, "axis_counts", dict)()}
        for name, hint in _hints(type(node)).items():
            child, inner = getattr(node, name, None), f"{path}.{name}" if path else name
            if name in own:
                if child is not None:
                    meant = tuple(words.get(w, w) for w in own[name])
                    # Of an array with one word that may count copies, it is what the array is of.
                    inside = leading_copies(meant)
                    copies = len(front) + (inside if inside < len(meant) else 0)
                    yield _Leaf(inner, front + meant, counts, copies)
                continue
            spoken = getattr(node, "field_axes", lambda _: None)(name)
            axes = _axes_of(hint) if spoken is None else spoken
            renamed = {k: words.get(v, v) for k, v in axes.words.items()}
            more = front + ((axes.stacked,) if axes.stacked else ())
            leading = getattr(node, "leading_axes", None)
            if leading is None or not isinstance(child, tuple):
                yield from _walk(child, inner, {**words, **renamed}, more, counts)
                continue
            for i, (part, extra) in enumerate(zip(child, leading(name), strict=True)):
                below = f"{inner}.{i}"
                yield from _walk(part, below, {**words, **renamed}, more + extra, counts)
    elif isinstance(node, (tuple, list, dict)):
        children = node.items() if isinstance(node, dict) else enumerate(node)
        for name, child in children:
            yield from _walk(child, f"{path}.{name}" if path else str(name), words, front, counts)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls) if not f.metadata.get("static", False)}
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: hint for name, hint in hints.items() if name in names}


def _axes_of(hint: Any) -> Axes:
    if get_origin(hint) is Annotated:
        return next((m for m in get_args(hint)[1:] if isinstance(m, Axes)), Axes())
    return next((_axes_of(h) for h in get_args(hint) if _axes_of(h) != Axes()), Axes())


def _array_words(hint: Any) -> tuple[str, ...] | None:
    """The words of `Float[Array, "a b"]`, also when it is optional; None for what is no array."""
    dims = getattr(hint, "dim_str", None)
    if isinstance(dims, str):
        return tuple(dims.split())
    return next((w for w in map(_array_words, get_args(hint)) if w is not None), None)
