"""CamemBERT: RoBERTa in French, the same but for its name."""

from eqxformer.architectures import bert, roberta
from eqxformer.architectures._encoders import encoder

ARCHITECTURE = encoder(
    "camembert",
    "Camembert",
    roberta.config,
    bert.rules("roberta"),
    roberta.HEADS,
    prefix="roberta.",
    describe=roberta.describe,
)
