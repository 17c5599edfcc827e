"""The base of every `Config`: frozen, typed, printable, editable, to and from JSON."""

import dataclasses
import difflib
import fnmatch
import functools
import importlib
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self, dataclass_transform

from beartype import BeartypeConf
from beartype.door import is_bearable

from eqxformer.strict_json import json_object

_TYPING = BeartypeConf(is_pep484_tower=True)  # an int serves where a float is asked for
_WIDTH = 100  # of a printed line
_MAX_DEPTH = 32  # nesting of a config tree; deeper JSON is hostile or a mistake


@dataclass_transform(frozen_default=True, kw_only_default=False)
@dataclasses.dataclass(frozen=True, repr=False)
class Config:
    """A frozen record of hyperparameters: `print(config)` is the architecture.

    Subclasses list typed fields and nothing else; each becomes a frozen dataclass by itself.
    Every field is checked against its annotation when the config is made, then `check` is called
    for what a type cannot say. Configs nest, singly or in tuples, to form a tree that mirrors the
    tree of modules, and every one has a `build` that makes its part.

    Example:
        >>> import eqxformer as ef
        >>> config = ef.MLP.Config(hidden=512, activation="relu")
        >>> config.edit(hidden=256).hidden
        256
        >>> ef.Config.from_json(config.to_json()) == config
        True
    """

    registry: ClassVar[dict[str, type["Config"]]] = {}
    type_name: ClassVar[str] = "Config"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, repr=False)(cls)
        name = cls.__qualname__.rpartition("<locals>.")[2].removesuffix(".Config")
        cls.type_name = name
        known = Config.registry.get(name)
        if known is None or "<locals>" in known.__qualname__ or _same_place(known, cls):
            Config.registry[name] = cls
        else:
            raise TypeError(
                f"The config name `{name}` is taken by {known.__module__}; "
                f"give the one in {cls.__module__} another name, since JSON files refer to it."
            )

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _fits(value, hints[field.name]):
                raise TypeError(
                    f"`{self.type_name}.{field.name}` must be {_spell(hints[field.name])}; "
                    f"got {_brief(value)}."
                )
            if any(isinstance(v, float) and math.isnan(v) for v in _flat(value)):
                raise ValueError(f"`{self.type_name}.{field.name}` must be a number; got nan.")
        self.check()

    def check(self) -> None:
        """Raises `ValueError` for what the annotations cannot say; nothing to say by default."""

    def edit(self, path: str = "", /, **changes: Any) -> Self:
        """This config with `changes` made at every place that `path` matches.

        Arguments:
            path: names joined by dots; `*` stands for any name or index, and a part of a name may
                be starred as in a shell. The empty path is the config itself.
            changes: new values of fields of the configs found there.

        Raises `ValueError` where the path matches nothing or a field does not exist.

        Example:
            >>> import eqxformer as ef
            >>> config = ef.families.gpt(vocab=65, dim=64, layers=2, heads=4, context=32)
            >>> config = config.edit("blocks.*.attention", window=8)
            >>> [block.attention.window for block in config.blocks]
            [8, 8]
        """
        edited, count = _edit(self, [p for p in path.split(".") if p], changes)
        if not count:
            known = sorted({_star(p) for p in paths(self) if p})
            raise ValueError(
                f"`{path}` matches nothing in {self.type_name}.{nearest(_star(path), known)} "
                f"The paths are: {', '.join(known)}."
            )
        return edited

    def to_dict(self) -> dict[str, Any]:
        """This tree as plain dicts, lists, numbers and strings; each dict names its type."""
        values = {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}
        return {"type": self.type_name, **values}

    def to_json(self) -> str:
        """This tree as JSON text, the inverse of `from_json`."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config tree that `to_dict` wrote.

        Types of this library can be named, and those of your own that are imported; nothing that
        `values` name is imported or executed. Raises `ValueError` for unknown types and keys,
        `TypeError` for values of a wrong type.
        """
        config = _from_plain(values, 0)
        if not isinstance(config, cls):
            raise ValueError(
                f"Expected a config of type {cls.type_name}; got one of "
                f"{getattr(type(config), 'type_name', type(config).__name__)}."
            )
        return config

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config tree in JSON text that `to_json` wrote; errors as in `from_dict`."""
        return cls.from_dict(json_object(text))

    def __str__(self) -> str:
        return "\n".join(_lines(self, whole=False))

    def in_full(self) -> str:
        """The tree as text with every field, where `str` leaves out those at their default.

        Example:
            >>> import eqxformer as ef
            >>> print(ef.Normal())
            Normal()
            >>> print(ef.Normal().in_full())
            Normal(std=0.02)
        """
        return "\n".join(_lines(self, whole=True))

    __repr__ = __str__


def takes_options(init: Callable[..., None]) -> Callable[..., None]:
    """Lets `Part(dim, hidden=8, key=key)` stand for `Part(dim, Part.Config(hidden=8), key=key)`.

    Wraps the `__init__` of a part whose last positional argument is `config`. Keywords that are
    not arguments of `__init__` are options of the part's own `Config`.
    """
    names = tuple(inspect.signature(init).parameters)
    position = names.index("config") - 1

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in list(kwargs) if name not in names}
        given = len(args) > position or "config" in kwargs
        if given and options:
            raise TypeError(
                f"{type(self).__name__} takes a config or options, not both; "
                f"got a config and {', '.join(options)}."
            )
        if not given:
            kwargs["config"] = type(self).Config(**options)
        init(self, *args, **kwargs)

    return wrapped


def paths(config: Config) -> dict[str, Config]:
    """Every config of a tree by its path, the root under the empty path."""
    found = {"": config}
    for name, child in _children(config):
        for path, part in paths(child).items():
            found[f"{name}.{path}" if path else name] = part
    return found


def _same_place(a: type, b: type) -> bool:
    """Whether a class is another run of the same lines, as in a notebook or after a reload."""
    return (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is of the type `hint`: every item of a tuple counts, True is no number."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    return any(_fits_one(value, option) for option in options)


def _fits_one(value: Any, hint: Any) -> bool:
    if isinstance(value, tuple) and typing.get_origin(hint) is tuple:
        items = typing.get_args(hint)
        items = items[:1] * len(value) if items[1:] == (...,) else items
        return len(items) == len(value) and all(map(_fits, value, items))
    if isinstance(value, bool) and hint in (int, float):
        return False
    return is_bearable(value, hint, conf=_TYPING)


def _brief(value: Any) -> str:
    """`value` for an error: configs by their names, of a long tuple what differs."""
    if isinstance(value, Config):
        return f"{value.type_name}(...)"
    if not isinstance(value, tuple):
        return repr(value)
    items = list(map(_brief, value))
    return f"({', '.join(items if len(items) < 5 else [*dict.fromkeys(items), '...'])})"


def _flat(value: Any) -> list[Any]:
    """The items of nested tuples."""
    return [v for item in value for v in _flat(item)] if isinstance(value, tuple) else [value]


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _spell(hint: Any) -> str:
    if _is_union(hint):
        return " or ".join(_spell(h) for h in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(a) for a in typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, Config):
        return hint.__qualname__
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _children(config: Config) -> list[tuple[str, Config]]:
    """The configs directly below, by field name or `field.index`."""
    below = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Config):
            below.append((field.name, value))
        elif isinstance(value, tuple):
            below += [(f"{field.name}.{i}", v) for i, v in enumerate(value) if _is_config(v)]
    return below


def _is_config(value: Any) -> bool:
    return isinstance(value, Config)


def _star(path: str) -> str:
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def _edit(node: Any, path: list[str], changes: Mapping[str, Any]) -> tuple[Any, int]:
    if not path:
        return _replace(node, changes), 1
    head, rest = path[0], path[1:]
    if isinstance(node, tuple):
        pairs = [(str(i), v) for i, v in enumerate(node)]
    else:
        pairs = [(f.name, getattr(node, f.name)) for f in dataclasses.fields(node)]
    new, count, done = {}, 0, {}
    for name, value in pairs:
        inner = isinstance(value, Config) or (
            isinstance(value, tuple) and any(map(_is_config, value))
        )
        if inner and fnmatch.fnmatchcase(name, head) and (rest or isinstance(value, Config)):
            if id(value) not in done:  # most blocks are one and the same config
                done[id(value)] = _edit(value, rest, changes)
            new[name], found = done[id(value)]
            count += found
    if not count:
        return node, 0
    if isinstance(node, tuple):
        return tuple(new.get(str(i), v) for i, v in enumerate(node)), count
    return dataclasses.replace(node, **new), count


def _replace(config: Config, changes: Mapping[str, Any]) -> Config:
    names = [f.name for f in dataclasses.fields(config)]
    _refuse_unknown(config.type_name, changes, names)
    return dataclasses.replace(config, **changes)


def _refuse_unknown(type_name: str, given: Mapping[str, Any], names: list[str]) -> None:
    for key in given:
        if key not in names:
            raise ValueError(
                f"{type_name} has no field `{key}`.{nearest(key, names)} "
                f"Its fields are: {', '.join(names)}."
            )


def nearest(name: Any, names: Iterable[str]) -> str:
    """` Did you mean ...?` with the name that is most like this one; nothing where none is."""
    spelled = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name).lower(), spelled, n=1)
    return f" Did you mean `{spelled[near[0]]}`?" if near else ""


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def _from_plain(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise ValueError(f"A config tree may be {_MAX_DEPTH} levels deep; this one is deeper.")
    if isinstance(value, list):
        return tuple(_from_plain(v, depth + 1) for v in value)
    if value in ("inf", "-inf"):
        return float(value)
    if not isinstance(value, Mapping):
        return value
    name = value.get("type")
    cls = _type_named(name)
    if cls is None:
        raise ValueError(
            f"`{name}` is not a known type of config.{nearest(name, Config.registry)} Known are "
            f"{', '.join(sorted(Config.registry))}. One of your own must be imported first."
        )
    given = {k: v for k, v in value.items() if k != "type"}
    fields = dataclasses.fields(cls)
    _refuse_unknown(cls.type_name, given, [f.name for f in fields])
    missing = [f.name for f in fields if _required(f) and f.name not in given]
    if missing:
        raise ValueError(f"{cls.type_name} needs {', '.join(f'`{m}`' for m in missing)}.")
    return cls(**{k: _from_plain(v, depth + 1) for k, v in given.items()})


def _type_named(name: Any) -> type[Config] | None:
    """The type of this name; if there is none yet, all that this library has is imported first."""
    if not isinstance(name, str):
        return None
    if name not in Config.registry:
        importlib.import_module("eqxformer")._import_rooms()
        importlib.import_module("eqxformer.training.recipes")
    return Config.registry.get(name)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _lines(config: Config, whole: bool, indent: int = 0, label: str = "") -> list[str]:
    """The tree as indented text; fields at their default only if `whole`, equal neighbours folded.

    The first line begins with `label`; `indent` is where it will stand, for the width of lines.
    """
    shown = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        usual = not whole and not _required(field) and value == field.default
        if field.repr and not usual:
            shown.append(_field_lines(field.name, value, whole, indent + 2))
    line = f"{label}{config.type_name}({', '.join(lines[0] for lines in shown)})"
    if all(len(lines) == 1 for lines in shown) and indent + len(line) < _WIDTH:
        return [line]
    body = [f"  {line}" for lines in shown for line in (*lines[:-1], lines[-1] + ",")]
    return [f"{label}{config.type_name}(", *body, ")"]


def _field_lines(name: str, value: Any, whole: bool, indent: int) -> list[str]:
    if isinstance(value, Config):
        return _lines(value, whole, indent, f"{name}=")
    if isinstance(value, tuple) and any(map(_is_config, value)):
        lines = [f"{name}=("]
        for start, stop, item in _runs(value):
            label = f"{start}: " if stop == start else f"{start}..{stop}: "
            given = _is_config(item)
            body = _lines(item, whole, indent + 2, label) if given else [f"{label}{item!r}"]
            lines += [f"  {line}" for line in (*body[:-1], body[-1] + ",")]
        return [*lines, ")"]
    return [f"{name}={value!r}"]


def _runs(values: tuple[Any, ...]) -> list[tuple[int, int, Any]]:
    runs: list[tuple[int, int, Any]] = []
    for i, value in enumerate(values):
        if runs and runs[-1][2] == value:
            runs[-1] = (runs[-1][0], i, value)
        else:
            runs.append((i, i, value))
    return runs
