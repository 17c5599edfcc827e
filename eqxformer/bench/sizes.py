"""The sizes that are measured: small decoders that people know, and two of 124 million weights."""

from typing import Any, NamedTuple

SIZES = ("vpj", "nano", "baby", "gpt2", "llama")


class Size(NamedTuple):
    """A model's config, and the usual sequences of a batch and tokens of a sequence."""

    config: Any
    batch: int
    seq: int


def size(name: str) -> Size:
    """The size of this name.

    `vpj` is what tutorials train, `nano` and `baby` are the character models of nanoGPT for a CPU
    and for a GPU, `gpt2` is GPT-2 with 124 million weights, and `llama` is as wide and deep, of
    Llama's parts, with the same vocabulary and a tied head.

    Raises `ValueError` for another name.

    Example:
        >>> from eqxformer.bench.sizes import size
        >>> baby = size("baby")
        >>> baby.config.dim, len(baby.config.blocks), baby.batch, baby.seq
        (384, 6, 16, 256)
    """
    from eqxformer.models.families import gpt, llama
    from eqxformer.models.heads import TiedHead

    if name == "vpj":
        return Size(gpt(vocab=65, dim=128, layers=3, heads=8, context=32), 128, 32)
    if name == "nano":
        return Size(gpt(vocab=65, dim=128, layers=4, heads=4, context=64), 12, 64)
    if name == "baby":
        return Size(gpt(vocab=65, dim=384, layers=6, heads=6, context=256), 16, 256)
    if name == "gpt2":
        return Size(gpt(vocab=50_257, dim=768, layers=12, heads=12, context=1024), 8, 1024)
    if name == "llama":
        config = llama(vocab=50_257, dim=768, layers=12, heads=12, hidden=2048)
        return Size(config.edit(head=TiedHead.Config()), 8, 1024)
    raise ValueError(f"There is no size `{name}`; the sizes are {', '.join(SIZES)}.")
