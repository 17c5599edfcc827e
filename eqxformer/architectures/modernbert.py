"""ModernBERT: Llama that looks both ways, with layer norms, and near tokens only in most layers."""

import functools
from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import with_head, without_head
from eqxformer.architectures._encoders import encoder, linear_of, masked, pooled, tokens
from eqxformer.architectures._layer_types import FULL, SLIDING, describe_windows, layer_types
from eqxformer.checkpoints.rope import describe_rotary, rotary
from eqxformer.checkpoints.rules import fused, same, turned, under
from eqxformer.checkpoints.settings import THEIR_ACTIVATIONS, Settings
from eqxformer.layers.norms import LayerNorm
from eqxformer.models.encoder import Encoder
from eqxformer.models.heads import MaskedLMHead
from eqxformer.models.label_heads import Pooling, SequenceHead

WORDS = {"hidden_act": "hidden_activation", "rms_norm_eps": "norm_eps"}
TAKEN = {"cls": "first", "mean": "mean"}


def config(settings: Settings) -> Encoder.Config:
    """The config tree of a ModernBERT without a head."""
    settings.skip("decoder_bias", "classifier_pooling", "classifier_bias", "classifier_activation")
    settings.skip("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad")
    settings.skip("sparse_prediction", "sparse_pred_ignore_index", "initializer_cutoff_factor")
    settings.skip("position_embedding_type", "layer_norm_eps")  # no longer of any use
    settings.synonyms(**WORDS)
    settings.suppose(hidden_act="gelu", rms_norm_eps=1e-5)
    far = rotary(settings, layer_type=FULL, base=160_000.0, base_key="global_rope_theta")
    same_base = settings.values.get("local_rope_theta", 0.0) is None  # as version 4 read null
    base = far.base if same_base else 10_000.0
    near = rotary(settings, layer_type=SLIDING, base=base, base_key="local_rope_theta")
    side = settings.size("local_attention", 128) // 2
    tree = without_head(llama.tree_of(settings, far))
    norm = LayerNorm.Config(settings.number("rms_norm_eps"), settings.flag("norm_bias", False))
    tree = tree.edit(norm=norm, pooling=Pooling.Config(), direction="bidirectional")
    tree = tree.edit("embedding", norm=norm, dropout=settings.rate("embedding_dropout"))
    tree = tree.edit("blocks.*.*_residual", pre_norm=norm)
    tree = tree.edit("blocks.*.attention_residual", dropout=settings.rate("attention_dropout"))
    tree = tree.edit("blocks.*.feed_forward", dropout=settings.rate("mlp_dropout"))
    # What enters the first block has just been normalised.
    tree = tree.edit("blocks.0.attention_residual", pre_norm=None)
    every = settings.size("global_attn_every_n_layers", 3)
    types = [SLIDING if i % every else FULL for i in range(len(tree.blocks))]
    blocks = (
        block if kind == FULL else block.edit("attention", window=(side, side), rotary=near)
        for block, kind in zip(tree.blocks, layer_types(settings, types), strict=True)
    )
    return tree.edit(blocks=tuple(blocks))


def first(settings: Settings, tree: Encoder.Config) -> dict[str, Any]:
    """The layer that every head begins with."""
    dense = linear_of(tree).edit(bias=settings.flag("classifier_bias", False))
    return {"dense": dense, "activation": settings.activation("classifier_activation", "gelu")}


def rate(settings: Settings) -> float:
    """Dropout before labels."""
    return settings.rate("classifier_dropout")


def describe(tree: Encoder.Config) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    found, windows = llama.describe(with_head(tree)), describe_windows(tree)
    blocks: Any = tree.blocks
    norm: Any = tree.norm
    side = windows.pop("sliding_window")
    kinds = zip(windows["layer_types"], blocks, strict=True)
    for key in ("num_key_value_heads", "head_dim"):  # as many as there are heads, of one size
        del found[key]
    for key, word in WORDS.items():
        found[word] = found.pop(key)
    return {
        **found,
        **windows,
        "rope_parameters": {kind: describe_rotary(each.attention.rotary) for kind, each in kinds},
        "pad_token_id": None,  # not in a tree; the default is beyond a small vocabulary
        "norm_bias": norm.bias,
        "embedding_dropout": tree.embedding.dropout,
        "mlp_dropout": blocks[0].feed_forward.dropout,
        **({} if side is None else {"local_attention": 2 * side[0]}),
    }


def describe_head(head: Any) -> dict[str, Any]:
    """The settings of a head."""
    layer = getattr(head, "pooling", head)
    found = {
        "classifier_bias": layer.dense.bias,
        "classifier_activation": THEIR_ACTIVATIONS[layer.activation],
    }
    if isinstance(head, SequenceHead.Config):
        found["classifier_pooling"] = "mean" if layer.take == "mean" else "cls"
    if isinstance(head, MaskedLMHead.Config):
        last: Any = head.output
        found["decoder_bias"] = getattr(last, "linear", last).bias
    return found


BLOCK = (
    same("attention_residual.pre_norm", "attn_norm"),
    fused(("attention.query", "attention.key", "attention.value"), "attn.Wqkv"),
    turned("attention.out", "attn.Wo"),
    same("feed_forward_residual.pre_norm", "mlp_norm"),
    fused(("feed_forward.gate", "feed_forward.up"), "mlp.Wi"),
    turned("feed_forward.down", "mlp.Wo"),
)
RULES = (
    same("embedding.tokens", "model.embeddings.tok_embeddings"),
    same("embedding.norm", "model.embeddings.norm"),
    *under("blocks.*", "model.layers.*", *BLOCK),
    same("norm", "model.final_norm"),
)
LABELS = functools.partial(tokens, "classifier", "head.dense", "head.norm", rate=rate, first=first)

ARCHITECTURE = encoder(
    "modernbert",
    "ModernBert",
    config,
    RULES,
    {
        "ForMaskedLM": masked(
            "head.dense",
            "head.norm",
            "decoder",
            table="model.embeddings.tok_embeddings.weight",
            first=first,
            biased=lambda settings: settings.flag("decoder_bias", True),
        ),
        "ForSequenceClassification": pooled(
            "head.dense",
            "classifier",
            "head.norm",
            rate=rate,
            first=first,
            take=lambda settings: TAKEN[settings.choice("classifier_pooling", TAKEN, "cls")],
        ),
        "ForTokenClassification": LABELS(),
        "ForQuestionAnswering": LABELS(labels=lambda _: 2),
    },
    prefix="model.",
    describe=describe,
    describe_head=describe_head,
)
