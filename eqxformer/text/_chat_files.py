"""Where a checkpoint keeps its chat templates, and the special tokens that they name."""

import pathlib
from typing import Any

from eqxformer.checkpoints._json import read_json
from eqxformer.checkpoints._opening import contained, opened, read_into, shown
from eqxformer.checkpoints.errors import CheckpointError

_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_MOST_SETTINGS = 64 * 2**20  # bytes; a tokenizer's settings may list every added token
_MOST_TEMPLATE = 2**20


def templates_and_tokens(folder: pathlib.Path) -> tuple[dict[str, str], dict[str, str]]:
    """The templates in a checkpoint, by their names, and its special tokens, by theirs."""
    settings = _settings(folder)
    templates = _from_files(folder) or _from_settings(folder, settings)
    return templates, _tokens(folder, settings)


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """The settings of a tokenizer, and special tokens that older checkpoints keep apart."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            found.update(read_json(contained(folder, name), limit_bytes=_MOST_SETTINGS))
    return found


def _tokens(folder: pathlib.Path, settings: dict[str, Any]) -> dict[str, str]:
    """The special tokens that have a name: `bos_token` and the like."""
    found = {}
    for name in (f"{each}_token" for each in _NAMES):
        value = settings.get(name)
        if value is None:
            continue
        text = value.get("content") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: `{name}` must be text, or have it as its "
                f"`content`; got {shown(value)}."
            )
        found[name] = text
    return found


def _from_files(folder: pathlib.Path) -> dict[str, str]:
    """The templates that have files of their own."""
    found = {}
    if (folder / "chat_template.jinja").exists():
        found["default"] = _text(folder, "chat_template.jinja")
    for path in sorted(folder.glob("additional_chat_templates/*.jinja")):
        found[path.stem] = _text(folder, str(path.relative_to(folder)))
    return found


def _text(folder: pathlib.Path, name: str) -> str:
    path = contained(folder, name)
    with opened(path) as (file, (_, _, size, _)):
        if size > _MOST_TEMPLATE:
            raise CheckpointError(f"{path} may hold {_MOST_TEMPLATE:,} bytes; it holds {size:,}.")
        data = bytearray(size)
        read_into(path, file, 0, memoryview(data))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error.reason}.") from None


def _from_settings(folder: pathlib.Path, settings: dict[str, Any]) -> dict[str, str]:
    """The templates in `tokenizer_config.json`: one, or a list of named ones."""
    given = settings.get("chat_template")
    if given is None:
        return {}
    listed = given if isinstance(given, list) else [{"name": "default", "template": given}]
    found = {}
    for each in listed:
        each = each if isinstance(each, dict) else {"template": each}
        name, template = each.get("name"), each.get("template")
        if not isinstance(name, str) or not isinstance(template, str):
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: `chat_template` must be text, or a list of "
                f'{{"name": ..., "template": ...}}; got {shown(each)}.'
            )
        found[name] = template
    return found
