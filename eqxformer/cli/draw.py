"""`eqxformer draw`: pictures of a model's blocks, attention, masks, positions, and of losses."""

from pathlib import Path
from typing import Any

import click
import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.cli.errors import explained
from eqxformer.cli.info import find
from eqxformer.cli.reading import read_model
from eqxformer.config import Config, paths
from eqxformer.inspect import pictures
from eqxformer.inspect.capture import capture
from eqxformer.inspect.sites import sites
from eqxformer.layers.biases import PositionBias
from eqxformer.layers.masks import Causal, Mask, join
from eqxformer.layers.positions import Positions
from eqxformer.layers.rotary import Rotary
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.pretrained.presets import preset_names
from eqxformer.training.records import read_curves

_EXAMPLES = """\b
Examples:
  eqxformer draw blocks llama-3.1-8b --out llama.svg
  eqxformer draw attention runs/text-20250101-120000 --text "the end" --part blocks.0.attention
  eqxformer draw mask gemma-2-2b --part blocks.0.attention --length 12 --out mask.pdf
  eqxformer draw positions qwen3-0.6b
  eqxformer draw losses runs/text-20250101-120000
"""


@click.group(epilog=_EXAMPLES)
def draw() -> None:
    """Draw a picture into a file, whose ending says the format: png, svg or pdf.

    SOURCE is a run that `eqxformer train` made or a model in one, a checkpoint's directory, an id
    of the Hugging Face Hub, or the name of a preset, which has no weights for `attention`. `losses`
    are a run's alone.
    """


def _out(name: str) -> Any:
    path = click.Path(path_type=Path, dir_okay=False)
    return click.option("--out", type=path, default=name, show_default=True, help="The picture.")


@draw.command()
@click.argument("source", metavar="SOURCE")
@_out("blocks.svg")
def blocks(source: str, out: Path) -> None:
    """Draw what a model is made of, from its config alone."""
    with explained():
        if out.suffix != ".svg":
            raise ValueError(
                f"A diagram of blocks is an SVG; name a file such as x.svg, not {out}."
            )
        out.write_text(pictures.diagram(find(source).skeleton.config), encoding="utf-8")
    click.echo(f"{out}")


@draw.command()
@click.argument("source", metavar="SOURCE")
@click.option("--text", required=True, help="What the model reads.")
@click.option("--target", help="What the decoder of an encoder-decoder reads.")
@click.option("--part", help="The path of an attention.  [default: that of the first block]")
@click.option("--heads", help="Which heads, as in 0,3.  [default: all]")
@_out("attention.png")
def attention(
    source: str, text: str, target: str | None, part: str | None, heads: str | None, out: Path
) -> None:
    """Draw how much every token of a text takes of each other, a panel per head."""
    with explained():
        chosen = None if heads is None else _numbers(heads)
        model, encode = read_model(source)
        texts = [text] if target is None else [text, target]
        if isinstance(model, EncoderDecoder) != (target is not None):
            raise ValueError("--target is for encoder-decoders, which need it beside --text.")
        read = [encode(each) for each in texts]
        inputs = [jnp.asarray([ids], jnp.int32) for ids, _ in read]
        path = part or _first_attention(model)
        weights = _weights(model, path, *inputs)[0]
        words = [words for _, words in read]
        tokens = words[0] if "encoder" in path.split(".") else words[-1]
        keys = words[0] if path.endswith("cross_attention") else None
        figure = pictures.attention(weights, tokens, keys, heads=chosen, title=path)
        figure.savefig(out, dpi=150)
    click.echo(f"{out}")


@draw.command()
@click.argument("source", metavar="SOURCE")
@click.option("--part", help="The path of an attention.  [default: that of the first block]")
@click.option("--length", type=click.IntRange(1, 512), default=16, show_default=True)
@_out("mask.png")
def mask(source: str, part: str | None, length: int, out: Path) -> None:
    """Draw who may look at whom in an attention, without padding."""
    with explained():
        model = find(source).skeleton
        path = part or _first_attention(model)
        figure = pictures.mask(_mask_of(model.config, path), length)
        figure.savefig(out, dpi=150)
    click.echo(f"{out}")


@draw.command()
@click.argument("source", metavar="SOURCE")
@click.option("--part", help="The path of what knows of positions.  [default: the first]")
@click.option("--length", type=click.IntRange(1, 4096), default=128, show_default=True)
@_out("positions.png")
def positions(source: str, part: str | None, length: int, out: Path) -> None:
    """Draw how a model knows where a token stands: waves, rotations, or biases by distance.

    Of learned positions and biases, the numbers are read; a preset has none.
    """
    with explained():
        figure = _positions(source, part, length)
        figure.savefig(out, dpi=150)
    click.echo(f"{out}")


@draw.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@_out("losses.png")
def losses(run: Path, out: Path) -> None:
    """Draw the losses of a run over its steps."""
    with explained():
        if not (run / "metrics.jsonl").is_file():
            raise ValueError(f"`{run}` has no metrics.jsonl; name a run of `eqxformer train`.")
        pictures.losses(read_curves(run / "metrics.jsonl")).savefig(out, dpi=150)
    click.echo(f"{out}")


def _weights(model: Any, path: str, *inputs: jax.Array) -> jax.Array:
    """The weights of one attention, while all of the model runs as ever."""
    name, ending = f"{path}.weights", ".weights"
    known = [site for site in sites(model) if site.endswith(ending)]
    if name not in known:
        there = ", ".join(site.removesuffix(ending) for site in known[:8])
        raise ValueError(f"`{path}` is no attention whose weights can be had; {there or 'none'}.")
    look = capture(model, name)
    found = eqx.filter_jit(lambda look, inputs: look(*inputs)[1][name])(look, inputs)
    return found if found.ndim == 4 else found[-1]  # of blocks that repeat, those of the last time


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--heads must be numbers such as 0,3; got {text}.") from None


def _first_attention(model: Any) -> str:
    """The path of the first block's attention, wherever the blocks are."""
    every = paths(model.config)
    first = (path for path, each in every.items() if hasattr(each, "heads") and "blocks" in path)
    return next(first, "blocks.0.attention")


def _mask_of(config: Config, path: str) -> Mask:
    """What an attention allows, from the configs of it and of the side that it is in."""
    every = paths(config)
    part: Any = every.get(path)
    if part is None or not hasattr(part, "heads") or path.endswith("cross_attention"):
        known = [name for name, each in every.items() if hasattr(each, "heads")]
        inside = [name for name in known if not name.endswith("cross_attention")]
        raise ValueError(f"`{path}` is no self-attention; there are {', '.join(inside[:8])}.")
    side: Any = every[path.partition("blocks.")[0].rstrip(".")]
    causal = isinstance(side, DecoderLM.Config) or getattr(side, "direction", "") == "causal"
    found = (Causal() if causal else None, getattr(part, "reach", None))
    mask = join(tuple(each for each in found if each is not None))
    if mask is None:
        raise ValueError(f"In `{path}` every token may look at every other; there is no mask.")
    return mask


def _positions(source: str, part: str | None, length: int) -> Any:
    """The picture of what knows of positions in a model."""
    found = find(source)
    known = {
        path: each
        for path, each in paths(found.skeleton.config).items()
        if isinstance(each, Positions.Config | PositionBias.Config | Rotary)
    }
    path = part or next(iter(known), "")
    if path not in known:
        raise ValueError(f"`{path}` knows nothing of positions; {', '.join(known) or 'nothing'}.")
    each = known[path]
    if isinstance(each, Rotary):
        holder = _at(found.skeleton, path.rpartition(".")[0])
        turned = getattr(holder, "head_dim", None) or holder.config.rotary_dim  # latent attention
        return pictures.rotary(each, turned, length, title=path)
    built = _at(found.skeleton, path)
    if jax.tree.leaves(built):
        built = _at(_trained(source, path), path)
    if isinstance(built, Positions):
        return pictures.position_table(built, length, title=path)
    return pictures.position_bias(built, length, title=path)


def _trained(source: str, path: str) -> Any:
    """The model with its numbers; `ValueError` for a preset, which has none."""
    if source in preset_names() and not Path(source).exists():
        raise ValueError(f"`{path}` is learned, and a preset has no numbers; name a checkpoint.")
    return read_model(source)[0]


def _at(model: Any, path: str) -> Any:
    """The part of a model at a path."""
    for name in path.split("."):
        model = model[int(name)] if name.isdigit() else getattr(model, name)
    return model
