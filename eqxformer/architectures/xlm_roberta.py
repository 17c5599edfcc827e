"""XLM-RoBERTa: RoBERTa in many languages, the same but for its name."""

from eqxformer.architectures import bert, roberta
from eqxformer.architectures._encoders import encoder

ARCHITECTURE = encoder(
    "xlm-roberta",
    "XLMRoberta",
    roberta.config,
    bert.rules("roberta"),
    roberta.HEADS,
    prefix="roberta.",
    describe=roberta.describe,
)
