"""Decoder-only references of Llama's family."""

from typing import Any

from tests.parity.live import SIZES, Case


def rope(**settings: Any) -> dict[str, Any]:
    """Settings of rotary positions, in the words of version 5."""
    return {"rope_type": "default", "rope_theta": 10_000.0, **settings}


LLAMA = {**SIZES, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
LABELS = {**LLAMA, "num_labels": 3}
WIDE = {**LLAMA, "head_dim": 12}  # heads that are not dim / heads wide
LLAMA3 = rope(
    rope_type="llama3",
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
YARN = rope(
    rope_type="yarn",
    factor=4.0,
    beta_fast=4.0,
    beta_slow=1.0,
    original_max_position_embeddings=16,
)
LINEAR = rope(rope_type="linear", factor=3.0, rope_theta=1000.0)
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}

PLAIN = {
    "llama": Case("LlamaForCausalLM", {**LLAMA, "rope_parameters": LLAMA3}),
    "llama-tied": Case(
        "LlamaForCausalLM",
        {**LLAMA, "tie_word_embeddings": True, "rope_parameters": LINEAR},
        golden=False,
    ),
    "llama-biased": Case(
        "LlamaForCausalLM",
        {**LLAMA, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"},
        golden=False,
    ),
    "llama-bare": Case("LlamaModel", LLAMA, golden=False),
    "llama-sequence": Case("LlamaForSequenceClassification", LABELS, golden=False),
    "llama-token": Case("LlamaForTokenClassification", LABELS, golden=False),
    "llama-questions": Case("LlamaForQuestionAnswering", LLAMA, golden=False),
    "mistral": Case("MistralForCausalLM", {**WIDE, "sliding_window": 4}),
    "mistral-whole": Case("MistralForCausalLM", {**LLAMA, "sliding_window": None}, golden=False),
    "qwen2": Case("Qwen2ForCausalLM", {**LLAMA, **WINDOWS, "rope_parameters": YARN}),
    "qwen2-sequence": Case("Qwen2ForSequenceClassification", LABELS, golden=False),
    "qwen3": Case(
        "Qwen3ForCausalLM",
        {**WIDE, "attention_bias": True, "rope_parameters": rope(rope_theta=500.0)},
    ),
    "qwen3-windows": Case("Qwen3ForCausalLM", {**WIDE, **WINDOWS}, golden=False),
    "olmo": Case("OlmoForCausalLM", {**LLAMA, "clip_qkv": 0.9}),
    "olmo2": Case("Olmo2ForCausalLM", LLAMA),
    "granite": Case(
        "GraniteForCausalLM",
        {
            **LLAMA,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.25,
            "residual_multiplier": 0.4,
            "logits_scaling": 5.0,
        },
    ),
    "smollm3": Case(
        "SmolLM3ForCausalLM",
        {**LLAMA, "no_rope_layer_interval": 2, **WINDOWS, "tie_word_embeddings": False},
    ),
    "starcoder2": Case("Starcoder2ForCausalLM", {**LLAMA, "sliding_window": 4}),
    "starcoder2-unbiased": Case(
        "Starcoder2ForCausalLM",
        {**LLAMA, "use_bias": False, "tie_word_embeddings": False},
        golden=False,
    ),
}

FACTORS = {"short_factor": [1.0, 1.3], "long_factor": [2.0, 5.0]}
LONG_ROPE = rope(rope_type="longrope", partial_rotary_factor=0.5, **FACTORS)
PHI = {
    "phi3": Case(
        "Phi3ForCausalLM",
        {
            **LLAMA,
            "sliding_window": 4,
            "original_max_position_embeddings": 5,  # shorter than any row of the batch
            "rope_parameters": LONG_ROPE,
        },
    ),
    "phi3-short": Case(
        "Phi3ForCausalLM",
        {**LLAMA, "original_max_position_embeddings": 16, "rope_parameters": LONG_ROPE},
        golden=False,
    ),
}

GEMMA = {**WIDE, "num_key_value_heads": 1}
SCALAR = {"query_pre_attn_scalar": 20, "sliding_window": 4}
BOUNDS = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
FAR_AND_NEAR = {
    "full_attention": rope(rope_type="linear", factor=4.0, rope_theta=1000.0),
    "sliding_attention": rope(rope_theta=100.0),
}
GEMMA3 = {
    **WIDE,
    **SCALAR,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": FAR_AND_NEAR,
}
GEMMAS = {
    "gemma": Case("GemmaForCausalLM", GEMMA),
    "gemma2": Case("Gemma2ForCausalLM", {**WIDE, **SCALAR, **BOUNDS}, attention="eager"),
    "gemma2-unbounded": Case(
        "Gemma2ForCausalLM",
        {**WIDE, **SCALAR, **dict.fromkeys(BOUNDS), "tie_word_embeddings": False},
        attention="eager",
        golden=False,
    ),
    "gemma3_text": Case("Gemma3ForCausalLM", {**GEMMA3, "final_logit_softcapping": 3.0}),
    "gemma3_text-both-ways": Case(
        "Gemma3TextModel", {**GEMMA3, "use_bidirectional_attention": True}, golden=False
    ),
    "gemma3_text-sequence": Case(
        "Gemma3TextForSequenceClassification", {**GEMMA3, "num_labels": 3}, golden=False
    ),
}

EXPERTS = {"num_experts_per_tok": 2, "experts_implementation": "eager"}
QWEN3_MOE = {**WIDE, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 32}
MIXTURES = {
    "mixtral": Case(
        "MixtralForCausalLM",
        {
            **WIDE,
            **EXPERTS,
            "intermediate_size": 32,
            "num_local_experts": 4,
            "sliding_window": 4,
        },
    ),
    "mixtral-bare": Case(
        "MixtralModel", {**LLAMA, **EXPERTS, "num_local_experts": 3}, golden=False
    ),
    # The first layer is dense; the weights of the chosen experts do not sum to one.
    "qwen3_moe": Case("Qwen3MoeForCausalLM", {**QWEN3_MOE, "mlp_only_layers": [0]}),
    "qwen3_moe-windows": Case(
        "Qwen3MoeForCausalLM",
        {
            **QWEN3_MOE,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": 4,
        },
        golden=False,
    ),
}

# Heads of 6 + 4 numbers for keys and 8 for values; 2 of 3 groups of 2 experts.
LATENT = {
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
DEEPSEEK = {
    **LLAMA,
    "num_key_value_heads": 6,
    **EXPERTS,
    **LATENT,
    "moe_intermediate_size": 32,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "n_group": 3,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}
CORRECTION = "model.layers.1.mlp.gate.e_score_correction_bias"
LATENTS = {
    "deepseek_v3": Case(
        "DeepseekV3ForCausalLM",
        {**DEEPSEEK, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}},
        buffers=(CORRECTION,),
    ),
    "deepseek_v3-direct": Case(
        "DeepseekV3ForCausalLM",
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "attention_bias": True,
            "norm_topk_prob": False,
            "rope_interleave": False,
        },
        buffers=(CORRECTION,),
        golden=False,
    ),
}

DECODERS = {**PLAIN, **PHI, **GEMMAS, **MIXTURES, **LATENTS}
