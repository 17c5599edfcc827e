"""mT5: T5 1.1 in many languages, whose logits are never scaled."""

from eqxformer.architectures import t5
from eqxformer.architectures._seq2seq import seq2seq
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.encoder_decoder import EncoderDecoder

# Version 5 says of every one that its head is tied, and by nothing else whether that was meant.
OWN_HEAD = {"tie_word_embeddings": (False, True)}


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
    own_head=OWN_HEAD,
    ignored=t5.IGNORED,
    describe=t5.describe,
)
