"""The default of `eqxformer train`: a language model in two minutes on two cores."""

import numpy as np

from eqxformer.models import families
from eqxformer.training.characters import Characters
from eqxformer.training.loss import NextToken
from eqxformer.training.optimizer import AdamW, ClipByNorm
from eqxformer.training.recipes.language_model import TextExperiment, language_model
from eqxformer.training.schedules import WarmupCosine
from eqxformer.training.windows import RandomWindows


def experiment(tokenizer: Characters, tokens: np.ndarray) -> TextExperiment:
    """A small GPT, with a learning rate that two minutes are enough for."""
    length = 64
    return TextExperiment(
        model=families.gpt(
            vocab=tokenizer.vocab, dim=128, layers=4, heads=4, context=length, bias=False
        ),
        optimizer=AdamW(
            WarmupCosine(peak=3e-3, warmup=100), betas=(0.9, 0.99), clip=ClipByNorm(1.0)
        ),
        data=RandomWindows(length=length, batch=12),
        loss=NextToken(),
        steps=2000,
        validate_every=250,
        prompt="The ",
    )


recipe = language_model(
    "text",
    "A character-level language model on the help texts of Python, or on --data FILE.",
    experiment,
)
