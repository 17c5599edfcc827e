"""M2M-100 and NLLB: mBART with fairseq's sinusoids, no norm of the embedding, no bias of logits."""

from eqxformer.architectures import bart, mbart
from eqxformer.architectures._decoders import derived
from eqxformer.architectures._seq2seq import one_table, seq2seq
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.linear import Linear
from eqxformer.layers.positions import Sinusoids
from eqxformer.models.encoder_decoder import EncoderDecoder


def config(settings: Settings) -> EncoderDecoder.Config:
    """mBART's tree with other positions and other defaults; the first place is after padding's."""
    positions = Sinusoids.Config(
        layout="halves", spread="closed", offset=settings.size("pad_token_id", 1, least=0) + 1
    )
    scaled = settings.flag("scale_embedding", True)
    tree = mbart.pre_normed(bart.sides(settings)).edit(
        "*.embedding", norm=None, positions=positions, scale="sqrt(dim)" if scaled else 1.0
    )
    tree = one_table(settings, tree, Linear.Config(), bias=False)
    activation = settings.activation("activation_function", "relu")
    return tree.edit("*.blocks.*.feed_forward", activation=activation).edit(
        "*.blocks.*.*attention", dropout=settings.rate("attention_dropout", 0.1)
    )


ARCHITECTURE = seq2seq(
    "m2m_100",
    "M2M100",
    config,
    bart.RULES,
    prefix="model.",
    ignored=(*bart.IGNORED, "*.embed_positions.weights"),
    describe=derived(
        bart.describe, pad_token_id=lambda tree: tree.encoder.embedding.positions.offset - 1
    ),
)
