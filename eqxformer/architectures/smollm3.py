"""SmolLM3: Llama without positions in every fourth layer, and windows there if any."""

from typing import Any

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder
from eqxformer.architectures._layer_types import (
    FULL,
    SLIDING,
    describe_later_windows,
    layer_types,
    windowed,
)
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree, rotary positions taken out of the layers whose `no_rope_layers` is 0."""
    settings.suppose(num_key_value_heads=4, tie_word_embeddings=True)
    settings.skip("max_window_layers")
    tree = llama.tree_of(settings, rotary(settings, base=2e6))
    every = settings.size("no_rope_layer_interval", 4)
    usual = [int((i + 1) % every != 0) for i in range(len(tree.blocks))]
    turned = settings.items("no_rope_layers", usual)
    if len(turned) < len(usual) or not {*map(str, turned)} <= {"0", "1"}:
        raise settings.wrong("no_rope_layers", f"{len(usual)} times 0 or 1", turned)
    pairs = list(zip(tree.blocks, turned, strict=False))
    tree = tree.edit(
        blocks=tuple(b if turns else b.edit("attention", rotary=None) for b, turns in pairs)
    )
    window = settings.maybe("sliding_window")
    if not settings.flag("use_sliding_window", False):
        window = None
    types = [FULL if turns or window is None else SLIDING for _, turns in pairs]
    return windowed(tree, layer_types(settings, types), window)


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    turned = [block for block in tree.blocks if block.attention.rotary is not None]
    return {
        **llama.describe(tree.edit(blocks=(*turned[:1], *tree.blocks[1:]))),
        **describe_later_windows(tree),
        "no_rope_layers": [int(block in turned) for block in tree.blocks],
    }


ARCHITECTURE = decoder(
    "smollm3", "SmolLM3", config, llama.RULES, questions="transformer.", describe=describe
)
