"""Directories of sentence-transformers: what is done with an encoder's states, in their words.

Beside the files of transformers they have a `modules.json`, which names the transformer, a pooling
of its states and perhaps a normalisation of the vector, each with a folder of its own.
"""

import os
import pathlib
from typing import Any

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.settings import Settings
from eqxformer.checkpoints.tensor_files import contained, read_json, read_json_list, shown
from eqxformer.models.label_heads import Pooling

MODULES = "modules.json"
CONFIG = "config.json"
_TRANSFORMER = "sentence_bert_config.json"
_LIMIT = 2**20  # bytes
_SUPPORTED = ["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]
# What a pooling takes, in the words of version 6 and as a switch of the versions before.
_TAKES = {"mean": "mean", "max": "max", "cls": "first", "lasttoken": "last"}
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def pooling_of(directory: pathlib.Path) -> Pooling.Config | None:
    """The pooling and normalisation that `modules.json` names; None where there is no such file.

    Nor do cross-encoders and SPLADE's have one, which are a transformer with its own head.

    Raises `CheckpointError` for other modules, another order of them, a pooling of several kinds or
    of one that is not supported, and for a transformer that is not in the directory itself.
    """
    path = directory / MODULES
    if not os.path.lexists(path):
        return None
    listed = read_json_list(contained(directory, MODULES), limit_bytes=_LIMIT)
    modules = [_kind_and_folder(path, module) for module in listed[:9]]
    kinds = [kind for kind, _ in modules]
    if kinds == ["Transformer"] and _task(directory) == "sequence-classification":
        return None  # a cross-encoder, whose scores are those of its head
    if _is_sparse(directory, kinds) and modules[0][1] in ("", "."):
        return None  # SPLADE, which takes of every token the scores of its head
    if kinds not in _SUPPORTED:
        expected = " or ".join(", ".join(each) for each in _SUPPORTED)
        raise CheckpointError(
            f"{path}: the modules must be {expected}; got {', '.join(kinds)}. A copy of the "
            f"directory without {MODULES} is read as the transformer alone."
        )
    (_, first), (_, second), *normalize = modules
    if first not in ("", "."):
        raise CheckpointError(f"{path}: the transformer must lie beside this file, not in {first}.")
    _check_transformer(directory)
    for _, folder in normalize:
        _check_normalize(directory, folder)
    take: Any = _taken(directory, second)
    return Pooling.Config(take, unit_length=bool(normalize))


def _is_sparse(directory: pathlib.Path, kinds: list[str]) -> bool:
    """Whether the modules begin with a head for masked tokens, by its name before version 6 or as
    the transformer's task."""
    if kinds[:2] == ["Transformer", "SpladePooling"]:
        return _task(directory) == "fill-mask"
    return kinds[:1] == ["MLMTransformer"]


def longest_text(directory: pathlib.Path) -> int | None:
    """How many tokens of a text are read; None where it is not said, or no sentence encoder."""
    said = _of_transformer(directory).get("max_seq_length")
    if said is not None and (type(said) is not int or said < 1):
        path = directory / _TRANSFORMER
        raise CheckpointError(f"{path}: `max_seq_length` must be a positive number; got {said!r}.")
    return said


def in_lower_case(directory: pathlib.Path) -> bool:
    """Whether texts are made lower case before they are cut into tokens."""
    return _of_transformer(directory).get("do_lower_case") is True


def _task(directory: pathlib.Path) -> Any:
    return _of_transformer(directory).get("transformer_task")


def _of_transformer(directory: pathlib.Path) -> dict[str, Any]:
    """What is said of the first module, if there is one."""
    if not os.path.lexists(directory / _TRANSFORMER):
        return {}
    return read_json(contained(directory, _TRANSFORMER), limit_bytes=_LIMIT)


def describe_pooling(pooling: Pooling.Config, dim: int) -> dict[str, Any]:
    """The files that say in their words what a pooling does, by their names: JSON values.

    They are those of versions 2 to 5, which later ones read too.
    """
    prefix = "sentence_transformers.models."
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    kinds += [("Normalize", "2_Normalize")] if pooling.unit_length else []
    modules = [
        {"idx": i, "name": str(i), "path": folder, "type": prefix + kind}
        for i, (kind, folder) in enumerate(kinds)
    ]
    modes = {key: _TAKES.get(mode) == pooling.take for key, mode in _SWITCHES.items()}
    return {MODULES: modules, "1_Pooling/config.json": {"word_embedding_dimension": dim, **modes}}


def _kind_and_folder(path: pathlib.Path, module: Any) -> tuple[str, str]:
    """The last word of a module's type, and the folder it is in, which must be one beside it."""
    found = module if isinstance(module, dict) else {}
    kind, folder = found.get("type"), found.get("path", "")
    if not isinstance(kind, str) or not isinstance(folder, str):
        got = shown(module)
        raise CheckpointError(f"{path}: every module needs a `type` and a `path`; got {got}.")
    if folder == ".." or not (folder.isprintable() and {"/", "\\", ":"}.isdisjoint(folder)):
        got = shown(folder)
        raise CheckpointError(f"{path}: the path of a module must be a folder here; got {got}.")
    return shown(kind.rpartition(".")[2]).strip("'"), folder


def _settings(directory: pathlib.Path, folder: str) -> Settings:
    """The settings in a module's folder, which may not lead elsewhere."""
    path = contained(contained(directory, folder), CONFIG)
    return Settings(read_json(path, limit_bytes=_LIMIT), where=str(path))


def _check_transformer(directory: pathlib.Path) -> None:
    """That what is pooled is the states; the other settings are about tokens and lengths."""
    if os.path.lexists(directory / _TRANSFORMER):
        path = contained(directory, _TRANSFORMER)
        settings = Settings(read_json(path, limit_bytes=_LIMIT), where=str(path))
        settings.only("transformer_task", "feature-extraction")
        settings.only("module_output_name", "token_embeddings")


def _check_normalize(directory: pathlib.Path, folder: str) -> None:
    """That what is normalised is the vector of the text; versions before 6 have no file for it."""
    if os.path.lexists(directory / folder / CONFIG):
        settings = _settings(directory, folder)
        for key in ("module_input_name", "module_output_name"):
            settings.only(key, "sentence_embedding")
        settings.check_all_read("normalisation")


def _taken(directory: pathlib.Path, folder: str) -> str:
    """What of the states a pooling takes."""
    settings = _settings(directory, folder)
    settings.skip("word_embedding_dimension", "embedding_dimension")
    settings.only("include_prompt", True)
    switched = [mode for key, mode in _SWITCHES.items() if settings.flag(key, False)]
    modes = settings.get("pooling_mode", switched or "mean")
    settings.check_all_read("pooling")
    modes = modes if isinstance(modes, list) else [modes]
    if len(modes) != 1 or str(modes[0]) not in _TAKES:
        expected = f"one of {', '.join(_TAKES)}"
        raise settings.wrong("pooling_mode", f"{expected}, and nothing beside it", modes)
    return _TAKES[modes[0]]
