"""mlm: an encoder learns to restore characters that were hidden, as BERT does tokens.

The encoder is ModernBERT (Warner et al. 2024) but for its windows: rotary positions, norms without
biases before gated feed-forwards. Over characters it learns from its neighbours within a few
hundred steps, where BERT's learned positions take thousands.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from eqxformer.blocks import Block, pre_norm
from eqxformer.constraints import fetched
from eqxformer.data.characters import Characters
from eqxformer.data.corruption import CorruptedWindows
from eqxformer.data.masking import MaskTokens
from eqxformer.layers import Attention, GatedMLP, LayerNorm, Linear, Normal, Padding, Rotary
from eqxformer.losses.tokens import MaskedLM
from eqxformer.models import Encoder, EncoderWithHead, InputEmbedding, MaskedLMHead
from eqxformer.optimizers.optimizer import AdamW, ClipByNorm
from eqxformer.optimizers.schedules import WarmupCosine
from eqxformer.training.experiment import Request
from eqxformer.training.recipes.pretraining import HOLE, PretrainingExperiment, pretraining

SPECIAL = 1  # the mask, behind the characters


def model(vocab: int, *, dim: int, layers: int, heads: int, hidden: int) -> EncoderWithHead.Config:
    """ModernBERT without windows, and its head for masked tokens."""
    plain, norm = Linear.Config(bias=False, init=Normal(0.02)), LayerNorm.Config(bias=False)
    block = Block.Config(
        attention=Attention.Config(
            heads=heads, query=plain, key=plain, value=plain, out=plain, rotary=Rotary()
        ),
        feed_forward=GatedMLP.Config(
            hidden=hidden, activation="gelu", gate=plain, up=plain, down=plain
        ),
        attention_residual=pre_norm(norm),
        cross_residual=pre_norm(norm),
        feed_forward_residual=pre_norm(norm),
    )
    # What enters the first block has just been normalised.
    first = block.edit("attention_residual", pre_norm=None)
    encoder = Encoder.Config(
        vocab=vocab,
        dim=dim,
        embedding=InputEmbedding.Config(norm=norm),
        blocks=(first, *(block,) * (layers - 1)),
        norm=norm,
    )
    return EncoderWithHead.Config(encoder, MaskedLMHead.Config(dense=plain, norm=norm))


def experiment(tokenizer: Characters) -> PretrainingExperiment:
    """A small encoder, windows of 64 characters, and BERT's shares of what is hidden."""
    vocab = tokenizer.vocab
    return PretrainingExperiment(
        model=model(vocab + SPECIAL, dim=128, layers=3, heads=4, hidden=256),
        optimizer=AdamW(
            WarmupCosine(peak=3e-3, warmup=50),
            betas=(0.9, 0.99),
            weight_decay=0.1,
            clip=ClipByNorm(1.0),
        ),
        data=CorruptedWindows(64, batch=32, corruption=MaskTokens(mask=vocab, vocab=vocab)),
        loss=MaskedLM(),
        steps=800,
        validate_every=100,
        prompt="The f_r stat_ment is used to it_rate over the el_ments",
    )


def fill(
    model: Any, tokenizer: Characters, experiment: PretrainingExperiment, request: Request
) -> str:
    """The prompt with the likeliest character in each hole."""
    holes = np.array([letter == HOLE for letter in request.prompt])
    ids = np.full(experiment.data.length, tokenizer.vocab, np.int32)
    ids[: len(holes)][~holes] = tokenizer.encode(request.prompt.replace(HOLE, ""))
    real = np.arange(len(ids)) < len(holes)
    scores = fetched(_scores(model, jnp.asarray(ids), jnp.asarray(real)))
    likeliest = scores[: len(holes), : tokenizer.vocab].argmax(axis=-1)
    return tokenizer.decode(np.where(holes, likeliest, ids[: len(holes)]))


@eqx.filter_jit
def _scores(
    model: Any, ids: Int[Array, " seq"], real: Bool[Array, " seq"]
) -> Float[Array, "seq vocab"]:
    return model(ids, mask=Padding(real))


recipe = pretraining(
    "mlm",
    "An encoder that restores hidden characters, of the help texts of Python or --data FILE.",
    experiment,
    SPECIAL,
    fill,
    draws=False,
)
