"""What a checkpoint says of its tokens beside `tokenizer.json`, or in place of it."""

import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.tensor_files import contained, read_json, shown

_SETTINGS, _OLD = "tokenizer_config.json", "added_tokens.json"
_LIMIT = 64 * 2**20  # bytes; a tokenizer's settings may list every added token
_NAMED = tuple(f"{each}_token" for each in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ID = re.compile(r"[0-9]{1,10}")
# Tokenizers that transformers has in Python alone, and the models whose usual ones they are.
_IN_PYTHON = frozenset(
    f"{each}Tokenizer"
    for each in (
        *("Bartpho", "BertJapanese", "Bertweet", "ByT5", "GPTSw3"),
        *("M2M100", "Marian", "MyT5", "Phobert"),
    )
)
_USUAL = {"m2m_100": "M2M100Tokenizer", "marian": "MarianTokenizer"}


class _Token(NamedTuple):
    """A token of a list: its text, what is said of it, and the id that it is to have, if any."""

    content: str
    flags: dict[str, bool]
    id: int | None = None


def add_listed(tokenizer: Any, folder: pathlib.Path) -> None:
    """Adds the tokens that a checkpoint lists beside its `tokenizer.json`, as transformers does.

    They are those in `added_tokens_decoder` of `tokenizer_config.json` and the special tokens that
    this file names; where it has no such list, those in `added_tokens.json` and in
    `special_tokens_map.json`.

    Raises `CheckpointError` for a token that gets another id than the one that is listed.
    """
    settings, known = _read(folder, _SETTINGS), _known(tokenizer)
    decoder = settings.get("added_tokens_decoder")
    if decoder is not None:
        named, unnamed = _special(folder, settings)
        listed = _of_decoder(folder / _SETTINGS, decoder, named)
    else:
        named, unnamed = _special(folder, settings | _read(folder, "special_tokens_map.json"))
        listed = _of_old(folder / _OLD, _read(folder, _OLD), [*named, *unnamed])
        listed = [token for token in listed if token.content not in known]
    _add(tokenizer, listed, folder)
    known = _known(tokenizer)
    _add(tokenizer, [each for each in (*named, *unnamed) if each.content not in known], folder)


def _add(tokenizer: Any, tokens: Iterable[_Token], folder: pathlib.Path) -> None:
    """Adds tokens in this order, and checks the ids of those that are new."""
    from tokenizers import AddedToken

    known, tokens = _known(tokenizer), [token for token in tokens if token.content]
    tokenizer.add_tokens([AddedToken(token.content, **token.flags) for token in tokens])
    for content, _, wanted in tokens:
        found = tokenizer.token_to_id(content)
        if content not in known and wanted not in (None, found):
            raise CheckpointError(
                f"{folder}: {shown(content)} must have the id {wanted}, as the list of added "
                f"tokens says; after those of tokenizer.json it gets {found}. One of the two is "
                "another model's, or lacks tokens."
            )


def _known(tokenizer: Any) -> set[str]:
    """The texts of the tokens that are found whole."""
    return {token.content for token in tokenizer.get_added_tokens_decoder().values()}


def _special(folder: pathlib.Path, settings: dict[str, Any]) -> tuple[list[_Token], list[_Token]]:
    """The special tokens that have a name of their own, and those that have none."""
    others = [key for key in settings if key.endswith("_token") and key not in _NAMED]
    values = [settings.get(key) for key in (*_NAMED, *others)]
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        values, extra = [*values, *extra.values()], []
    if not isinstance(extra, list):
        raise CheckpointError(f"{folder}: extra special tokens must be a list; got {shown(extra)}.")
    named = [_token(folder, each) for each in values if isinstance(each, str | dict)]
    return [_as_special(each) for each in named], [_token(folder, each) for each in extra]


def _of_decoder(path: pathlib.Path, decoder: Any, named: list[_Token]) -> list[_Token]:
    """The tokens in `added_tokens_decoder`, in the order of their ids; what is named is special."""
    if not isinstance(decoder, dict) or not all(map(_ID.fullmatch, decoder)):
        raise CheckpointError(
            f"{path}: `added_tokens_decoder` must have tokens by their ids; got {shown(decoder)}."
        )
    names = {token.content for token in named}
    found = [_token(path, decoder[key])._replace(id=int(key)) for key in sorted(decoder, key=int)]
    return [_as_special(token) if token.content in names else token for token in found]


def _of_old(path: pathlib.Path, ids: dict[str, Any], known: list[_Token]) -> list[_Token]:
    """The tokens in `added_tokens.json`, in the order of the ids that it has of them.

    Arguments:
        known: the special ones.
    """
    special = {token.content for token in known}
    for content, value in ids.items():
        if type(value) is not int or value < 0:
            raise CheckpointError(
                f"{path}: the id of {shown(content)} must be a whole number; got {shown(value)}."
            )
    return [
        _Token(content, {"special": content in special, "normalized": content not in special}, id)
        for content, id in sorted(ids.items(), key=lambda item: item[1])
    ]


def _token(where: pathlib.Path, given: Any) -> _Token:
    """A token that is text, which is special, or an object with its text and what is said of it."""
    given = {"content": given, "special": True} if isinstance(given, str) else given
    said = given if isinstance(given, dict) else {}
    content, flags = said.get("content"), {key: said[key] for key in _FLAGS if key in said}
    if not isinstance(content, str) or not all(isinstance(flag, bool) for flag in flags.values()):
        raise CheckpointError(
            f"{where}: a token must be text, or an object with its `content` and flags that are "
            f"true or false; got {shown(given)}."
        )
    return _Token(content, flags)


def _as_special(token: _Token) -> _Token:
    return token._replace(flags={**token.flags, "special": True})


def _read(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint, if it is there."""
    if not os.path.lexists(folder / name):
        return {}
    return read_json(contained(folder, name), limit_bytes=_LIMIT)


def instead(folder: pathlib.Path) -> str:
    """A sentence on what a checkpoint without `tokenizer.json` has for a tokenizer."""
    there = {file.name for file in folder.iterdir()}
    name = "MarianTokenizer" if "source.spm" in there else _class_name(folder)
    if name in _IN_PYTHON:
        return (
            f"transformers has its {name} in Python alone and never writes that file: ids must "
            "come from AutoTokenizer.from_pretrained(directory) itself."
        )
    pieces = sorted(each for each in there if each.endswith((".model", ".spm")))
    words = [each for each in ("vocab.txt", "vocab.json", "merges.txt") if each in there]
    if not pieces and "vocab.txt" not in words and len(words) < 2:
        return "Its tokenizer is not in this directory."
    found = f"{', '.join(pieces)}, which is of sentencepiece" if pieces else " and ".join(words)
    return (
        f"It has {found}. transformers converts it: "
        "AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
    )


def _class_name(folder: pathlib.Path) -> str:
    """The class of a checkpoint's tokenizer, as it is said or as is usual for the model."""
    config, settings = _read(folder, "config.json"), _read(folder, _SETTINGS)
    said = settings.get("tokenizer_class") or config.get("tokenizer_class")
    return str(said or _USUAL.get(str(config.get("model_type"))))
