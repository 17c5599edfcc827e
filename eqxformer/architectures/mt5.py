"""mT5: T5 1.1 in many languages, whose logits are never scaled."""

from eqxformer.architectures import t5
from eqxformer.architectures._seq2seq import seq2seq
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.encoder_decoder import EncoderDecoder


def config(settings: Settings) -> EncoderDecoder.Config:
    """T5's tree with a gated GELU where nothing else is said, and plain logits."""
    return t5.config(settings, proj="gated-gelu").edit("decoder.head", scale=1.0)


ARCHITECTURE = seq2seq(
    "mt5",
    "MT5",
    config,
    t5.rules,
    encoder="EncoderModel",
    labelled=t5.LABELLED,
    ignored=t5.IGNORED,
    describe=t5.describe,
)
