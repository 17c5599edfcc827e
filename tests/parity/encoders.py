"""Encoder-only references."""

from typing import Any

from tests.parity.live import SIZES, Case

BERT = {k: v for k, v in SIZES.items() if "os_token" not in k}
LABELS = {"num_labels": 3}

# Positions from row 2 on, ids of padding in row 1; the reference counts by itself.
ROBERTA = {**BERT, "pad_token_id": 1, "type_vocab_size": 1, "max_position_embeddings": 18}

DISTILBERT = {
    "vocab_size": SIZES["vocab_size"],
    "dim": SIZES["hidden_size"],
    "hidden_dim": SIZES["intermediate_size"],
    "n_layers": SIZES["num_hidden_layers"],
    "n_heads": SIZES["num_attention_heads"],
    "max_position_embeddings": SIZES["max_position_embeddings"],
}

# Three layers, of which the second and third see three tokens on either side.
MODERNBERT = {
    **SIZES,
    "cls_token_id": 1,
    "sep_token_id": 1,
    "num_hidden_layers": 3,
    "intermediate_size": 40,
    "local_attention": 6,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 500.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    },
}
BIASES = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True)

ELECTRA = {**BERT, "embedding_size": 40}
# Five layers: three of the first group, two of the second.
ALBERT = {
    **BERT,
    "embedding_size": 40,
    "num_hidden_layers": 5,
    "num_hidden_groups": 2,
    "hidden_act": "gelu_new",
}


def counted(model: str, settings: dict[str, Any], **options: Any) -> Case:
    """A reference that finds positions by the ids of padding."""
    return Case(model, settings, places="own", **options)


ENCODERS = {
    "bert": Case("BertModel", BERT),
    "bert-masked": Case("BertForMaskedLM", {**BERT, "hidden_act": "silu"}, golden=False),
    "bert-sequence": Case("BertForSequenceClassification", {**BERT, **LABELS}, golden=False),
    "bert-token": Case("BertForTokenClassification", {**BERT, **LABELS}, golden=False),
    "bert-question": Case("BertForQuestionAnswering", BERT, golden=False),
    "roberta": counted("RobertaForMaskedLM", ROBERTA),
    "roberta-bare": counted("RobertaModel", {**ROBERTA, "type_vocab_size": 2}, golden=False),
    "roberta-sequence": counted(
        "RobertaForSequenceClassification", {**ROBERTA, **LABELS}, golden=False
    ),
    "xlm-roberta": counted("XLMRobertaModel", ROBERTA),
    "camembert": counted("CamembertForMaskedLM", ROBERTA),
    "distilbert": Case("DistilBertForMaskedLM", DISTILBERT),
    "distilbert-sequence": Case(
        "DistilBertForSequenceClassification", {**DISTILBERT, **LABELS}, golden=False
    ),
    "modernbert": Case("ModernBertForMaskedLM", MODERNBERT),
    "modernbert-biases": Case(
        "ModernBertForMaskedLM",
        {
            **MODERNBERT,
            **BIASES,
            "decoder_bias": False,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        golden=False,
    ),
    "modernbert-sequence": Case(
        "ModernBertForSequenceClassification",
        {**MODERNBERT, **LABELS, "classifier_pooling": "mean"},
        golden=False,
    ),
    "modernbert-token": Case(
        "ModernBertForTokenClassification",
        {**MODERNBERT, **LABELS, "classifier_activation": "silu"},
        golden=False,
    ),
    "mpnet": counted("MPNetForMaskedLM", ROBERTA, attention="eager"),
    "mpnet-sequence": counted(
        "MPNetForSequenceClassification", {**ROBERTA, **LABELS}, attention="eager", golden=False
    ),
    "albert": Case("AlbertForMaskedLM", ALBERT),
    "albert-bare": Case(
        "AlbertModel",
        {**ALBERT, "inner_group_num": 2, "embedding_size": BERT["hidden_size"]},
        golden=False,
    ),
    "albert-sequence": Case("AlbertForSequenceClassification", {**ALBERT, **LABELS}, golden=False),
    "electra": Case("ElectraForPreTraining", ELECTRA),
    "electra-bare": Case(
        "ElectraModel", {**ELECTRA, "embedding_size": BERT["hidden_size"]}, golden=False
    ),
    "electra-masked": Case("ElectraForMaskedLM", ELECTRA, golden=False),
    "electra-sequence": Case(
        "ElectraForSequenceClassification", {**ELECTRA, **LABELS}, golden=False
    ),
}
