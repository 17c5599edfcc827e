"""PEGASUS: mBART with sinusoids and no norm of the embedding."""

from eqxformer.architectures import bart, mbart
from eqxformer.architectures._seq2seq import seq2seq, sinusoids, waves
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.encoder_decoder import EncoderDecoder


def config(settings: Settings) -> EncoderDecoder.Config:
    """mBART's tree with computed positions, which files hold nevertheless."""
    return mbart.config(settings).edit("*.embedding", norm=None, positions=sinusoids(settings))


ARCHITECTURE = seq2seq(
    "pegasus",
    "Pegasus",
    config,
    bart.RULES,
    prefix="model.",
    ignored=bart.IGNORED,
    describe=bart.describe,
    computed=waves,
)
