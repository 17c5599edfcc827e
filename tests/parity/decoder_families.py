"""Decoder-only references: each is a config of theirs, a config of ours and a table of weights."""

from typing import Any

import torch
import transformers as hf
from jaxtyping import Array

import eqxformer as ef
from tests.parity.reference import VOCAB, Batch, Family, hidden, watched
from tests.parity.weight_rules import From, part, part_per_head, turned, under

# Narrower, XLA puts products of matrices into its loops and takes four times as long to compile.
DIM, HIDDEN = 48, 64
LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 6, 2, 12
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": DIM,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}


def their_logits(model: torch.nn.Module, batch: Batch, **more: Any) -> dict[str, torch.Tensor]:
    """Logits and what enters each block, of a decoder that counts real tokens from 0."""
    out = model(
        input_ids=batch.tokens,
        attention_mask=batch.valid.long(),
        output_hidden_states=True,
        use_cache=False,
        **more,
    )
    return {**hidden(out.hidden_states[:-1]), "logits": out.logits}


def their_placed_logits(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """The same of a decoder that must be told where each token is."""
    places = (batch.valid.long().cumsum(-1) - 1).clamp(min=0)
    return their_logits(model, batch, position_ids=places)


def our_logits(model: ef.DecoderLM, batch: Batch) -> dict[str, Array]:
    """Logits and what enters each block."""
    model, seen = watched(model, lambda m: m.blocks)
    logits = model(batch.tokens, mask=ef.Padding(batch.valid))
    return {**hidden(seen), "logits": logits}


def decoder(
    cls: Any, settings: Any, config: Any, rules: Any, *, theirs: Any = their_placed_logits
) -> Family:
    """A family of decoders."""
    return Family(lambda: cls(settings), config, rules, theirs, our_logits)


def rope(**settings: Any) -> dict[str, Any]:
    """Their settings of rotary positions."""
    return {"rope_type": "default", "rope_theta": 10_000.0, **settings}


def layer_norms(theirs: str) -> dict[str, From]:
    """The two pre-norms of a block and the last norm, where `theirs` holds the blocks."""
    return {
        "blocks.*.attention_residual.pre_norm": From(f"{theirs}.input_layernorm"),
        "blocks.*.feed_forward_residual.pre_norm": From(f"{theirs}.post_attention_layernorm"),
    }


ATTENTION = under(
    "blocks.*.attention",
    "model.layers.*.self_attn",
    {
        "query": turned("q_proj"),
        "key": turned("k_proj"),
        "value": turned("v_proj"),
        "out": turned("o_proj"),
    },
)
QK_NORM = under(
    "blocks.*.attention",
    "model.layers.*.self_attn",
    {"query_norm": From("q_norm"), "key_norm": From("k_norm")},
)
GATED = under(
    "blocks.*.feed_forward",
    "model.layers.*.mlp",
    {"gate": turned("gate_proj"), "up": turned("up_proj"), "down": turned("down_proj")},
)
TIED_ENDS = {"embedding.tokens": From("model.embed_tokens"), "norm": From("model.norm")}
ENDS = {**TIED_ENDS, "head.linear": turned("lm_head")}
PRE_NORMS = layer_norms("model.layers.*")

GPT2 = decoder(
    hf.GPT2LMHeadModel,
    hf.GPT2Config(
        vocab_size=VOCAB,
        n_positions=16,
        n_embd=DIM,
        n_layer=LAYERS,
        n_head=HEADS,
        bos_token_id=1,
        eos_token_id=1,
    ),
    ef.families.gpt(vocab=VOCAB, dim=DIM, layers=LAYERS, heads=HEADS, context=16),
    {
        "embedding.tokens": From("transformer.wte"),
        "embedding.positions": From("transformer.wpe"),
        "norm": From("transformer.ln_f"),
        **under(
            "blocks.*",
            "transformer.h.*",
            {
                "attention_residual.pre_norm": From("ln_1"),
                "attention.query": part("attn.c_attn", 0, of=3),
                "attention.key": part("attn.c_attn", 1, of=3),
                "attention.value": part("attn.c_attn", 2, of=3),
                "attention.out": From("attn.c_proj"),
                "feed_forward_residual.pre_norm": From("ln_2"),
                "feed_forward.up": From("mlp.c_fc"),
                "feed_forward.down": From("mlp.c_proj"),
            },
        ),
    },
)

LLAMA_TREE = ef.families.llama(
    vocab=VOCAB, dim=DIM, layers=LAYERS, heads=HEADS, kv_heads=KV_HEADS, hidden=HIDDEN
)
LLAMA = decoder(
    hf.LlamaForCausalLM,
    hf.LlamaConfig(
        **SIZES,
        num_key_value_heads=KV_HEADS,
        rms_norm_eps=1e-5,
        rope_parameters=rope(
            rope_type="llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    LLAMA_TREE.edit(
        "blocks.*.attention",
        rotary=ef.Rotary(scaling=ef.Llama3Scaling(factor=4.0, original_length=16)),
    ),
    {**ENDS, **ATTENTION, **GATED, **PRE_NORMS},
)

# Heads wider than dim / heads, with a norm each before they turn; eps is Qwen's own.
QWEN3_TREE = (
    LLAMA_TREE.edit("blocks.*.attention", head_dim=HEAD_DIM, qk_norm=ef.RMSNorm.Config(eps=1e-6))
    .edit("blocks.*.*_residual", pre_norm=ef.RMSNorm.Config(eps=1e-6))
    .edit(norm=ef.RMSNorm.Config(eps=1e-6))
)
QWEN3 = decoder(
    hf.Qwen3ForCausalLM,
    hf.Qwen3Config(
        **SIZES,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        rms_norm_eps=1e-6,
        rope_parameters=rope(rope_theta=500.0),
    ),
    QWEN3_TREE.edit("blocks.*.attention", rotary=ef.Rotary(base=500.0)),
    {**ENDS, **ATTENTION, **QK_NORM, **GATED, **PRE_NORMS},
)

GEMMA_NORM = ef.RMSNorm.Config(eps=1e-6, offset=1.0)
# Caps low enough to bend these small scores; windows in every other layer.
GEMMA2 = decoder(
    hf.Gemma2ForCausalLM,
    hf.Gemma2Config(
        **SIZES,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        query_pre_attn_scalar=20,
        sliding_window=4,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
        attn_implementation="eager",
        rope_parameters=rope(),
    ),
    LLAMA_TREE.edit(
        "blocks.*",
        attention_residual=ef.sandwich_norm(GEMMA_NORM),
        feed_forward_residual=ef.sandwich_norm(GEMMA_NORM),
    )
    .edit("blocks.*.attention", head_dim=HEAD_DIM, scale=20**-0.5, softcap=5.0)
    .edit("blocks.0.attention", window=4)
    .edit("blocks.*.feed_forward", activation="gelu_tanh")
    .edit("embedding", scale="sqrt(dim)")
    .edit(norm=GEMMA_NORM, head=ef.TiedHead.Config(softcap=3.0)),
    {
        **TIED_ENDS,
        **ATTENTION,
        **GATED,
        **under(
            "blocks.*",
            "model.layers.*",
            {
                "attention_residual.pre_norm": From("input_layernorm"),
                "attention_residual.post_norm": From("post_attention_layernorm"),
                "feed_forward_residual.pre_norm": From("pre_feedforward_layernorm"),
                "feed_forward_residual.post_norm": From("post_feedforward_layernorm"),
            },
        ),
    },
)

# The norms stand after the sublayers, inside the residual.
OLMO2 = decoder(
    hf.Olmo2ForCausalLM,
    hf.Olmo2Config(
        **SIZES, num_key_value_heads=KV_HEADS, rms_norm_eps=1e-5, rope_parameters=rope()
    ),
    LLAMA_TREE.edit(
        "blocks.*.*_residual", pre_norm=None, post_norm=ef.RMSNorm.Config(eps=1e-5)
    ).edit("blocks.*.attention", qk_norm=ef.RMSNorm.Config(eps=1e-5), qk_norm_over="projection"),
    {
        **ENDS,
        **ATTENTION,
        **QK_NORM,
        **GATED,
        "blocks.*.attention_residual.post_norm": From("model.layers.*.post_attention_layernorm"),
        "blocks.*.feed_forward_residual.post_norm": From(
            "model.layers.*.post_feedforward_layernorm"
        ),
    },
)


def fused(theirs: str) -> dict[str, From]:
    """Query, key and value fused within every head."""
    return {
        f"blocks.*.attention.{name}": part_per_head(theirs, i, heads=HEADS)
        for i, name in enumerate(("query", "key", "value"))
    }


GPT_NEOX = decoder(
    hf.GPTNeoXForCausalLM,
    hf.GPTNeoXConfig(**SIZES, rope_parameters=rope(partial_rotary_factor=0.5)),
    ef.DecoderLM.Config(
        vocab=VOCAB,
        dim=DIM,
        blocks=(
            ef.ParallelBlock.Config(
                attention=ef.Attention.Config(heads=HEADS, rotary=ef.Rotary(fraction=0.5)),
                feed_forward=ef.MLP.Config(hidden=HIDDEN),
                feed_forward_norm=ef.LayerNorm.Config(),
            ),
        )
        * LAYERS,
        head=ef.LinearHead.Config(),
    ),
    {
        "embedding.tokens": From("gpt_neox.embed_in"),
        "norm": From("gpt_neox.final_layer_norm"),
        "head.linear": turned("lm_head"),
        **fused("gpt_neox.layers.*.attention.query_key_value"),
        **under(
            "blocks.*",
            "gpt_neox.layers.*",
            {
                "norm": From("input_layernorm"),
                "attention.out": turned("attention.dense"),
                "feed_forward_norm": From("post_attention_layernorm"),
                "feed_forward.up": turned("mlp.dense_h_to_4h"),
                "feed_forward.down": turned("mlp.dense_4h_to_h"),
            },
        ),
    },
)

PLAIN = ef.Linear.Config(bias=False)
GPTJ = decoder(
    hf.GPTJForCausalLM,
    hf.GPTJConfig(
        vocab_size=VOCAB,
        n_positions=16,
        n_embd=DIM,
        n_layer=LAYERS,
        n_head=HEADS,
        rotary_dim=4,
        bos_token_id=1,
        eos_token_id=1,
    ),
    ef.DecoderLM.Config(
        vocab=VOCAB,
        dim=DIM,
        blocks=(
            ef.ParallelBlock.Config(
                attention=ef.Attention.Config(
                    heads=HEADS,
                    rotary=ef.Rotary(fraction=0.5, layout="interleaved"),
                    **dict.fromkeys(("query", "key", "value", "out"), PLAIN),
                ),
                feed_forward=ef.MLP.Config(hidden=4 * DIM, activation="gelu_tanh"),
            ),
        )
        * LAYERS,
        head=ef.LinearHead.Config(linear=ef.Linear.Config()),
    ),
    {
        "embedding.tokens": From("transformer.wte"),
        "norm": From("transformer.ln_f"),
        "head.linear": turned("lm_head"),
        **under(
            "blocks.*",
            "transformer.h.*",
            {
                "norm": From("ln_1"),
                "attention.query": turned("attn.q_proj"),
                "attention.key": turned("attn.k_proj"),
                "attention.value": turned("attn.v_proj"),
                "attention.out": turned("attn.out_proj"),
                "feed_forward.up": turned("mlp.fc_in"),
                "feed_forward.down": turned("mlp.fc_out"),
            },
        ),
    },
)

# Six heads: not a power of two, so that both halves of the rule for slopes are used.
BLOOM = decoder(
    hf.BloomForCausalLM,
    hf.BloomConfig(vocab_size=VOCAB, hidden_size=DIM, n_layer=LAYERS, n_head=HEADS, pad_token_id=0),
    ef.DecoderLM.Config(
        vocab=VOCAB,
        dim=DIM,
        embedding=ef.InputEmbedding.Config(norm=ef.LayerNorm.Config()),
        blocks=(
            ef.Block.Config(
                attention=ef.Attention.Config(heads=HEADS),
                feed_forward=ef.MLP.Config(hidden=4 * DIM, activation="gelu_tanh"),
            ),
        )
        * LAYERS,
        bias=ef.ALiBi.Config(),
    ),
    {
        "embedding.tokens": From("transformer.word_embeddings"),
        "embedding.norm": From("transformer.word_embeddings_layernorm"),
        "norm": From("transformer.ln_f"),
        **layer_norms("transformer.h.*"),
        **fused("transformer.h.*.self_attention.query_key_value"),
        **under(
            "blocks.*",
            "transformer.h.*",
            {
                "attention.out": turned("self_attention.dense"),
                "feed_forward.up": turned("mlp.dense_h_to_4h"),
                "feed_forward.down": turned("mlp.dense_4h_to_h"),
            },
        ),
    },
    theirs=their_logits,
)

DECODERS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "olmo2": OLMO2,
    "gpt_neox": GPT_NEOX,
    "gptj": GPTJ,
    "bloom": BLOOM,
}
