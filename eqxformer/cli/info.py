"""`eqxformer info`: what a checkpoint or a preset is and needs; none of its numbers is read."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.native import open_saved
from eqxformer.checkpoints.rebuild import shapes
from eqxformer.checkpoints.tensor_files import TensorFiles
from eqxformer.cli.errors import explained
from eqxformer.cli.mesh import mesh_report, on_mesh
from eqxformer.inspect.inputs import input_shapes
from eqxformer.inspect.table import count, size, table
from eqxformer.inspect.tabulate import tabulate
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.encoder import Encoder
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.pretrained.checkpoint import CONFIG, Checkpoint, is_native, read_settings
from eqxformer.pretrained.locate import locate
from eqxformer.pretrained.presets import described, preset, preset_names, preset_of
from eqxformer.pretrained.sentences import pooling_of

_TOKENS = 8192  # for which a cache is shown, beside one token
_SETTINGS = (CONFIG, "modules.json", "sentence_bert_config.json", "*/config.json")
_EXAMPLES = """\b
Examples:
  eqxformer info qwen3-0.6b
  eqxformer info --presets
  eqxformer info path/to/checkpoint --depth 2
  eqxformer info google/flan-t5-small --config
  eqxformer info deepseek-v3 --shapes --length 4096
  eqxformer info mixtral-8x7b-v0.1 --depth 1 --mesh fsdp=16,expert=8 --batch 512 --length 4096
"""


class Found(NamedTuple):
    """A model: a line on what it is, its shapes, and its tensors where they are at hand."""

    title: str
    skeleton: Any
    files: TensorFiles | None = None


def _list_presets(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked:
        rows = [(name, f"{preset_of(name).parameters:,}") for name in preset_names()]
        wide, long = (max(len(row[i]) for row in rows) for i in (0, 1))
        click.echo("\n".join(f"{name:<{wide}}  {number:>{long}}" for name, number in rows))
        context.exit()


@click.command(epilog=_EXAMPLES)
@click.argument("source", metavar="SOURCE")
@click.option(
    "--presets",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_presets,
    help="List all presets with their numbers of parameters.",
)
@click.option("--depth", type=click.IntRange(min=1), help="Names of a path to tell arrays by.")
@click.option("--config", "whole", is_flag=True, help="Show every setting instead of the table.")
@click.option("--shapes", "parts", is_flag=True, help="Show what goes in and out of every part.")
@click.option("--mesh", metavar="AXES", help="What training on a mesh needs: fsdp=64,tensor=4.")
@click.option(
    "--batch", type=click.IntRange(min=1), help="Rows: of a call, or of a step over all devices."
)
@click.option("--length", type=click.IntRange(min=1), help="Tokens of a row.")
def info(
    source: str,
    depth: int | None,
    whole: bool,
    parts: bool,
    mesh: str | None,
    batch: int | None,
    length: int | None,
) -> None:
    """Say what SOURCE is: its architecture, its parameters, the memory it needs.

    SOURCE is a directory with a checkpoint, of transformers or our own; the name of a preset; or
    the id of a model on the Hugging Face Hub, of which only the settings are downloaded.
    """
    with explained():
        found = find(source)
        laid = found.skeleton if mesh is None else on_mesh(found.skeleton, mesh)
        shown = _shown(laid, depth, whole, parts, (batch, length))
        notes, config = list(_notes(found)), found.skeleton.config
        report = None if mesh is None else mesh_report(config, mesh, batch, length)
        if mesh is None and not parts and (batch, length) != (None, None):
            raise ValueError("--batch and --length are for --shapes, or a step on a --mesh.")
    width = max(len(name) for name, _ in notes)
    lines = [f"{name:<{width}}  {text}" for name, text in notes]
    more = [] if report is None else ["", report]
    click.echo("\n".join([found.title, "", shown, "", *lines, *more]))


def _shown(
    skeleton: Any, depth: int | None, whole: bool, parts: bool, sizes: tuple[int | None, ...]
) -> str:
    """The settings of a model, the table of its parts, or that of its arrays."""
    if whole and parts:
        raise ValueError("--config and --shapes are two answers; ask for one of them.")
    if whole:
        return skeleton.config.in_full()
    if not parts:
        return table(skeleton, depth=depth)
    batch, length = sizes
    return tabulate(skeleton, *input_shapes(skeleton, batch=batch or 1, length=length), depth=depth)


def find(source: str) -> Found:
    """The model of a directory, a preset or the Hub; `CheckpointError` where there is none."""
    path = Path(source).expanduser()
    if path.exists():
        return _in_directory(locate(path))
    if "/" in source:  # an id of the Hub has two parts
        return _of_settings(locate(source, patterns=_SETTINGS))
    try:
        settings = preset_of(source).settings
    except CheckpointError as error:
        raise CheckpointError(f"There is no directory {source}. {error}") from None
    title = _title(settings["architectures"][0], settings["model_type"])
    return Found(title, shapes(preset(source)))


def _in_directory(directory: Path) -> Found:
    if is_native(directory):
        skeleton, files = open_saved(directory)
        words = (type(skeleton).__doc__ or "").partition("\n\n")[0]
        return Found(f"{type(skeleton).__name__}: {' '.join(words.split())}", skeleton, files)
    found = Checkpoint(directory)
    title = _title(found.class_name, found.architecture.model_type)
    return Found(title, found.skeleton, found.files)


def _of_settings(directory: Path) -> Found:
    _, values = read_settings(directory)
    class_name, tree = described(values, str(directory / CONFIG))
    pooling = pooling_of(directory)
    if pooling is not None and isinstance(tree, Encoder.Config):
        tree = tree.edit(pooling=pooling)
    return Found(_title(class_name, values["model_type"]), shapes(tree))


def _title(class_name: str, model_type: str) -> str:
    """The class, the architecture, and the sentence that its file begins with."""
    module = importlib.import_module(f"eqxformer.architectures.{model_type.replace('-', '_')}")
    words = (module.__doc__ or "").partition("\n\n")[0]
    return f"{class_name} ({model_type}). {' '.join(words.split())}"


def _notes(found: Found) -> Iterator[tuple[str, str]]:
    """What is known of a model, and the memory it needs, as names and texts."""
    skeleton, number = found.skeleton, count(found.skeleton)
    yield "model", _outline(skeleton)
    yield "parameters", f"{number:,}"
    if found.files is not None:
        types = sorted({str(found.files.dtype(name)) for name in found.files.names})
        yield "on disk", f"{size(found.files.nbytes)} in {' and '.join(types)}"
    yield "weights", f"{size(4 * number)} in float32, {size(2 * number)} in bfloat16"
    if isinstance(skeleton, DecoderLM | EncoderDecoder):
        yield "KV cache", _cache(skeleton)
    needed = size(4 * 4 * number)
    yield "training", f"{needed} with AdamW in float32: weights, gradients, two moments of each"


def _outline(skeleton: Any) -> str:
    """The kind of a model, and the sizes of its sides."""
    body = getattr(skeleton, "body", skeleton)  # of both sides, under a head of labels
    named = (getattr(body, side, None) for side in ("encoder", "decoder"))
    sides = [_side(side) for side in named if side is not None]
    return f"{type(skeleton).__name__}: {'; '.join(sides)}" if sides else _side(skeleton)


def _side(part: Any) -> str:
    config = part.config
    blocks = "block" if len(config.blocks) == 1 else "blocks"
    vocab = getattr(config, "vocab", None)  # an encoder of audio has none
    tokens = "" if vocab is None else f", {vocab:,} tokens"
    return f"{type(part).__name__} of {len(config.blocks)} {blocks}, width {config.dim:,}{tokens}"


def _cache(model: DecoderLM | EncoderDecoder) -> str:
    """The memory of one sequence's keys and values, in bfloat16."""
    decoder = model.decoder if isinstance(model, EncoderDecoder) else model
    one, many = _cache_bytes(decoder, 1), _cache_bytes(decoder, _TOKENS)
    text = f"{size(one)} a token in bfloat16, {size(many)} for {_TOKENS:,}"
    if isinstance(model, EncoderDecoder):
        source = _cache_bytes(decoder, 1, source_dim=model.config.encoder.dim) - one
        text += f"; {size(source)} a token of the source"
    return text


def _cache_bytes(decoder: DecoderLM, slots: int, source_dim: int | None = None) -> int:
    """The bytes of the numbers in a cache of so many tokens, and of one token of a source."""
    source = None if source_dim is None else jax.ShapeDtypeStruct((1, 1, source_dim), jnp.bfloat16)
    halves = jax.tree.map(
        lambda leaf: (
            jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else leaf
        ),
        decoder,
    )
    cache = eqx.filter_eval_shape(
        lambda model, source: model.init_cache((1,), slots, source=source, dtype=jnp.bfloat16),
        halves,
        source,
    )
    leaves = [leaf for leaf in jax.tree.leaves(cache.blocks) if leaf.dtype == jnp.bfloat16]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
