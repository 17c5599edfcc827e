"""Decoder-only references outside Llama's family."""

from tests.parity.decoders import EXPERTS, rope
from tests.parity.live import SIZES, VOCAB, Case

GPT = {
    "vocab_size": VOCAB,
    "n_positions": 16,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}

OPT = {k: v for k, v in SIZES.items() if k != "intermediate_size"}
OPT |= {"ffn_dim": 64, "word_embed_proj_dim": 48}

GPT_NEO = {
    **{k: v for k, v in SIZES.items() if not k.startswith("num_")},
    "num_layers": 2,
    "num_heads": 6,
    "attention_types": [[["global", "local"], 1]],
    "window_size": 4,
}

BLOOM = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "n_layer": 2,
    "n_head": 6,  # no power of two, so that both halves of the rule for slopes are used
    "pad_token_id": 0,
}

FALCON = {k: v for k, v in SIZES.items() if k != "intermediate_size"}

GPT_OSS = {
    **SIZES,
    **EXPERTS,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "head_dim": 12,
    "intermediate_size": 32,
    "sliding_window": 4,
}
# A ramp that lies inside the few pairs of a small head.
YARN = rope(
    rope_type="yarn",
    factor=4.0,
    beta_fast=4.0,
    beta_slow=1.0,
    truncate=False,
    original_max_position_embeddings=64,
)

LLAMA = {**SIZES, "num_key_value_heads": 2}

MORE_DECODERS = {
    "gpt2": Case(
        "GPT2LMHeadModel",
        {**GPT, "n_inner": 64, "scale_attn_by_inverse_layer_idx": True},
    ),
    "gpt2-unscaled": Case(
        "GPT2LMHeadModel",
        {**GPT, "scale_attn_weights": False, "tie_word_embeddings": False},
        golden=False,
    ),
    "gpt2-bare": Case("GPT2Model", GPT, golden=False),
    "gpt2-sequence": Case("GPT2ForSequenceClassification", {**GPT, "num_labels": 3}, golden=False),
    "gpt2-token": Case("GPT2ForTokenClassification", {**GPT, "num_labels": 3}, golden=False),
    "gpt2-questions": Case("GPT2ForQuestionAnswering", GPT, golden=False),
    "gpt_neox": Case(
        "GPTNeoXForCausalLM",
        {**SIZES, "rope_parameters": rope(rope_theta=500.0, partial_rotary_factor=0.5)},
    ),
    "gpt_neox-sequential": Case(
        "GPTNeoXForCausalLM",
        {
            **SIZES,
            "use_parallel_residual": False,
            "attention_bias": False,
            "tie_word_embeddings": True,
        },
        golden=False,
    ),
    "gpt_neox-sequence": Case(
        "GPTNeoXForSequenceClassification", {**SIZES, "num_labels": 3}, golden=False
    ),
    "gpt_neox-token": Case(
        "GPTNeoXForTokenClassification", {**SIZES, "num_labels": 3}, golden=False
    ),
    "opt": Case("OPTForCausalLM", OPT),
    "opt-350m": Case(
        "OPTForCausalLM",
        {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 20},
        golden=False,
    ),
    "opt-plain": Case(
        "OPTForCausalLM",
        {
            **OPT,
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "tie_word_embeddings": False,
        },
        golden=False,
    ),
    "opt-sequence": Case(
        "OPTForSequenceClassification",
        {**OPT, "num_labels": 3, "_remove_final_layer_norm": True},
        golden=False,
    ),
    "opt-questions": Case("OPTForQuestionAnswering", OPT, golden=False),
    "gptj": Case("GPTJForCausalLM", {**GPT, "n_inner": 64, "rotary_dim": 4}, attention="eager"),
    "gptj-tied": Case(
        "GPTJForCausalLM",
        {**GPT, "rotary_dim": 4, "tie_word_embeddings": True},
        attention="eager",
        golden=False,
    ),
    "gpt_neo": Case("GPTNeoForCausalLM", GPT_NEO, attention="eager"),
    "gpt_neo-token": Case(
        "GPTNeoForTokenClassification",
        {
            **GPT_NEO,
            "intermediate_size": None,
            "attention_types": [[["local"], 1], [["global"], 1]],
            "num_labels": 3,
        },
        attention="eager",
        golden=False,
    ),
    "bloom": Case("BloomForCausalLM", BLOOM, attention="eager"),
    "bloom-bare": Case("BloomModel", BLOOM, attention="eager", golden=False),
    "bloom-token": Case(
        "BloomForTokenClassification", {**BLOOM, "num_labels": 3}, attention="eager", golden=False
    ),
    "phi": Case(
        "PhiForCausalLM",
        {
            **SIZES,
            "num_key_value_heads": 2,
            "qk_layernorm": True,
            "rope_parameters": rope(partial_rotary_factor=0.5),
        },
    ),
    "phi-token": Case("PhiForTokenClassification", {**SIZES, "num_labels": 3}, golden=False),
    "falcon": Case("FalconForCausalLM", {**FALCON, "rope_parameters": rope()}),
    "falcon-40b": Case(
        "FalconForCausalLM",
        {
            **FALCON,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "ffn_hidden_size": 64,
            "tie_word_embeddings": False,
        },
        golden=False,
    ),
    "falcon-11b": Case(
        "FalconForSequenceClassification",
        {
            **FALCON,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
            "num_kv_heads": 2,
            "num_labels": 3,
        },
        golden=False,
    ),
    # Twelve heads, since bfloat16 rounds some of their slopes. (Eager attention of transformers 5
    # adds the bias twice.)
    "falcon-rw": Case(
        "FalconForCausalLM",
        {
            **FALCON,
            "num_attention_heads": 12,
            "alibi": True,
            "bias": True,
            "multi_query": False,
            "parallel_attn": False,
        },
        golden=False,
    ),
    "gpt_oss": Case(
        "GptOssForCausalLM",
        {**GPT_OSS, "swiglu_limit": 1.5, "rope_parameters": YARN},
        attention="eager",
    ),
    "gpt_oss-sequence": Case(
        "GptOssForSequenceClassification",
        {**GPT_OSS, "attention_bias": False, "num_labels": 3},
        attention="eager",
        golden=False,
    ),
    "stablelm": Case(
        "StableLmForCausalLM",
        {
            **LLAMA,
            "use_qkv_bias": True,
            "qk_layernorm": True,
            "rope_parameters": rope(partial_rotary_factor=0.5),
        },
    ),
    "stablelm-12b": Case(
        "StableLmForCausalLM",
        {**LLAMA, "use_parallel_residual": True},
        golden=False,
    ),
    "cohere": Case(
        "CohereForCausalLM",
        {
            **LLAMA,
            "use_qk_norm": True,
            "attention_bias": True,
            "logit_scale": 0.25,
            "rope_parameters": rope(),
        },
    ),
    "cohere-untied": Case(
        "CohereForCausalLM", {**LLAMA, "tie_word_embeddings": False}, golden=False
    ),
    "cohere-bare": Case("CohereModel", LLAMA, golden=False),
}
