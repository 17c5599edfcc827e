"""nanoGPT's recipe for a CPU: a small GPT over characters (Karpathy 2022).

On tinyshakespeare the original reports a validation loss of 1.88 after 2,000 iterations.
"""

import numpy as np

from eqxformer.models import families
from eqxformer.training.characters import Characters
from eqxformer.training.loss import NextToken
from eqxformer.training.optimizer import AdamW, ClipByNorm
from eqxformer.training.recipes.language_model import TextExperiment, language_model
from eqxformer.training.schedules import WarmupCosine
from eqxformer.training.windows import RandomWindows


def experiment(tokenizer: Characters, tokens: np.ndarray) -> TextExperiment:
    """The sizes and settings of the original; exact GELU and no biases, as it has by default."""
    length = 64
    model = families.gpt(
        vocab=tokenizer.vocab, dim=128, layers=4, heads=4, context=length, bias=False
    )
    return TextExperiment(
        model=model.edit("blocks.*.feed_forward", activation="gelu"),
        optimizer=AdamW(
            WarmupCosine(peak=1e-3, warmup=100, final=1e-4),
            betas=(0.9, 0.99),
            weight_decay=0.1,
            clip=ClipByNorm(1.0),
        ),
        data=RandomWindows(length=length, batch=12),
        loss=NextToken(),
        steps=2000,
        validate_every=250,
        prompt="ROMEO:",
    )


recipe = language_model(
    "nanogpt",
    "nanoGPT's small GPT for a CPU; meant for --data tinyshakespeare.txt.",
    experiment,
)
