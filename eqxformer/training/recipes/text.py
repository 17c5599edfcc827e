"""The default of `eqxformer train`: a language model in two minutes on two cores."""

import numpy as np

from eqxformer.data.tokenizer import Tokenizer
from eqxformer.data.windows import RandomWindows
from eqxformer.losses.tokens import NextToken
from eqxformer.models import families
from eqxformer.optimizers.optimizer import AdamW, ClipByNorm
from eqxformer.optimizers.schedules import WarmupCosine
from eqxformer.training.recipes.language_model import TextExperiment, language_model


def experiment(tokenizer: Tokenizer, tokens: np.ndarray) -> TextExperiment:
    """A small Llama and a learning rate that makes the most of few steps."""
    return TextExperiment(
        model=families.llama(vocab=tokenizer.vocab, dim=128, layers=4, heads=4, hidden=344),
        optimizer=AdamW(
            WarmupCosine(peak=2e-3, warmup=100),
            betas=(0.9, 0.99),
            weight_decay=0.1,
            clip=ClipByNorm(1.0),
        ),
        data=RandomWindows(length=64, batch=12),
        loss=NextToken(),
        steps=1600,
        validate_every=200,
        prompt="The ",
    )


recipe = language_model(
    "text",
    "A character-level language model on the help texts of Python, or on --data FILE.",
    experiment,
)
