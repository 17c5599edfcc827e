"""The one kernel call under all attention: `softmax(q k^T scale + bias) v`, by some backend.

Backends: `plain` is the formula in a few lines and serves everything; `xla` and `cudnn` are those
of `jax.nn.dot_product_attention`. `auto` takes cuDNN's fused kernel on a GPU where it can serve and
`plain` elsewhere. A backend that is asked for by name and cannot serve is an error that says why.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.constraints import constrain
from eqxformer.layers.masks import Causal, Mask, Window, join, of_kind, parts
from eqxformer.layers.plain_attention import Scoring, allowed_array, plain_attention
from eqxformer.layers.tapped_attention import ATTENTION_SITES, tapped_attention
from eqxformer.layers.taps import is_tapped
from eqxformer.traces import apart

Backend = Literal["auto", "plain", "xla", "cudnn"]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which backend an attention call got, why, and for which shapes.

    Arguments:
        backend: `plain`, `xla` or `cudnn`.
        reason: why that one.
        query_shape, keys_shape: `*batch heads seq head_dim`.

    Example:
        >>> import eqxformer as ef
        >>> print(ef.Choice("plain", "no GPU; this is a cpu", (1, 2, 3, 8), (1, 2, 3, 8)))
        plain: no GPU; this is a cpu (query (1, 2, 3, 8), keys (1, 2, 3, 8))
    """

    backend: str
    reason: str
    query_shape: tuple[int, ...]
    keys_shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason} (query {self.query_shape}, keys {self.keys_shape})"


def attend(
    query: Float[Array, "*batch heads seq head_dim"],
    keys: Float[Array, "*#batch kv_heads keys head_dim"],
    values: Float[Array, "*#batch kv_heads keys value_dim"],
    *,
    scoring: Scoring,
    mask: Mask | None = None,
    places: tuple[Int[Array, "*#batch seq"], Int[Array, "*#batch keys"]] | None = None,
    bias: Float[Array, "*#batch heads seq keys"] | None = None,
    backend: Backend = "auto",
    key: PRNGKeyArray | None = None,
    part: Any = None,
) -> Float[Array, "*batch heads seq value_dim"]:
    """Each query's average of the values, weighted by a softmax over the keys it may look at.

    `softmax(scores + bias) @ values` with the scores of `scoring` (Vaswani et al. 2017). A query
    that may look at nothing gets zeros. `heads` is a multiple of `kv_heads`; the keys of a group
    are shared, not copied, and so are those of an axis of the batch that has the size 1.

    Arguments:
        mask: who may look at whom; None allows everything.
        places: the places of queries and keys in their rows, for the mask; counted from 0 if None.
        bias: numbers added to the scores.
        backend: see the module.
        key: switches dropout on.
        part: the attention that asks, of which `ef.capture` and `ef.patch` may name what is made
            here.

    Raises `NotImplementedError` where a backend asked for by name cannot serve.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> x, values = 20.0 * jnp.eye(2)[None], jnp.array([[[1.0], [5.0]]])  # one head, two tokens
        >>> ef.attend(x, x, values, scoring=ef.Scoring(scale=1.0), mask=ef.Causal()).tolist()
        [[[1.0], [5.0]]]
    """
    if is_tapped(part, *ATTENTION_SITES):
        given = (scoring, mask, places, bias, key)
        return tapped_attention(partial(attend, backend=backend), part, query, keys, values, *given)
    dropping = key is not None and scoring.dropout > 0.0
    query = constrain(query, "heads", "seq", "head_dim")
    keys, values = (constrain(x, "kv_heads", "keys", "head_dim") for x in (keys, values))
    extra = bias is not None or _as_flags(mask, places, query, keys, "cudnn")[2] is not None
    choice = _choose(backend, query, keys, values, scoring, dropping, extra)
    _record(choice)
    if choice.backend == "plain":
        return plain_attention(
            query,
            keys,
            values,
            scoring=scoring,
            mask=mask,
            places=places,
            bias=bias,
            key=key if dropping else None,
        )
    return _fused(choice.backend, query, keys, values, scoring, mask, places, bias)


@contextlib.contextmanager
def backend_report() -> Iterator[list[Choice]]:
    """Collects the backend of every attention call that is traced (or run eagerly) inside.

    Example:
        >>> import equinox as eqx, eqxformer as ef, jax, jax.numpy as jnp
        >>> attention = ef.Attention(16, heads=2, key=jax.random.key(0))
        >>> with ef.backend_report() as report:
        ...     _ = eqx.filter_eval_shape(attention, jnp.ones((1, 3, 16)))
        >>> report[0].backend
        'plain'
    """
    token = _REPORT.set([])
    try:
        with apart():
            yield _REPORT.get()  # pyright: ignore[reportReturnType]
    finally:
        _REPORT.reset(token)


_REPORT: contextvars.ContextVar[list[Choice] | None] = contextvars.ContextVar(
    "report", default=None
)


def _record(choice: Choice) -> None:
    report = _REPORT.get()
    if report is not None:
        report.append(choice)


def _choose(
    backend: Backend,
    query: Array,
    keys: Array,
    values: Array,
    scoring: Scoring,
    dropping: bool,
    extra: bool,
) -> Choice:
    """The backend of a call; `extra`: whether an array is added to scores, of a mask or a bias."""
    shapes = (query.shape, keys.shape)
    if backend == "plain":
        return Choice("plain", "asked for by name", *shapes)
    fused = _why_not_fused(query, keys, values, scoring, dropping)
    cudnn = fused or _why_not_cudnn(query, keys, extra)
    if backend == "auto":
        return (
            Choice("plain", cudnn, *shapes) if cudnn else Choice("cudnn", "fused kernel", *shapes)
        )
    reason = fused if backend == "xla" else cudnn
    if reason:
        raise NotImplementedError(
            f"The attention backend `{backend}` cannot serve this call: {reason}. "
            "Use `auto`, or `plain`, which serves everything."
        )
    return Choice(backend, "asked for by name", *shapes)


def _why_not_fused(
    query: Array, keys: Array, values: Array, scoring: Scoring, dropping: bool
) -> str:
    """Why `jax.nn.dot_product_attention` cannot serve; empty where it can."""
    if scoring.softcap is not None:
        return "it has no soft-cap of scores"
    if scoring.sinks is not None:
        return "it has no sinks"
    if dropping:
        return "it has no dropout of weights"
    if not query.dtype == keys.dtype == values.dtype:
        return "it needs queries, keys and values of one type"
    if values.shape[-1] != query.shape[-1]:
        return "it needs value heads of the size of the query heads"
    return ""


def _why_not_cudnn(query: Array, keys: Array, extra: bool) -> str:
    if jax.default_backend() != "gpu":
        return f"no GPU; this is a {jax.default_backend()}"
    if "rocm" in jax.extend.backend.get_backend().platform_version.lower():
        return "cuDNN is of NVIDIA's GPUs, and this is one of AMD"
    device: Any = getattr(jax.config, "jax_default_device", None)
    if device is not None and getattr(device, "platform", device) not in ("gpu", "cuda"):
        return f"no GPU; `jax_default_device` is {device}"
    if query.dtype not in (jnp.float16, jnp.bfloat16):
        return f"cuDNN needs float16 or bfloat16, not {query.dtype}"
    if query.shape[-1] % 8 or query.shape[-1] > 128:
        return f"cuDNN needs a head size up to 128 that 8 divides, not {query.shape[-1]}"
    if query.shape[-2] < 2:
        return "a single query is a matrix-vector product"
    lengths = (query.shape[-2], keys.shape[-2])
    if extra and any(length % 2 for length in lengths):
        # Its gradient refuses these, and whether one will be asked for is not known here.
        return f"cuDNN needs even lengths with a mask or bias of this kind, not {lengths}"
    return ""


def _fused(
    backend: str,
    query: Array,
    keys: Array,
    values: Array,
    scoring: Scoring,
    mask: Mask | None,
    places: tuple[Array, Array] | None,
    bias: Array | None,
) -> Array:
    """`jax.nn.dot_product_attention`, which wants [batch, seq, heads, head_dim]."""
    *batch, heads, seq, _ = query.shape
    count, length = int(np.prod(batch, dtype=int)), keys.shape[-2]

    def rows(x: Array) -> Array:
        each = jnp.broadcast_to(x, (*batch, *x.shape[-3:]))
        return jnp.swapaxes(each.reshape(count, *x.shape[-3:]), 1, 2)

    def spread(x: Array, at: int) -> Array:
        return jnp.broadcast_to(x, (*batch, at, seq, length)).reshape(count, at, seq, length)

    causal, window, rest = _as_flags(mask, places, query, keys, backend)
    allowed = allowed_array(rest, places, seq, length)
    # JAX's kernel does not keep to the strict modes that a user may have switched on (nor does its
    # gradient in `xla`, which is traced later: that backend needs the standard promotion).
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        out = jax.nn.dot_product_attention(
            rows(query),
            rows(keys),
            rows(values),
            bias=None if bias is None else spread(bias, heads).astype(query.dtype),
            mask=None if allowed is None else spread(allowed, heads),
            scale=scoring.scale,
            is_causal=causal,
            local_window_size=window,
            implementation="cudnn" if backend == "cudnn" else "xla",
        )
    out = jnp.swapaxes(out, 1, 2).reshape(query.shape)
    if allowed is None:
        return out
    every = allowed_array(mask, places, seq, length)  # a query that sees nothing gets zeros
    return out * jnp.broadcast_to(every.any(-1, keepdims=True), out.shape).astype(out.dtype)  # pyright: ignore[reportOptionalMemberAccess]


def _as_flags(
    mask: Mask | None,
    places: tuple[Array, Array] | None,
    query: Array,
    keys: Array,
    backend: str,
) -> tuple[bool, tuple[int, int] | None, Mask | None]:
    """Causality and windows as arguments of the kernel, which skips what they hide; and the rest.

    cuDNN knows windows to the left only, below a causal mask.
    """
    found = parts(mask)
    if places is not None or query.shape[-2] != keys.shape[-2]:
        return False, None, mask
    causal = bool(of_kind(mask, Causal))
    windows = of_kind(mask, Window)
    window = (min(w.left for w in windows), min(w.right for w in windows)) if windows else None
    if backend == "cudnn" and window is not None:
        causal = causal or window[1] == 0
        if not causal:
            return False, None, mask
    rest = tuple(p for p in found if not (of_kind(p, Causal) or of_kind(p, Window)))
    return causal, window, join(rest)
