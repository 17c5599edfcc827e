"""The pages of configs and of axis words, from the classes and the glossary themselves."""

import dataclasses
import importlib
import inspect
import re
from typing import Any

import eqxformer as ef
from eqxformer.config import Config, _spell

SIZES: dict[str, Any] = {"vocab": 28, "dim": 32, "layers": 2, "heads": 4}
ROOMS = ("layers", "blocks", "models", "adapters", "data", "losses", "optimizers", "sharding")
ROOMS += ("inspect", "training", "training.recipes")
FAMILIES: dict[str, Config] = {
    "transformer": ef.families.transformer(**SIZES, hidden=64),
    "gpt": ef.families.gpt(**SIZES, context=16),
    "llama": ef.families.llama(**SIZES, hidden=64),
    "t5": ef.families.t5(**SIZES, head_dim=8, hidden=64),
    "bert": ef.families.bert(**SIZES, hidden=64),
}
CONFIGS = """# Configs

A config is a frozen record; configs nest to form a tree that mirrors the tree of modules.
`print(config)` is the architecture, `config.edit(path, **changes)` changes it wherever the path
matches, `config.build(key=key)` makes the model, `config.to_json()` and `Config.from_json(text)`
write and read it. Fields at their default are not printed, which `config.in_full()` has too, and
equal neighbours stand once.

"""
AXES = """# Axis words

Every array in a signature and every parameter has its axes written down in these words, once. The
run-time checks, the parameter table of `ef.table(model)` and the rules of sharding read them there.

| word | what there are so many of |
|---|---|
"""


def pages() -> dict[str, str]:
    """Both pages by their paths in the site."""
    axes = "".join(f"| `{word}` | {meaning} |\n" for word, meaning in ef.GLOSSARY.items())
    configs = CONFIGS + families() + every()
    return {"reference/configs.md": configs, "reference/axes.md": AXES + axes}


def families() -> str:
    """The tree of every family as it is printed."""
    parts = ["## Families\n"]
    for name, config in FAMILIES.items():
        said = (inspect.getdoc(getattr(ef.families, name)) or "").partition("\n")[0]
        parts.append(f"### {name}\n\n{said}\n\n```text\n{config}\n```\n")
    return "\n".join(parts)


def every() -> str:
    """A table of fields for every config of the library, by room."""
    parts = ["\n## Every config\n"]
    for room in ROOMS:
        importlib.import_module(f"eqxformer.{room}")
        found = {n: c for n, c in Config.registry.items() if room_of(c) == room}
        parts.append(f"### {room.rpartition('.')[2].capitalize()}\n")
        parts += [table(name, found[name]) for name in sorted(found) if fields(found[name])]
    return "\n".join(parts)


def room_of(cls: type[Config]) -> str:
    """The innermost of the rooms that a class stands in."""
    inside = (room for room in ROOMS if cls.__module__.startswith(f"eqxformer.{room}."))
    return max(inside, key=len, default="")


def table(name: str, cls: type[Config]) -> str:
    """The fields of one config."""
    lines = [f"**`{name}`**: {(inspect.getdoc(cls) or '').partition(chr(10) * 2)[0]}\n"]
    lines += ["| field | type | default | |", "|---|---|---|---|"]
    hints, said = inspect.get_annotations(cls), {}
    for base in reversed(cls.__mro__):  # what a class says of a field holds for those made of it
        said |= arguments(inspect.cleandoc(base.__doc__ or ""))
    for field in fields(cls):
        default = "" if field.default is dataclasses.MISSING else f"`{_one_line(field.default)}`"
        spelled = _spell(hints.get(field.name, field.type)).replace("|", "or")
        about = said.get(field.name, "").replace("|", "&#124;")
        lines.append(f"| `{field.name}` | `{spelled}` | {default} | {about} |")
    return "\n".join(lines) + "\n"


def arguments(text: str) -> dict[str, str]:
    """What a docstring says of each argument; of several on one line, the same of each.

    Example:
        >>> arguments("A part.\\n\\nArguments:\\n    up, down: the\\n        two maps.\\n\\nMore.")
        {'up': 'the two maps.', 'down': 'the two maps.'}
    """
    section = re.search(r"^Arguments:\n((?: {4}.*\n?|\n)*)", text, flags=re.MULTILINE)
    entries = re.split(r"^ {4}(?=\w)", section[1] if section else "", flags=re.MULTILINE)
    found = (entry.partition(": ") for entry in entries if ": " in entry)
    return {n: " ".join(said.split()) for names, _, said in found for n in names.split(", ")}


def fields(cls: type[Config]) -> tuple[dataclasses.Field, ...]:
    """The fields of a config that are printed."""
    return tuple(field for field in dataclasses.fields(cls) if field.repr)


def _one_line(value: object) -> str:
    return " ".join(str(value).split()) if isinstance(value, Config) else repr(value)
