"""mBART: BART with pre-norm, a norm after the last block, and embeddings times `sqrt(dim)`."""

from eqxformer.architectures import bart
from eqxformer.architectures._seq2seq import Labelled, one_table, seq2seq
from eqxformer.blocks.residual import pre_norm
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.linear import Linear
from eqxformer.layers.norms import LayerNorm
from eqxformer.models.encoder_decoder import EncoderDecoder


def config(settings: Settings) -> EncoderDecoder.Config:
    """BART's tree with its norms moved."""
    return one_table(settings, pre_normed(bart.sides(settings)), Linear.Config())


def pre_normed(tree: EncoderDecoder.Config) -> EncoderDecoder.Config:
    """The tree with a norm before every part, and one after the last block of either side."""
    wiring = pre_norm(dropout=tree.encoder.embedding.dropout)
    return tree.edit("*", norm=LayerNorm.Config()).edit(
        "*.blocks.*",
        attention_residual=wiring,
        cross_residual=wiring,
        feed_forward_residual=wiring,
    )


ARCHITECTURE = seq2seq(
    "mbart",
    "MBart",
    config,
    bart.RULES,
    prefix="model.",
    labelled=Labelled(start="last", end=2, prefix="model."),
    ignored=bart.IGNORED,
    describe=bart.describe,
)
