"""MPNet: RoBERTa without token types, with T5's position bias of the attention scores."""

from eqxformer.architectures import bert, roberta
from eqxformer.architectures._decoders import derived
from eqxformer.architectures._encoders import (
    QUESTIONS,
    body_dropout,
    encoder,
    masked,
    pooled,
    tokens,
)
from eqxformer.checkpoints.rules import same, turned, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.biases import RelativeBias
from eqxformer.models.encoder import Encoder

_PADDING = 1  # whatever the settings say


def config(settings: Settings) -> Encoder.Config:
    """BERT's tree without types; the bias always has 32 buckets, up to a distance of 128."""
    settings.only("relative_attention_num_buckets", 32)
    settings.skip("type_vocab_size", "pad_token_id")
    tree = roberta.shifted(bert.config(settings, pooler="mpnet.pooler.dense"), _PADDING)
    init = tree.embedding.tokens.init
    return tree.edit("embedding", types=None).edit(bias=RelativeBias.Config(32, 128, init=init))


BLOCK = (
    turned("attention.query", "attention.attn.q"),
    turned("attention.key", "attention.attn.k"),
    turned("attention.value", "attention.attn.v"),
    turned("attention.out", "attention.attn.o"),
    same("attention_residual.out_norm", "attention.LayerNorm"),
)
RULES = (
    *bert.rules("mpnet"),
    *under("blocks.*", "mpnet.encoder.layer.*", *BLOCK),
    same("bias", "mpnet.encoder.relative_attention_bias"),
)

ARCHITECTURE = encoder(
    "mpnet",
    "MPNet",
    config,
    RULES,
    {
        "ForMaskedLM": masked(
            "lm_head.dense",
            "lm_head.layer_norm",
            "lm_head.decoder",
            bias="lm_head.bias",
            table="mpnet.embeddings.word_embeddings.weight",
        ),
        "ForSequenceClassification": pooled(
            "classifier.dense", "classifier.out_proj", rate=body_dropout, dropped="twice"
        ),
        "ForTokenClassification": tokens(rate=body_dropout),
        "ForQuestionAnswering": QUESTIONS,
    },
    prefix="mpnet.",
    describe=derived(bert.describe, max_position_embeddings=roberta.rows),
)
