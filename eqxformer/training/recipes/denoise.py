"""denoise: an encoder-decoder learns what stood in the gaps of a text, as T5 does.

Both sides are built from the same parts, with rotary positions and one table of characters; the
noise is T5's, with longer spans, since characters are shorter than T5's tokens.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from eqxformer.blocks import Block, pre_norm
from eqxformer.data.characters import Characters
from eqxformer.data.corruption import CorruptedWindows
from eqxformer.data.spans import SpanCorruption
from eqxformer.generation import generate
from eqxformer.layers import Attention, GatedMLP, Rotary
from eqxformer.losses.tokens import SequenceToSequence
from eqxformer.models import DecoderLM, Encoder, EncoderDecoder
from eqxformer.optimizers.optimizer import AdamW, ClipByNorm
from eqxformer.optimizers.schedules import WarmupCosine
from eqxformer.training.experiment import Request
from eqxformer.training.recipes.pretraining import HOLE, PretrainingExperiment, pretraining

SENTINELS = 20
SPECIAL = 2 + SENTINELS  # behind the characters: start, end, and the sentinels, the first one last


def model(vocab: int, *, dim: int, layers: int, heads: int, hidden: int) -> EncoderDecoder.Config:
    """Pre-norm blocks with rotary positions on both sides, and one table for everything."""
    block = Block.Config(
        attention=Attention.Config(heads=heads, rotary=Rotary()),
        feed_forward=GatedMLP.Config(hidden=hidden),
        attention_residual=pre_norm(),
        cross_residual=pre_norm(),
        feed_forward_residual=pre_norm(),
    )
    norm = pre_norm().pre_norm
    encoder = Encoder.Config(vocab=vocab, dim=dim, blocks=(block,) * layers, norm=norm)
    writer = block.edit(cross_attention=Attention.Config(heads=heads))
    decoder = DecoderLM.Config(vocab=vocab, dim=dim, blocks=(writer,) * layers)
    return EncoderDecoder.Config(encoder, decoder, tokens="shared")


class Gaps(CorruptedWindows):
    """Windows of a text with gaps in them."""

    corruption: SpanCorruption


class GapsExperiment(PretrainingExperiment):
    """An encoder-decoder, and a text with gaps."""

    model: EncoderDecoder.Config
    data: Gaps
    loss: SequenceToSequence


def experiment(tokenizer: Characters) -> GapsExperiment:
    """Windows of 96 characters, a quarter of them in three gaps."""
    last = tokenizer.vocab + SPECIAL - 1
    spans = SpanCorruption(
        sentinel=last,
        sentinels=SENTINELS,
        start=tokenizer.vocab,
        end=tokenizer.vocab + 1,
        density=0.25,
        mean=8.0,
    )
    return GapsExperiment(
        model=model(last + 1, dim=128, layers=2, heads=4, hidden=256),
        optimizer=AdamW(
            WarmupCosine(peak=3e-3, warmup=50),
            betas=(0.9, 0.99),
            weight_decay=0.1,
            clip=ClipByNorm(1.0),
        ),
        data=Gaps(96, batch=32, corruption=spans),
        loss=SequenceToSequence(),
        steps=600,
        validate_every=100,
        prompt="The for _ is used to iterate over the _ of a sequence",
    )


def fill(model: Any, tokenizer: Characters, experiment: GapsExperiment, request: Request) -> str:
    """The prompt with what the model writes into each gap, however long that is."""
    spans, width = experiment.data.corruption, experiment.data.length
    texts = [tokenizer.encode(piece) for piece in re.split(f"{HOLE}+", request.prompt)]
    if len(texts) - 1 > spans.sentinels:
        raise ValueError(f"A prompt may have {spans.sentinels} gaps; got {len(texts) - 1}.")
    source = np.full(width + 1, spans.fill, np.int32)
    asked = [texts[0]]
    for number, text in enumerate(texts[1:]):
        asked += [np.array([spans.sentinel - number]), text]
    ids = np.concatenate([*asked, np.array([] if spans.end is None else [spans.end], np.int32)])
    source[: len(ids)] = ids
    (written,) = generate(
        model,
        jnp.asarray(source)[None],
        valid=jnp.asarray(np.arange(len(source)) < len(ids))[None],
        start=spans.start,
        stop=() if spans.end is None else (spans.end,),
        max_new_tokens=min(request.max_new_tokens, width),
        sampler=request.sampler,
        key=jax.random.key(request.seed),
    )
    gaps = answers(np.asarray(written), spans, len(texts) - 1)
    known = [[i for i in gap if i < tokenizer.vocab] for gap in gaps]
    filled = [tokenizer.decode(ids) for ids in known]
    pieces = [tokenizer.decode(text) for text in texts]
    return pieces[0] + "".join(a + b for a, b in zip(filled, pieces[1:], strict=True))


def answers(
    written: Int[np.ndarray, " made"], spans: SpanCorruption, count: int
) -> list[list[int]]:
    """What stands behind each of the first sentinels."""
    found: list[list[int]] = [[] for _ in range(count)]
    current: list[int] = []
    for token in written.tolist():
        number = spans.sentinel - token
        if 0 <= number < spans.sentinels:
            current = found[number] if number < count else []
        elif token != spans.end:
            current.append(token)
    return found


recipe = pretraining(
    "denoise",
    "An encoder-decoder that fills gaps, of the help texts of Python or of --data FILE.",
    experiment,
    SPECIAL,
    fill,
    draws=True,
)
