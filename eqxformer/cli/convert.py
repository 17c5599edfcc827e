"""`eqxformer convert`: a checkpoint written anew, in another type, format or size of files."""

from pathlib import Path
from typing import Any

import click
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqxformer.checkpoints.names import name, named_arrays
from eqxformer.checkpoints.native import TOKENIZER, load, save
from eqxformer.checkpoints.rebuild import rebuild
from eqxformer.checkpoints.tensor_files import TensorFiles, parse_size, replaced_directory
from eqxformer.cli.errors import Mistake, explained
from eqxformer.data.characters import Characters
from eqxformer.inspect.table import count, size
from eqxformer.pretrained.checkpoint import Checkpoint, is_native
from eqxformer.pretrained.locate import home, locate
from eqxformer.pretrained.on_disk import converted, on_disk
from eqxformer.pretrained.save import OLD, carry, write_pretrained
from eqxformer.strict_json import json_object

_EXAMPLES = """\b
Examples:
  eqxformer convert path/to/checkpoint smaller --dtype bfloat16 --shard-size 2GB
  eqxformer convert google/flan-t5-small here --to native
  eqxformer convert runs/mine theirs --model-type gpt2
"""


@click.command(epilog=_EXAMPLES)
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="The type of the weights; as they are if not given.",
)
@click.option("--shard-size", help="The most a file of weights may hold.  [default: 5GB]")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the model in DST, its tokenizer and what else says how it is used.",
)
@click.option(
    "--to",
    "form",
    type=click.Choice(["transformers", "native"]),
    default="transformers",
    show_default=True,
    help="Whose format to write.",
)
@click.option("--model-type", help="The architecture to write as; as SRC, or the first that can.")
def convert(
    source: str,
    target: Path,
    dtype: str | None,
    shard_size: str | None,
    overwrite: bool,
    form: str,
    model_type: str | None,
) -> None:
    """Write the checkpoint SRC anew as the directory DST.

    SRC is a directory, in the format of transformers or our own, or an id of the Hugging Face Hub;
    with a run, or a model in one such as its `best`, goes the run's tokenizer, one of characters
    with the extra `hub`. Checkpoints of transformers may be larger than memory. DST appears whole
    or not at all.
    """
    with explained():
        if form == "native" and (shard_size or model_type):
            raise Mistake("--shard-size and --model-type are for --to transformers.")
        shard_bytes = parse_size(shard_size or "5GB")
        _check_target(source, target, overwrite)
        folder = locate(source)
        owner = home(folder)  # of what lies beside the weights
        model, beside = _read(folder, owner, dtype), _tokenizer(owner)
        if form == "native":
            _write_native(model, target, overwrite, beside)
        else:
            write_pretrained(
                model,
                target,
                model_type=model_type,
                shard_size=shard_bytes,
                overwrite=overwrite,
                but=OLD,  # another model's tokenizer beside these weights would be wrong
                beside=beside,
            )
        files = TensorFiles.open(target)
    types = " and ".join(sorted({str(files.dtype(each)) for each in files.names}))
    click.echo(f"{target}: {count(model):,} parameters, {size(files.nbytes)} in {types}.")


def _tokenizer(source: Path) -> dict[str, bytes]:
    """The tokenizer of a run, as a file that transformers reads, too; none if it cannot be one."""
    own = source / TOKENIZER
    if not is_native(source) or not own.is_file():
        return {}
    try:
        values = json_object(own.read_text(encoding="utf-8"))
        if "type" not in values:
            return {TOKENIZER: own.read_bytes()}
        if values["type"] != Characters.type_name:  # of the user's own, which is not known here
            return {}
        found = Characters.from_dict(values).tokenizer
    except (ValueError, TypeError) as error:
        raise Mistake(f"{own} is no tokenizer: {error}") from None
    except ImportError as error:
        click.echo(f"The run's characters are left out. {error}", err=True)
        return {}
    return {TOKENIZER: found.to_str(pretty=True).encode()}


def _check_target(source: str, target: Path, overwrite: bool) -> None:
    """Raises `Mistake` where DST is not a place of its own, or has something in it."""
    here, there = Path(source).expanduser().resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise Mistake(f"DST must be a directory apart from SRC; got {target} and {source}.")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise Mistake(
            f"{target} is not empty; name another directory, or replace what is there with "
            "--overwrite."
        )


def _read(directory: Path, owner: Path, dtype: str | None) -> Any:
    """The model of a directory; of a checkpoint of transformers, with all its numbers on disk.

    `owner` is where its tokenizer lies.
    """
    if not is_native(directory):
        return on_disk(Checkpoint(directory), dtype)
    model, wanted = load(directory), None if dtype is None else jnp.dtype(dtype)

    def cast(path: Any, leaf: Any) -> Any:
        return jax.device_put(converted(name(path), np.asarray(leaf), wanted))

    arrays, rest = eqx.partition(model, eqx.is_array)
    model = eqx.combine(jax.tree_util.tree_map_with_path(cast, arrays), rest)
    origin = getattr(model.config, "origin", None)
    if origin is None:
        return model
    beside = origin.edit(directory=str(owner.resolve()))
    return rebuild(model, model.config.edit(origin=beside))


def _write_native(model: Any, target: Path, overwrite: bool, beside: dict[str, bytes]) -> None:
    for path, array in named_arrays(model).items():
        if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
            raise Mistake(f"`{path}` is {array.dtype}, which is not read again; choose a --dtype.")
    with replaced_directory(target, overwrite=overwrite, but=OLD) as folder:
        carry(model.config, folder)
        for each, data in beside.items():
            (folder / each).write_bytes(data)
        save(model, folder)
