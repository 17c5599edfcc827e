"""The block diagram of a config tree, as SVG: what a model is made of, bottom to top."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from eqxformer.blocks.block import Block, ParallelBlock
from eqxformer.blocks.repeated import Repeated
from eqxformer.config import Config
from eqxformer.inspect.pictures._boxes import (
    MARGIN,
    Beside,
    Box,
    Canvas,
    Column,
    Group,
    Piece,
    Residual,
)
from eqxformer.layers.linear import Linear

_LETTERS = 36  # of a line in a box
_LINES = 4
_BETWEEN = 70.0  # two sides
_UNSAID = ("layout", "origin", "init", "vocab", "dim")
_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w:.0f} {h:.0f}" width="{w:.0f}" '
    'height="{h:.0f}" font-family="Helvetica, Arial, sans-serif" stroke-width="1">\n'
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
    'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#1f2328"/></marker></defs>\n'
    '<rect width="100%" height="100%" fill="#ffffff"/>\n'
)


def diagram(config: Config) -> str:
    """The diagram of a model's config as the text of an SVG, tokens at the bottom, logits on top.

    Equal blocks are drawn once, with how often they come; so is a pattern of several, such as five
    local layers and one global. Boxes say what is not as usual in their settings. Both sides of an
    encoder-decoder stand beside each other, with the way from one to the cross-attention of the
    other. Blocks of your own are a box with their name.

    Arguments:
        config: of a model, or of any part.

    Example:
        >>> import eqxformer as ef
        >>> config = ef.families.llama(vocab=65, dim=16, layers=2, heads=2, hidden=32)
        >>> svg = ef.inspect.pictures.diagram(config)
        >>> svg.startswith("<svg") and "2 x Block" in svg and "GatedMLP" in svg
        True
    """
    whole: Any = config
    body = getattr(config, "body", config)
    sides = [getattr(body, name, None) for name in ("encoder", "decoder")]
    columns = [_side(side) for side in sides if side is not None] or [_side(body)]
    if not hasattr(config, "blocks") and hasattr(config, "head"):  # of labels, behind both sides
        columns[-1] = Column([columns[-1], _box(whole.head, "head")])
    return _drawn(columns)


def _drawn(columns: Sequence[Piece]) -> str:
    tall = max(column.height for column in columns)
    height = tall + 2 * MARGIN + 2 * 22
    width = sum(column.width for column in columns) + _BETWEEN * (len(columns) - 1) + 2 * MARGIN
    canvas, left, tops = Canvas(height), MARGIN, []
    for column in columns:
        middle = left + column.width / 2
        column.draw(canvas, middle, MARGIN + 22)
        tops.append((middle, MARGIN + 22 + column.height))
        canvas.line([(middle, MARGIN + 6), (middle, MARGIN + 22)], arrow=True)
        left += column.width + _BETWEEN
    _join(canvas, tops, columns)
    words = ["source", "target"] if len(columns) > 1 else ["input"]
    for (middle, _), word in zip(tops, words, strict=True):
        canvas.text(middle, MARGIN - 6, word, 11.0)
    middle, top = tops[-1]
    canvas.line([(middle, top), (middle, top + 16)], arrow=True)
    canvas.text(middle, top + 22, "output", 11.0)
    return "\n".join(
        [_HEAD.format(w=width, h=height) + canvas.elements[0], *canvas.elements[1:], "</svg>\n"]
    )


def _join(canvas: Canvas, tops: list[tuple[float, float]], columns: Sequence[Piece]) -> None:
    """The way from the top of the encoder to every box that looks at it."""
    if len(tops) < 2:
        return
    (middle, top), between = tops[0], tops[0][0] + columns[0].width / 2 + _BETWEEN / 2
    canvas.line([(middle, top), (middle, top + 10), (between, top + 10)])
    ends = [y for _, y in canvas.looks]
    canvas.line([(between, max([top + 10, *ends])), (between, min([top + 10, *ends]))])
    for x, y in canvas.looks:
        canvas.line([(between, y), (x, y)], arrow=True)


def _side(config: Any) -> Piece:
    """A decoder, an encoder, or any part by itself."""
    if not hasattr(config, "blocks"):
        return _piece(config)
    pieces = [_embedding(config), *_stack(config.blocks)]
    if getattr(config, "norm", None) is not None:
        pieces.append(_box(config.norm, "norm"))
    if getattr(config, "head", None) is not None:
        pieces.append(_box(config.head, "head"))
    return Column(pieces)


def _embedding(config: Any) -> Box:
    sizes = [
        f"{name}={getattr(config, name):,}" for name in ("vocab", "bins") if hasattr(config, name)
    ]
    words = [*sizes, f"dim={config.dim:,}", *_settings(config.embedding)]
    if getattr(config, "bias", None) is not None:
        words.append(f"bias={config.bias.type_name} for all blocks")
    return Box(config.embedding.type_name, _wrapped(words), "embedding")


def _stack(blocks: Sequence[Config]) -> list[Piece]:
    """Equal neighbours once, with their number; so is a pattern of several that comes again."""
    runs = [(block, len(list(each))) for block, each in itertools.groupby(blocks)]
    period = next(n for n in range(1, len(runs) + 1) if runs == (runs * 2)[n : n + len(runs)])
    times = math.ceil(len(runs) / period)
    if times == 1:
        return [_group(block, count) for block, count in runs]
    inside = Column([_group(block, count) for block, count in runs[:period]])
    return [Group(inside, f"{times} times")]


def _group(block: Config, count: int) -> Piece:
    return Group(_piece(block), f"{count} x {block.type_name}" if count > 1 else block.type_name)


def _piece(config: Config) -> Piece:
    """A block with its wiring; any other part as a box."""
    if isinstance(config, Block.Config):
        parts: list[tuple[str, Config, Any, str]] = [
            ("attention", config.attention, config.attention_residual, "attention")
        ]
        if config.cross_attention is not None:
            parts.append(("cross", config.cross_attention, config.cross_residual, "attention"))
        wiring = config.feed_forward_residual
        parts.append(("feed_forward", config.feed_forward, wiring, "feed_forward"))
        return Column([p for name, part, w, kind in parts for p in _wired(name, part, w, kind)])
    if isinstance(config, ParallelBlock.Config):
        return _side_by_side(config)
    if isinstance(config, Repeated.Config):
        return Group(Column(_stack(config.blocks)), f"{config.times} times, with the same weights")
    return _box(config, _kind(config))


def _wired(name: str, part: Config, wiring: Any, kind: str) -> Iterator[Piece]:
    """A branch between its norms, the line round it, and the norm behind."""
    box = _box(part, kind)
    if name == "cross":
        box = dataclasses.replace(
            box, title=f"cross-{box.title[0].lower()}{box.title[1:]}", looks=True
        )
    norms = [None if n is None else _box(n, "norm") for n in (wiring.pre_norm, wiring.post_norm)]
    yield Residual(Column([piece for piece in (norms[0], box, norms[1]) if piece is not None]))
    if wiring.out_norm is not None:
        yield _box(wiring.out_norm, "norm")


def _side_by_side(config: ParallelBlock.Config) -> Piece:
    parts = [(config.attention, "attention"), (config.feed_forward, "feed_forward")]
    boxes: list[Piece] = [_box(part, kind) for part, kind in parts]
    norms = [config.norm, config.feed_forward_norm]
    if norms[1] is None:  # one norm for both, which the line round the branches leaves out
        return Beside([Column([_box(config.norm, "norm"), box]) for box in boxes])
    return Beside(
        [Column([_box(norm, "norm"), box]) for norm, box in zip(norms, boxes, strict=True) if norm]
    )


def _box(config: Config, kind: str) -> Box:
    return Box(config.type_name, _wrapped(_settings(config)), kind)


def _kind(config: Config) -> str:
    name = config.type_name.lower()
    kinds = {"attention": "attention", "norm": "norm", "embedding": "embedding", "head": "head"}
    return next((kind for word, kind in kinds.items() if word in name), "other")


def _settings(config: Config) -> list[str]:
    """What a part says that is not its default, in a few words each; linear maps are as ever."""
    words = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        usual = value == field.default or isinstance(value, Linear.Config)
        if usual or field.name in _UNSAID:
            continue
        words.append(_spelled(field.name, value))
    return words


def _spelled(name: str, value: Any) -> str:
    """A setting; of one that is a part, what is in it as far as it fits into a line."""
    if isinstance(value, Config):
        whole = f"{name}={value.type_name}({', '.join(_settings(value))})"
        return (
            whole if "()" not in whole and len(whole) <= _LETTERS else f"{name}={value.type_name}"
        )
    if isinstance(value, float):
        return f"{name}={value:,.0f}" if value >= 1000 else f"{name}={value:.4g}"
    return f"{name}={value:,}" if isinstance(value, int) else f"{name}={value}"


def _wrapped(words: Sequence[str]) -> tuple[str, ...]:
    """Words in lines of a box, the last of which says that there are more."""
    lines: list[str] = []
    for word in words:
        word = word if len(word) <= _LETTERS else f"{word[: _LETTERS - 1]}…"
        if lines and len(lines[-1]) + 2 + len(word) <= _LETTERS:
            lines[-1] += f", {word}"
        else:
            lines.append(word)
    if len(lines) > _LINES:
        lines[_LINES - 1 :] = [f"and {len(words)} settings in all"]
    return tuple(lines)
