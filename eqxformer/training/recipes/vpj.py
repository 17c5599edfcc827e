"""The experiment of vpj/jax_transformer: a character model that shows its progress every epoch."""

import numpy as np

from eqxformer.blocks import Block, pre_norm
from eqxformer.data.tokenizer import Tokenizer
from eqxformer.data.windows import Epochs
from eqxformer.layers import MLP, Attention, Embedding, LearnedPositions, Normal, Zeros
from eqxformer.losses.tokens import NextToken
from eqxformer.models import DecoderLM, InputEmbedding, LinearHead
from eqxformer.optimizers.optimizer import AdamW, ClipByValue
from eqxformer.training.recipes.language_model import TextExperiment, language_model

EPOCHS = 32


def experiment(tokenizer: Tokenizer, tokens: np.ndarray) -> TextExperiment:
    """Its sizes; positions learned from zeros, embeddings scaled by `1 / sqrt(dim)`, pre-norm."""
    windows = Epochs(length=32, batch=128)
    block = Block.Config(
        attention=Attention.Config(heads=8),
        feed_forward=MLP.Config(hidden=512, activation="relu"),
        attention_residual=pre_norm(),
        feed_forward_residual=pre_norm(),
    )
    model = DecoderLM.Config(
        vocab=tokenizer.vocab,
        dim=128,
        embedding=InputEmbedding.Config(
            tokens=Embedding.Config(init=Normal(1.0)),
            scale="1/sqrt(dim)",
            positions=LearnedPositions.Config(length=windows.length, init=Zeros()),
        ),
        blocks=(block,) * 3,
        head=LinearHead.Config(),
    )
    epoch = max(1, windows.steps(tokens, 1))
    return TextExperiment(
        model=model,
        optimizer=AdamW(1e-3, weight_decay=0.0, clip=ClipByValue(1.0)),
        data=windows,
        loss=NextToken(),
        steps=max(1, windows.steps(tokens, EPOCHS)),
        validate_every=epoch,
        sample_every=epoch,
        prompt="It ",
    )


recipe = language_model(
    "vpj",
    "vpj's character model: 32 epochs, with a sample after each.",
    experiment,
)
