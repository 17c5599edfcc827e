"""A `config.json` of transformers 5 in the words of version 4."""

from typing import Any

# What version 4 called the base of a type of layers, by model_type, and of all layers elsewhere.
BASES = {
    "gemma3_text": {"full_attention": "rope_theta", "sliding_attention": "rope_local_base_freq"},
    "modernbert": {
        "full_attention": "global_rope_theta",
        "sliding_attention": "local_rope_theta",
    },
    "gpt_neox": {"": "rotary_emb_base"},
}
FRACTIONS = {"gpt_neox": "rotary_pct"}


def in_old_words(values: dict[str, Any]) -> dict[str, Any]:
    """The same settings as version 4 wrote them."""
    old = dict(values)
    if "dtype" in old:
        old["torch_dtype"] = old.pop("dtype")
    rope = old.pop("rope_parameters", None)
    if rope is None:
        return old
    bases = BASES.get(old["model_type"], {"": "rope_theta"})
    for layer_type, key in bases.items():
        given = dict(rope[layer_type]) if layer_type else dict(rope)
        old[key] = given.pop("rope_theta")
        if "partial_rotary_factor" in given:
            fraction = FRACTIONS.get(old["model_type"], "partial_rotary_factor")
            old[fraction] = given.pop("partial_rotary_factor")
        if given.get("rope_type", "default") != "default":
            old["rope_scaling"] = given
    return old
