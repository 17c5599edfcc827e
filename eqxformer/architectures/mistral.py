"""Mistral: Llama with a window in every layer, or in none."""

from eqxformer.architectures import llama
from eqxformer.architectures._decoders import decoder, derived
from eqxformer.architectures._layer_types import windowed_throughout
from eqxformer.checkpoints.rope import rotary
from eqxformer.checkpoints.settings import Settings
from eqxformer.models.decoder_lm import DecoderLM


def config(settings: Settings) -> DecoderLM.Config:
    """Llama's tree without biases; `sliding_window` may be null, for none."""
    settings.suppose(num_key_value_heads=8)
    settings.only("attention_bias", False)
    settings.only("mlp_bias", False)
    settings.skip("max_sequence_length")  # of some old files
    tree = llama.tree_of(settings, rotary(settings))
    return windowed_throughout(settings, tree, absent=4096)


describe = derived(
    llama.describe,
    *("attention_bias", "mlp_bias"),
    sliding_window=lambda tree: tree.blocks[0].attention.window,
)

ARCHITECTURE = decoder(
    "mistral", "Mistral", config, llama.RULES, questions="model.", describe=describe
)
