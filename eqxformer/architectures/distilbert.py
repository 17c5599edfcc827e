"""DistilBERT: BERT without token types and without a pooler, in words of its own."""

from typing import Any

from eqxformer.architectures import bert
from eqxformer.architectures._encoders import encoder, layer, masked, pooled, tokens
from eqxformer.checkpoints.rules import same, turned, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.encoder import Encoder

# What BERT's settings are called here.
WORDS = {
    "hidden_size": "dim",
    "num_attention_heads": "n_heads",
    "num_hidden_layers": "n_layers",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}


def config(settings: Settings) -> Encoder.Config:
    """BERT's tree without types; its norms always have an epsilon of 1e-12."""
    settings.only("layer_norm_eps", 1e-12)
    settings.skip("sinusoidal_pos_embds", "tie_weights_")  # of how weights begin
    settings.skip("qa_dropout", "seq_classif_dropout")  # of heads
    settings.synonyms(**WORDS)
    return bert.config(settings, pooler="distilbert.pooler.dense").edit("embedding", types=None)


def describe(tree: Encoder.Config) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    found = {WORDS.get(key, key): value for key, value in bert.describe(tree).items()}
    del found["layer_norm_eps"]
    return found


EMBEDDING = (
    same("tokens", "word_embeddings"),
    same("positions", "position_embeddings"),
    same("norm", "LayerNorm"),
)
BLOCK = (
    turned("attention.query", "attention.q_lin"),
    turned("attention.key", "attention.k_lin"),
    turned("attention.value", "attention.v_lin"),
    turned("attention.out", "attention.out_lin"),
    same("attention_residual.out_norm", "sa_layer_norm"),
    turned("feed_forward.up", "ffn.lin1"),
    turned("feed_forward.down", "ffn.lin2"),
    same("feed_forward_residual.out_norm", "output_layer_norm"),
)
RULES = (
    *under("embedding", "distilbert.embeddings", *EMBEDDING),
    *under("blocks.*", "distilbert.transformer.layer.*", *BLOCK),
)

ARCHITECTURE = encoder(
    "distilbert",
    "DistilBert",
    config,
    RULES,
    {
        "ForMaskedLM": masked(
            "vocab_transform",
            "vocab_layer_norm",
            "vocab_projector",
            table="distilbert.embeddings.word_embeddings.weight",
            first=layer(bert.activation),
        ),
        "ForSequenceClassification": pooled(
            "pre_classifier",
            rate=lambda settings: settings.rate("seq_classif_dropout", 0.2),
            first=layer(lambda _: "relu"),
        ),
        "ForTokenClassification": tokens(),
        "ForQuestionAnswering": tokens(
            "qa_outputs", rate=lambda settings: settings.rate("qa_dropout", 0.1), labels=lambda _: 2
        ),
    },
    prefix="distilbert.",
    describe=describe,
)
