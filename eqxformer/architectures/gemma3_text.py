"""Gemma 3 for text: Gemma 2 with norms of queries and keys in place of bounds, 5 windows to 1.

Layers with a window turn by a base of their own. EmbeddingGemma looks ahead too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from eqxformer.architectures import gemma2, qwen3
from eqxformer.architectures._decoders import decoder
from eqxformer.architectures._layer_types import FULL, SLIDING, describe_windows, layer_types
from eqxformer.checkpoints.rope import describe_rotary, rotary
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.encoder import Encoder
from eqxformer.models.label_heads import Pooling


def config(settings: Settings) -> DecoderLM.Config:
    """Gemma 2's tree with the norms; two kinds of positions; windows in both directions or one."""
    settings.only("attn_logit_softcapping", None)
    settings.skip("_sliding_window_pattern")
    tree = gemma2.tree_of(settings, rotary(settings, layer_type=FULL, base=1e6))
    local = rotary(settings, layer_type=SLIDING, base_key="rope_local_base_freq", scaled=False)
    tree = tree.edit("blocks.*.attention", qk_norm=tree.norm)
    tree = tree.edit("head", softcap=settings.number("final_logit_softcapping", None))
    each = settings.size("sliding_window_pattern", 6)
    types = [SLIDING if (i + 1) % each else FULL for i in range(len(tree.blocks))]
    window: Any = settings.maybe("sliding_window", 4096)
    if settings.flag("use_bidirectional_attention", False) and window is not None:
        window = (window // 2, window // 2)
    blocks = tuple(
        block if kind == FULL else block.edit("attention", window=window, rotary=local)
        for block, kind in zip(tree.blocks, layer_types(settings, types), strict=True)
    )
    return tree.edit(blocks=blocks)


def directed(config: Callable[[Settings], Any]) -> Callable[[Settings], Any]:
    """The config of a body that looks ahead, and pools all tokens, where the settings say so."""

    def found(settings: Settings) -> Any:
        tree = config(settings)
        if not settings.flag("use_bidirectional_attention", False):
            return tree
        if isinstance(tree, Encoder.Config):
            return tree.edit(direction="bidirectional", pooling=Pooling.Config())
        return tree.edit("encoder", direction="bidirectional")

    return found


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    found, attentions = describe_windows(tree), [block.attention for block in tree.blocks]
    both = isinstance(found["sliding_window"], tuple)
    return {
        **gemma2.describe(tree),
        **found,
        "rope_parameters": {
            kind: describe_rotary(attention.rotary)
            for kind, attention in zip(found["layer_types"], attentions, strict=True)
        },
        "sliding_window": 2 * found["sliding_window"][0] if both else found["sliding_window"],
        "use_bidirectional_attention": both,
    }


RULES = (*gemma2.RULES, *qwen3.QK_NORM)

FOUND = decoder("gemma3_text", "Gemma3Text", config, RULES, describe=describe)
LM, BODY, SEQUENCE, _ = FOUND.tasks.values()


def one_way(settings: Settings) -> DecoderLM.Config:
    """The config of a language model, which looks back only."""
    settings.only("use_bidirectional_attention", False)
    return LM.config(settings)


ARCHITECTURE = dataclasses.replace(
    FOUND,
    tasks={
        "Gemma3ForCausalLM": dataclasses.replace(LM, config=one_way),
        "Gemma3TextModel": dataclasses.replace(BODY, config=directed(BODY.config)),
        "Gemma3TextForSequenceClassification": dataclasses.replace(
            SEQUENCE, config=directed(SEQUENCE.config)
        ),
    },
)
