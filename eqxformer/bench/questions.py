"""What is asked of a model: a training step, a pass, a prompt, a token, attention alone.

`prepare` makes a question ready to be repeated, with the work that one call has to do at the least.
As a program it is a candidate of the harness, which reads what it is asked in its first line:

    python -m eqxformer.bench.questions <<< '{"question": "train", "config": {...}, ...}'
"""

import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from eqxformer.bench import ceilings, harness

# A question, what its time is the time of, and the ceiling that it meets.
QUESTIONS = {
    "train": ("step", "product"),
    "forward": ("pass", "product"),
    "prefill": ("prompt", "product"),
    "decode": ("token", "read"),
    "attention": ("call", "product"),
}
NEW = 64  # tokens that `decode` makes at most
LEAST_SECONDS = 0.05  # of a repetition, which calls as often as that takes


class Setting(NamedTuple):
    """What is asked of which model.

    Arguments:
        config: of a `DecoderLM`.
        batch: sequences.
        seq: tokens of a sequence. `decode` begins behind half of them.
        dtype: of weights and activations.
    """

    config: Any
    batch: int
    seq: int
    dtype: str = "float32"

    def check(self) -> None:
        """Raises `ValueError` for what cannot be measured."""
        from eqxformer.generation.state import positions_of
        from eqxformer.models.decoder_lm import DecoderLM

        if not isinstance(self.config, DecoderLM.Config):
            kind = type(self.config).__qualname__.removesuffix(".Config")
            raise ValueError(f"Only a DecoderLM is measured; this is of type {kind}.")
        if not self.config.blocks:
            raise ValueError("The model has no blocks; there is nothing to measure.")
        if self.batch < 1:
            raise ValueError(f"`batch` must be at least 1; got {self.batch}.")
        if self.seq < 4:
            raise ValueError(f"`seq` must be at least 4; got {self.seq}.")
        room = positions_of(self.config)
        if room is not None and self.seq > room:
            raise ValueError(f"`seq` must be at most the model's {room} positions; got {self.seq}.")


def askable(setting: Setting) -> tuple[str, ...]:
    """The questions that a model can be asked: of latent attention, nothing is measured alone."""
    from eqxformer.layers.attention import Attention

    first = getattr(setting.config.blocks[0], "attention", None)
    plain = isinstance(first, Attention.Config)
    return tuple(question for question in QUESTIONS if question != "attention" or plain)


class Work(NamedTuple):
    """A call, and what it does at the least.

    Arguments:
        call: starts the work and gives arrays to wait for.
        tokens: how many tokens it reads, or makes.
        parts: how many equal parts its time is given by; the steps of `decode`.
        flops: floating point operations of its matrix products; None where nobody counts them.
        read: bytes of weights and caches that it has to read; None where it depends on what the
            tokens are: which experts several rows are sent to.
    """

    call: Callable[[], Any]
    tokens: int
    parts: int = 1
    flops: float | None = None
    read: float | None = None


def prepare(question: str, setting: Setting) -> Work:
    """A question made ready for a setting, with random weights and tokens.

    Raises `ValueError` for a setting or a question that there is not.

    Example:
        >>> import eqxformer as ef
        >>> from eqxformer.bench.questions import Setting, prepare
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=1, heads=2, context=8)
        >>> work = prepare("forward", Setting(config, batch=2, seq=8))
        >>> work.call().shape, work.tokens
        ((2, 8, 65), 16)
    """
    if question not in QUESTIONS:
        raise ValueError(
            f"There is no question `{question}`; the questions are {', '.join(QUESTIONS)}."
        )
    setting.check()
    _check_memory(question, setting)
    return _PREPARED[question](setting)


def _train(setting: Setting) -> Work:
    """Steps of AdamW with clipping, each from the state that the one before has left."""
    import jax

    from eqxformer.data.batches import TokenBatch
    from eqxformer.losses.tokens import next_token_loss
    from eqxformer.optimizers.optimizer import AdamW, ClipByNorm
    from eqxformer.training.state import TrainState
    from eqxformer.training.step import make_step

    optimizer = AdamW(1e-4, clip=ClipByNorm(1.0)).build(steps=1000)
    state = TrainState.create(_model(setting), optimizer, key=jax.random.key(1))
    batch = TokenBatch(_ids(setting, setting.seq + 1))
    step, held = make_step(next_token_loss, optimizer), [state]

    def call() -> Any:
        held[0], metrics = step(held[0], batch)
        return metrics["loss"]

    flops = _forward_flops(setting)
    return Work(call, setting.batch * setting.seq, flops=None if flops is None else 3 * flops)


def _forward(setting: Setting) -> Work:
    """Logits of every token."""
    import equinox as eqx

    model, ids = _model(setting), _ids(setting, setting.seq)
    run = eqx.filter_jit(lambda model, ids: model(ids))
    return Work(lambda: run(model, ids), ids.size, flops=_forward_flops(setting))


def _prefill(setting: Setting) -> Work:
    """Prompts read into a new cache; only a prompt's last token gets logits."""
    import numpy as np

    from eqxformer.generation.prefill import prefill

    model, ids = _model(setting), np.asarray(_ids(setting, setting.seq))
    flops = _forward_flops(setting)
    if flops is not None:
        flops -= ceilings.head_flops(setting.config) * setting.batch * (setting.seq - 1)
    return Work(lambda: prefill(model, ids, slots=setting.seq).logits, ids.size, flops=flops)


def _decode(setting: Setting) -> Work:
    """Greedy tokens behind prompts that have been read; the first of them needs no pass."""
    import numpy as np

    from eqxformer.generation.decode import decode
    from eqxformer.generation.prefill import prefill

    begin = setting.seq // 2
    new = min(NEW, setting.seq - begin)
    model, ids = _model(setting), np.asarray(_ids(setting, begin))
    state = prefill(model, ids, slots=begin + new)
    passes = new - 1
    weights, cache = _weight_bytes(setting), _cache_bytes(setting, begin + new // 2)
    return Work(
        lambda: decode(model, state, max_new_tokens=new).seen.tokens,
        setting.batch * passes,
        parts=passes,
        read=None if weights is None else passes * (weights + cache),
    )


def _attention(setting: Setting) -> Work:
    """What one layer's attention does between its projections, forward and backward."""
    import jax

    from eqxformer.layers.dot_product import attend
    from eqxformer.layers.masks import Causal, Window
    from eqxformer.layers.plain_attention import Scoring

    part = setting.config.blocks[0].attention
    if "attention" not in askable(setting):
        raise ValueError(f"only `Attention` is measured alone; the model has `{part.type_name}`.")
    head = part.head_dim or setting.config.dim // part.heads
    value, kv_heads = part.value_dim or head, part.kv_heads or part.heads
    shapes = [(part.heads, head), (kv_heads, head), (kv_heads, value)]
    arrays = tuple(
        jax.random.normal(jax.random.key(i), (setting.batch, heads, setting.seq, size)).astype(
            setting.dtype
        )
        for i, (heads, size) in enumerate(shapes)
    )
    before = setting.seq - 1
    if part.window is not None:
        before = part.window[0] if isinstance(part.window, tuple) else part.window - 1
    mask = Causal() if part.window is None else Causal() & Window(before, 0)
    scale = head**-0.5 if part.scale is None else part.scale
    scoring = Scoring(scale=scale, softcap=part.softcap)

    def total(arrays: Any) -> Any:
        out = attend(*arrays, scoring=scoring, mask=mask, backend=part.backend)
        return out.astype("float32").sum()

    run = jax.jit(jax.value_and_grad(total))
    pairs = sum(min(place, before) + 1 for place in range(setting.seq))
    flops = 3 * 2.0 * setting.batch * part.heads * (head + value) * pairs
    return Work(lambda: run(arrays), setting.batch * setting.seq, flops=flops)


_PREPARED: dict[str, Callable[[Setting], Work]] = {
    "train": _train,
    "forward": _forward,
    "prefill": _prefill,
    "decode": _decode,
    "attention": _attention,
}


def _model(setting: Setting) -> Any:
    import equinox as eqx
    import jax

    model = setting.config.build(key=jax.random.key(0))
    return jax.tree.map(
        lambda leaf: leaf.astype(setting.dtype) if eqx.is_inexact_array(leaf) else leaf, model
    )


def _ids(setting: Setting, seq: int) -> Any:
    import jax

    shape = (setting.batch, seq)
    return jax.random.randint(jax.random.key(2), shape, 0, setting.config.vocab)


def _forward_flops(setting: Setting) -> float | None:
    """Operations of a pass; None for parts whose operations nobody counts."""
    try:
        return ceilings.step_flops(setting.config, setting.batch, setting.seq) / 3
    except NotImplementedError:
        return None


def _weight_bytes(setting: Setting) -> float | None:
    """Bytes of the weights that a step of decoding reads; None where nobody knows.

    Of tables, they are those that also make the logits; of experts, those that a row is sent to.
    Several rows may be sent to the same ones or not.
    """
    import jax

    from eqxformer.checkpoints.names import named_arrays
    from eqxformer.checkpoints.rebuild import shapes
    from eqxformer.config import paths
    from eqxformer.models.heads import TiedHead

    config = setting.config
    skeleton = shapes(config)
    idle = _idle(skeleton)
    if idle and setting.batch > 1:
        return None
    looked_up = tuple(f"embedding.{table}." for table in ("tokens", "positions", "types"))
    arrays = named_arrays(skeleton).items()
    numbers = sum(math.prod(a.shape) for n, a in arrays if not n.startswith(looked_up)) - idle
    if any(isinstance(each, TiedHead.Config) for each in paths(config.head).values()):
        numbers += config.vocab * (config.embedding.width or config.dim)
    return float(numbers * jax.numpy.dtype(setting.dtype).itemsize)


def _idle(skeleton: Any) -> int:
    """The numbers of the experts that a token is not sent to."""
    import jax

    from eqxformer.inspect.table import count
    from eqxformer.layers.experts import Experts

    parts = jax.tree.leaves(skeleton, is_leaf=lambda part: isinstance(part, Experts))
    several = [part for part in parts if isinstance(part, Experts)]
    return sum(
        count(each.experts) * (each.config.count - each.config.top) // each.config.count
        for each in several
    )


def _cache_bytes(setting: Setting, slots: int) -> float:
    """Bytes of the keys and values of so many tokens a row; of no more than a window has."""
    import equinox as eqx
    import jax

    from eqxformer.checkpoints.rebuild import shapes

    cache = eqx.filter_eval_shape(
        lambda model: model.init_cache((setting.batch,), slots), shapes(setting.config)
    )
    floats = [
        a for a in jax.tree.leaves(cache) if jax.numpy.issubdtype(a.dtype, jax.numpy.floating)
    ]
    return float(sum(a.size for a in floats) * jax.numpy.dtype(setting.dtype).itemsize)


def _check_memory(question: str, setting: Setting) -> None:
    """Raises `ValueError` where what must be held at once is more than there is memory."""
    import jax

    from eqxformer.checkpoints.rebuild import shapes
    from eqxformer.inspect.table import count, size
    from eqxformer.training.accumulation import few_rows

    config, tokens = setting.config, setting.batch * setting.seq
    if question == "attention":
        numbers = 6 * tokens * config.dim  # queries, keys, values and their gradients
    elif question == "train":
        rows = setting.batch
        if jax.default_backend() == "cpu":
            rows = few_rows(rows, setting.seq, count(shapes(config))) or rows
        numbers = ceilings.step_numbers(config, rows * setting.seq) + tokens  # and their ids
    else:
        rows = tokens if question == "forward" else setting.batch
        numbers = count(shapes(config)) + rows * config.vocab
    needed = numbers * jax.numpy.dtype(setting.dtype).itemsize
    there = ceilings.memory()
    if there is not None and needed > there:
        raise ValueError(
            f"it needs at least {size(needed)}, and there is memory of {size(there)}. "
            "Make the model, `batch` or `seq` smaller."
        )


def repeated(work: Work) -> tuple[Callable[[], None], int]:
    """A repetition that is long enough to be timed, and how many calls it makes."""
    import jax

    return harness.repeated(work.call, least=LEAST_SECONDS, wait=jax.block_until_ready)


def serve(asked: Mapping[str, Any]) -> None:
    """Is the candidate for what is asked, and says what one repetition of it does."""
    import jax

    import eqxformer.models  # noqa: F401  (the types of configs are known once they are imported)
    from eqxformer.config import Config

    if asked["device"] == "gpu" and jax.default_backend() != "gpu":
        raise ValueError(
            f"JAX finds no GPU, only {jax.devices()[0].device_kind}. On a machine with an NVIDIA "
            "GPU run: pip install 'eqxformer[cuda]'; else leave --device gpu away."
        )
    setting = Setting(
        Config.from_dict(asked["config"]), asked["batch"], asked["seq"], asked["dtype"]
    )
    work = prepare(asked["question"], setting)
    repeat, calls = repeated(work)
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    harness.serve(
        repeat,
        parts=calls * work.parts,
        tokens=calls * work.tokens,
        flops=None if work.flops is None else calls * work.flops,
        read=None if work.read is None else calls * work.read,
        peak_memory_bytes=memory,
        machine=harness.machine(),
    )


def main() -> None:
    """Serves what the first line asks for; says in one line why it cannot."""
    try:
        serve(json.loads(sys.stdin.readline()))
    except Exception as error:
        # The parent shows one line, whatever it is: a wrong size, or no memory left on the device.
        message = " ".join(str(error).split()) or type(error).__name__
        print("failed", json.dumps(message), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
