"""Blocks that differ by the type of their layer: those with a window, those that see everything."""

from typing import Any, TypeVar

from eqxformer.checkpoints.settings import Settings

FULL, SLIDING = "full_attention", "sliding_attention"
Tree = TypeVar("Tree", bound=Any)


def layer_types(settings: Settings, default: list[str]) -> list[str]:
    """The type of every layer: what `layer_types` says, else `default`."""
    types = settings.items("layer_types", default)
    if len(types) != len(default) or not {*map(str, types)} <= {FULL, SLIDING}:
        expected = f"{len(default)} times {FULL} or {SLIDING}"
        raise settings.wrong("layer_types", expected, types)
    return list(types)


def later_windows(settings: Settings, layers: int) -> tuple[list[str], int | None]:
    """Qwen's rule: a window, if it is used at all, in the layers from `max_window_layers` on."""
    window = settings.maybe("sliding_window", 4096)
    first = settings.size("max_window_layers", 28, least=0)
    if not settings.flag("use_sliding_window", False):
        window = None
    later = [SLIDING if window is not None and i >= first else FULL for i in range(layers)]
    return layer_types(settings, later), window


def windowed(tree: Tree, types: list[str], window: int | None) -> Tree:
    """The tree with a window in the attention of every layer of the sliding type."""
    if window is None:
        return tree
    blocks = tuple(
        block.edit("attention", window=window) if each == SLIDING else block
        for block, each in zip(tree.blocks, types, strict=True)
    )
    return tree.edit(blocks=blocks)


def windowed_throughout(settings: Settings, tree: Tree, *, absent: int | None = None) -> Tree:
    """The tree with the window of `sliding_window` in every layer; `absent` if there is no key."""
    window = settings.maybe("sliding_window", absent)
    return tree if window is None else tree.edit("blocks.*.attention", window=window)


def describe_windows(tree: Any) -> dict[str, Any]:
    """The window of a tree's layers and the type of each."""
    windows = [block.attention.window for block in tree.blocks]
    window = next((each for each in windows if each is not None), None)
    types = [FULL if each is None else SLIDING for each in windows]
    return {"sliding_window": window, "layer_types": types}


def describe_later_windows(tree: Any) -> dict[str, Any]:
    """The same, in the words of `later_windows`."""
    found = describe_windows(tree)
    return {**found, "use_sliding_window": found["sliding_window"] is not None}
