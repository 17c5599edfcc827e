"""Directories of sentence-transformers: what is done with an encoder's states, in their words."""

import pathlib
from typing import Any

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.settings import Settings
from eqxformer.checkpoints.tensor_files import read_json
from eqxformer.models.heads import Pooling

MODULES = "modules.json"
_LIMIT = 2**20
_TAKES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}


def pooling_of(directory: pathlib.Path) -> Pooling.Config | None:
    """The pooling and normalisation that `modules.json` names; None where there is no such file.

    Raises `CheckpointError` for modules that are not supported, and for a pooling of several kinds.
    """
    path = directory / MODULES
    if not path.is_file():
        return None
    pooling = Pooling.Config(take="mean")
    for module in read_json(path, limit_bytes=_LIMIT, kind=list):
        kind, folder = _kind_and_folder(path, module)
        match kind:
            case "Transformer":
                if folder not in ("", "."):
                    raise CheckpointError(f"{path}: the transformer must lie beside it.")
            case "Pooling":
                pooling = pooling.edit(take=_taken(directory / folder / "config.json"))
            case "Normalize":
                pooling = pooling.edit(unit_length=True)
            case _:
                raise CheckpointError(
                    f"{path}: modules may be Transformer, Pooling and Normalize; got {kind!r:.60}."
                )
    return pooling


def describe_pooling(pooling: Pooling.Config, dim: int) -> dict[str, Any]:
    """The files that say in their words what a pooling does, by their names: JSON values."""
    prefix = "sentence_transformers.models."
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    kinds += [("Normalize", "2_Normalize")] if pooling.unit_length else []
    modules = [
        {"idx": i, "name": str(i), "path": folder, "type": prefix + kind}
        for i, (kind, folder) in enumerate(kinds)
    ]
    modes = {key: take == pooling.take for key, take in _TAKES.items()}
    return {MODULES: modules, "1_Pooling/config.json": {"word_embedding_dimension": dim, **modes}}


def _kind_and_folder(path: pathlib.Path, module: Any) -> tuple[str, str]:
    """The last word of a module's type, and the folder it is in, which must be one below."""
    found = module if isinstance(module, dict) else {}
    kind, folder = found.get("type"), found.get("path", "")
    if not isinstance(kind, str) or not isinstance(folder, str):
        raise CheckpointError(
            f"{path}: every module needs a `type` and a `path`; got {module!r:.60}."
        )
    if "/" in folder or "\\" in folder or folder == "..":
        raise CheckpointError(f"{path}: the path of a module must be a folder beside it.")
    return kind.rpartition(".")[2], folder


def _taken(path: pathlib.Path) -> Any:
    """What of the states a pooling takes."""
    settings = Settings(read_json(path, limit_bytes=_LIMIT), where=str(path))
    settings.skip("word_embedding_dimension", "include_prompt")
    named = settings.get("pooling_mode", None)  # how newer versions write it
    if named is not None:
        words = {"mean": "mean", "max": "max", "cls": "first", "lasttoken": "last"}
        taken = [words[settings.choice("pooling_mode", words)]]
    else:
        taken = [take for key, take in _TAKES.items() if settings.flag(key, False)]
    for key in ("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens"):
        settings.only(key, False)
    settings.check_all_read("pooling")
    if len(taken) != 1:
        raise CheckpointError(f"{path} must take one thing of the states; it takes {taken}.")
    return taken[0]
