"""Encoder-decoder references."""

from typing import Any

import torch

from tests.parity.live import VOCAB, Case

T5 = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "d_kv": 6,
    "d_ff": 64,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 6,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 9,
    "layer_norm_epsilon": 1e-5,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
BART = {
    "vocab_size": VOCAB,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 72,
    "max_position_embeddings": 16,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 1,
}
WHISPER = {
    **{k: v for k, v in BART.items() if k != "max_position_embeddings"},
    "num_mel_bins": 20,
    "max_source_positions": 12,
    "max_target_positions": 16,
    "begin_suppress_tokens": None,
}
SHALLOW = {**BART, "encoder_layers": 1}
LONG = {"max_position_embeddings": 512}  # what a model built here is said to have
LABELS = {"num_labels": 3, "classifier_dropout": 0.1}
ENDED = {"bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 5}  # other than padding
BIAS = ("final_logits_bias",)


def with_head(model: Any) -> None:
    """An output of its own, which version 5 makes only where a file has one."""
    model.lm_head.weight = torch.nn.Parameter(torch.randn(model.lm_head.weight.shape))
    del model.all_tied_weights_keys["lm_head.weight"]


def with_trained_waves(model: Any) -> None:
    """The sinusoids of an audio encoder are stored, and ours is a table like any other."""
    model.get_encoder().embed_positions.requires_grad_(True)


SEQ2SEQ = {
    "t5": Case("T5ForConditionalGeneration", T5),
    "t5-gated": Case(
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        prepare=with_head,
    ),
    "t5-bare": Case("T5Model", T5, golden=False),
    "t5-encoder": Case("T5EncoderModel", T5, golden=False),
    "mt5": Case("MT5ForConditionalGeneration", {**T5, "num_decoder_layers": 1}, prepare=with_head),
    "t5-sequence": Case(
        "T5ForSequenceClassification", {**T5, **LABELS, "decoder_start_token_id": 5}, golden=False
    ),
    "t5-tokens": Case("T5ForTokenClassification", {**T5, **LABELS}, golden=False),
    "t5-questions": Case("T5ForQuestionAnswering", T5, golden=False),
    "mt5-sequence": Case(
        "MT5ForSequenceClassification", {**T5, **LABELS, "num_decoder_layers": 1}, golden=False
    ),
    "umt5-sequence": Case("UMT5ForSequenceClassification", {**T5, **LABELS}, golden=False),
    "umt5-tokens": Case("UMT5ForTokenClassification", {**T5, **LABELS}, golden=False),
    "umt5": Case("UMT5ForConditionalGeneration", T5),
    "bart": Case("BartForConditionalGeneration", BART, places="all", buffers=BIAS),
    "bart-bare": Case("BartModel", {**BART, "scale_embedding": True}, places="all", golden=False),
    "bart-untied": Case(
        "BartForConditionalGeneration",
        BART,
        places="all",
        buffers=BIAS,
        prepare=with_head,
        golden=False,
    ),
    "bart-sequence": Case(
        "BartForSequenceClassification", {**SHALLOW, **ENDED, **LABELS}, places="all"
    ),
    "bart-questions": Case(
        "BartForQuestionAnswering", {**SHALLOW, **ENDED}, places="all", golden=False
    ),
    "mbart-sequence": Case(
        "MBartForSequenceClassification", {**SHALLOW, **ENDED, **LABELS}, places="all", golden=False
    ),
    "mbart": Case(
        "MBartForConditionalGeneration",
        {**SHALLOW, "scale_embedding": True},
        places="all",
        buffers=BIAS,
    ),
    "marian": Case(
        "MarianMTModel",
        {**SHALLOW, **LONG, "scale_embedding": True, "activation_function": "swish"},
        places="all",
        buffers=BIAS,
    ),
    "marian-separate": Case(
        "MarianMTModel",
        {
            **SHALLOW,
            **LONG,
            "vocab_size": VOCAB + 3,
            "decoder_vocab_size": VOCAB,
            "share_encoder_decoder_embeddings": False,
        },
        places="all",
        buffers=BIAS,
        golden=False,
    ),
    "pegasus": Case(
        "PegasusForConditionalGeneration",
        {**SHALLOW, **LONG, "scale_embedding": True, "activation_function": "relu"},
        places="all",
        buffers=BIAS,
    ),
    "m2m_100": Case("M2M100ForConditionalGeneration", SHALLOW, places="own"),
    "whisper": Case(
        "WhisperForConditionalGeneration", WHISPER, places="all", prepare=with_trained_waves
    ),
    "whisper-bare": Case(
        "WhisperModel", WHISPER, places="all", prepare=with_trained_waves, golden=False
    ),
}
