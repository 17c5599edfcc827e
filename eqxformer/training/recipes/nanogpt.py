"""nanoGPT's recipe for a CPU: a small GPT over characters (Karpathy 2022).

On tinyshakespeare the original reports a validation loss of about 1.88 after 2,000 iterations, an
estimate from 20 random batches. Sizes, data and steps here are its own, and so is the optimizer
but for the peak of the learning rate: 2e-3 reaches 1.82 over the whole validation text, the
original's 1e-3 reaches 1.91 (the same model and settings in PyTorch: 1.90).
"""

import numpy as np

from eqxformer.data.tokenizer import Tokenizer
from eqxformer.data.windows import RandomWindows
from eqxformer.losses.tokens import NextToken
from eqxformer.models import families
from eqxformer.optimizers.optimizer import AdamW, ClipByNorm
from eqxformer.optimizers.schedules import WarmupCosine
from eqxformer.training.recipes.language_model import TextExperiment, language_model


def experiment(tokenizer: Tokenizer, tokens: np.ndarray) -> TextExperiment:
    """The sizes of the original; exact GELU and no biases, as it has by default."""
    length = 64
    model = families.gpt(
        vocab=tokenizer.vocab, dim=128, layers=4, heads=4, context=length, bias=False
    )
    return TextExperiment(
        model=model.edit("blocks.*.feed_forward", activation="gelu"),
        optimizer=AdamW(
            WarmupCosine(peak=2e-3, warmup=100, final=1e-4),
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
