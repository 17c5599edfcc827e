"""UMT5: mT5 with a relative bias in every block."""

from eqxformer.architectures import t5
from eqxformer.architectures._seq2seq import seq2seq
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.encoder_decoder import EncoderDecoder


def config(settings: Settings) -> EncoderDecoder.Config:
    """T5's tree with the bias of each side moved into its blocks."""
    tree = t5.config(settings, proj="gated-gelu")
    for side in ("encoder", "decoder"):
        bias = getattr(tree, side).bias
        tree = tree.edit(f"{side}.blocks.*.attention", bias=bias).edit(side, bias=None)
    return tree


ARCHITECTURE = seq2seq(
    "umt5",
    "UMT5",
    config,
    t5.rules,
    encoder="EncoderModel",
    labelled=t5.LABELLED,
    own_head=t5.OWN_HEAD,
    ignored=t5.IGNORED,
    describe=t5.describe,
)
