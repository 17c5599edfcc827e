"""What this machine can do at most, and how much of it a model asks for.

The ceilings are measured, not read from a data sheet: a large matrix product, a large copy and a
large read are candidates like any other, asked in turn with those whose share of them is wanted.

    found = harness.compare({**ours, **ceilings.commands()}, repetitions=15)
    most = ceilings.take(found)
    share = flops / found["eqxformer"]["median"] / most["product"]["per_second"]
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from eqxformer.bench import harness

Way = Callable[[], Any]
KINDS = ("product", "copy", "read")
UNITS = {"product": "floating point operations", "copy": "bytes", "read": "bytes"}
# A repetition takes tens of milliseconds: one call on a CPU, many that queue up elsewhere.
CPU_PRODUCT_SIZE, PRODUCT_SIZE = 3072, 8192  # rows and columns
PRODUCTS, PASSES = 20, 50
# Larger than any cache: what fits into a large one is read at twice the speed of memory or more.
MEMORY_SIZE = 16_384  # rows and columns of a float32 matrix of a gigabyte


def commands(kinds: Sequence[str] = KINDS, *, dtype: str = "float32") -> dict[str, list[str]]:
    """The candidates that measure ceilings, to be put beside others in `harness.compare`.

    Arguments:
        kinds: `product`, operations per second of a large matrix product; `copy`, bytes read and
            written per second when a gigabyte changes; `read`, bytes read per second in the
            product of a matrix and a vector, which is what decoding does.
        dtype: that of the matrix product.
    """
    module = ["-m", "eqxformer.bench.ceilings"]
    return {_name(kind): [*module, kind, "--dtype", dtype] for kind in kinds}


def take(found: MutableMapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Takes the ceilings out of what `harness.compare` found: each with its rate `per_second`."""
    measured = {kind: found.pop(_name(kind)) for kind in KINDS if _name(kind) in found}
    return {
        kind: {**facts, "unit": UNITS[kind], "per_second": facts["work"] / facts["median"]}
        for kind, facts in measured.items()
    }


def line(most: Mapping[str, Mapping[str, Any]]) -> str:
    """The ceilings in a line: `ceilings: product 412.0 GFLOP/s, copy 21.3 GB/s`."""
    rates = [
        f"{kind} {facts['per_second'] / 1e9:,.1f} G{'FLOP' if kind == 'product' else 'B'}/s"
        for kind, facts in most.items()
    ]
    return "ceilings: " + ", ".join(rates)


def _name(kind: str) -> str:
    return f"ceiling: {kind}"


def step_flops(config: Any, batch: int, seq: int, *, source: int = 0) -> float:
    """Floating point operations of a training step's matrix products: three times the forward's.

    A product of `[n, a]` and `[a, b]` takes `2 n a b`, and each of its two gradients as much: `6 n`
    per weight (Kaplan et al. 2020, section 2.1), with the output projection and without the lookup
    of embeddings, but with what makes a narrow table as wide as the model. Attention takes `4 h d`
    per query and key for `h` heads of size `d` (Chowdhery et al. 2022, appendix B). They count all
    pairs; here those after the query are left out, since nobody needs them: `t (t + 1) / 2` are
    left. What is computed again in the backward pass does not count, nor do norms, activations,
    softmax and the optimizer.

    Arguments:
        config: of a `DecoderLM` or an `EncoderDecoder`; without windows and experts, which raise
            `NotImplementedError`.
        batch: sequences of a step.
        seq: tokens that the decoder reads of each.
        source: tokens that the encoder reads of each.

    Example:
        >>> import eqxformer as ef
        >>> from eqxformer.bench import ceilings
        >>> config = ef.families.gpt(vocab=50257, dim=768, layers=12, heads=12, context=1024)
        >>> f"{ceilings.step_flops(config, batch=1, seq=1024):.3e}"
        '8.170e+11'
    """
    from eqxformer.models.decoder_lm import DecoderLM
    from eqxformer.models.encoder_decoder import EncoderDecoder

    causal = seq * (seq + 1) / 2
    if isinstance(config, DecoderLM.Config):
        return 3.0 * batch * (_blocks(config, seq, causal) + seq * head_flops(config))
    if not isinstance(config, EncoderDecoder.Config):
        raise NotImplementedError(
            f"`config` must be that of a DecoderLM or an EncoderDecoder; got {_type(config)}."
        )
    reader, writer = config.encoder, config.decoder
    total = _blocks(reader, source, source * source)
    total += _blocks(writer, seq, causal, source, reader.dim) + seq * head_flops(writer)
    return 3.0 * batch * total


def head_flops(config: Any) -> float:
    """Floating point operations of the logits of one token, given the config of a `DecoderLM`."""
    width = config.embedding.width or config.dim
    return 2.0 * _head(config.head, config.dim, width, config.vocab)


def _head(config: Any, dim: int, width: int, vocab: int) -> int:
    """The numbers of a head's matrices, with the token table of this width where it is one."""
    from eqxformer.models.heads import MaskedLMHead, TiedHead

    if isinstance(config, MaskedLMHead.Config):
        return dim * width + _head(config.output, width, width, vocab)
    if isinstance(config, TiedHead.Config):
        return width * vocab + (0 if config.project is None else dim * width)
    return dim * vocab


def _blocks(config: Any, seq: int, pairs: float, source: int = 0, source_dim: int = 0) -> float:
    """The forward pass of one sequence through all blocks, and to their width."""
    width = getattr(getattr(config, "embedding", None), "width", None) or 0  # audio has no tokens
    blocks = (_block(block, config.dim, seq, pairs, source, source_dim) for block in config.blocks)
    return 2 * seq * width * config.dim + sum(blocks)


def _block(
    config: Any, dim: int, seq: int, pairs: float, source: int = 0, source_dim: int = 0
) -> float:
    from eqxformer.layers.attention import Attention
    from eqxformer.layers.feed_forward import MLP, GatedMLP

    attention, hidden = (getattr(config, name, None) for name in ("attention", "feed_forward"))
    window = getattr(attention, "window", None)
    known = isinstance(attention, Attention.Config) and window is None
    if not known or not isinstance(hidden, MLP.Config | GatedMLP.Config):
        raise NotImplementedError(
            "Operations are counted for `Attention` without a window, `MLP` and `GatedMLP`; got "
            f"{f'window={window}' if window else _type(attention)} and {_type(hidden)}."
        )
    matrices = 3 if isinstance(hidden, GatedMLP.Config) else 2
    total = _attention(attention, dim, dim, seq, seq, pairs)
    cross = getattr(config, "cross_attention", None)  # which a parallel block has no place for
    if cross is not None:
        total += _attention(cross, dim, source_dim, seq, source, seq * source)
    return total + 2 * seq * matrices * dim * hidden.hidden


def _type(config: Any) -> str:
    return type(config).__qualname__.removesuffix(".Config")


def _attention(config: Any, dim: int, source_dim: int, seq: int, keys: int, pairs: float) -> float:
    """The four projections, scores, and the weighted sum of values."""
    head = config.head_dim or dim // config.heads
    value = config.value_dim or head
    own = config.heads * (head + value)
    others = (config.kv_heads or config.heads) * (head + value)
    return 2 * seq * dim * own + 2 * keys * source_dim * others + 2 * pairs * own


def step_bytes(config: Any, *, dtype: str = "float32") -> int:
    """Bytes that a training step with Adam cannot but move: ten numbers per weight.

    A weight is read in the forward and in the backward pass, its gradient is written and read, and
    the update reads and writes the weight and its two moments. Activations are left out, since how
    often they are moved is up to the program.

    Example:
        >>> import eqxformer as ef
        >>> from eqxformer.bench import ceilings
        >>> config = ef.families.gpt(vocab=50257, dim=768, layers=12, heads=12, context=1024)
        >>> f"{ceilings.step_bytes(config):,}"
        '4,977,592,320'
    """
    import jax.numpy as jnp

    from eqxformer.checkpoints.rebuild import shapes
    from eqxformer.inspect.table import count

    return 10 * jnp.dtype(dtype).itemsize * count(shapes(config))


def step_numbers(config: Any, tokens: int) -> int:
    """Numbers that a training step with Adam, clipped, cannot but hold at once with these tokens.

    Of every weight, itself and two moments; and, one after the other, what the backward pass needs
    and all gradients. The former is of every token that a decoder reads what comes out of each of
    its blocks, and the logits, as far as the losses make them at once: more come a chunk at a time.

    Example:
        >>> import eqxformer as ef
        >>> from eqxformer.bench import ceilings
        >>> config = ef.families.gpt(vocab=65, dim=128, layers=3, heads=8, context=32)
        >>> ceilings.step_numbers(config, tokens=4096) - 3 * ef.count(ef.shapes(config))
        1839104
    """
    from eqxformer.checkpoints.rebuild import shapes
    from eqxformer.inspect.table import count
    from eqxformer.losses.chunked import LARGE

    writer = getattr(config, "decoder", getattr(config, "encoder", config))
    logits = min(tokens * writer.vocab, LARGE)
    weights, waiting = count(shapes(config)), tokens * writer.dim * len(writer.blocks) + logits
    return 3 * weights + max(weights, waiting)


def memory() -> int | None:
    """The bytes of the first device, or of the machine; None where nobody says."""
    import jax

    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is not None:
        return limit
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Is the candidate for one ceiling."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--size", type=int, help="rows and columns, instead of the usual ones")
    options = parser.parse_args(arguments)
    if options.kind == "product":
        ways, work = _products(options.size, options.dtype)
    else:
        ways, work = {"copy": _copies, "read": _reads}[options.kind](options.size or MEMORY_SIZE)
    name = min(ways, key=lambda name: _seconds(ways[name]))
    harness.serve(ways[name], work=work, way=name)


def _seconds(way: Way) -> float:
    """The best of three calls after a first."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        way()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _products(size: int | None, dtype: str) -> tuple[dict[str, Way], float]:
    """Products of square matrices: XLA's, and NumPy's, which is the faster one on some CPUs."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    cpu = jax.default_backend() == "cpu"
    size = size or (CPU_PRODUCT_SIZE if cpu else PRODUCT_SIZE)
    count = 1 if cpu else PRODUCTS
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), jnp.float32).astype(dtype)
    multiply = jax.jit(jnp.matmul)
    ways: dict[str, Way] = {
        "jax": lambda: jax.block_until_ready([multiply(a, b) for _ in range(count)][-1])
    }
    if cpu and dtype == "float32":
        left, right = np.asarray(a), np.asarray(b)
        ways["numpy"] = lambda: left @ right
    return ways, count * 2.0 * size**3


def _copies(size: int) -> tuple[dict[str, Way], float]:
    """Adding one to a matrix in its own memory, so that no pages have to be asked for."""
    import jax
    import jax.numpy as jnp

    count = 1 if jax.default_backend() == "cpu" else PASSES
    add = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    held = [jnp.zeros((size, size), jnp.float32)]

    def copy() -> None:
        for _ in range(count):
            held[0] = add(held[0])
        jax.block_until_ready(held[0])

    return {"jax": copy}, count * 2 * 4.0 * size**2


def _reads(size: int) -> tuple[dict[str, Way], float]:
    """The product of a matrix and a vector, on either side."""
    import jax
    import jax.numpy as jnp

    count = 1 if jax.default_backend() == "cpu" else PASSES
    matrix, vector = jnp.ones((size, size), jnp.float32), jnp.ones(size, jnp.float32)
    rows, columns = jax.jit(lambda m, v: v @ m), jax.jit(lambda m, v: m @ v)

    def read(product: Callable[..., Any]) -> None:
        jax.block_until_ready([product(matrix, vector) for _ in range(count)][-1])

    return {"rows": lambda: read(rows), "columns": lambda: read(columns)}, count * 4.0 * size**2


if __name__ == "__main__":
    main()
