"""nanoGPT's baby GPT: 10 million parameters over the characters of Shakespeare (Karpathy 2022).

The original reports a best validation loss of 1.4697 on tinyshakespeare, after some three minutes
on an A100; on two cores of a CPU its 5,000 steps take hours. Model, data, steps and optimizer are
its own. It overfits long before the end: the directory `best` of a run has the model to keep.
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
    length = 256
    model = families.gpt(
        vocab=tokenizer.vocab,
        dim=384,
        layers=6,
        heads=6,
        context=length,
        bias=False,
        dropout=0.2,
    )
    return TextExperiment(
        model=model.edit("blocks.*.feed_forward", activation="gelu"),
        optimizer=AdamW(
            WarmupCosine(peak=1e-3, warmup=100, final=1e-4),
            betas=(0.9, 0.99),
            weight_decay=0.1,
            clip=ClipByNorm(1.0),
        ),
        data=RandomWindows(length=length, batch=64),
        loss=NextToken(),
        steps=5000,
        validate_every=250,
        prompt="ROMEO:",
    )


recipe = language_model(
    "shakespeare",
    "nanoGPT's baby GPT for a GPU; meant for --data tinyshakespeare.txt.",
    experiment,
)
