"""The pages of the API: one per room of the package, with every name that the room offers."""

import importlib
import inspect
import pkgutil
import sys
from types import ModuleType
from typing import Any

import eqxformer as ef

ROOT = "eqxformer"  # the page of names that belong to no room
OUTSIDE = ("eqxformer.tour.tour",)  # offered, but not as `eqxformer.NAME`


def pages() -> dict[str, str]:
    """The text of every page by its path in the site."""
    found = rooms()
    made = {f"reference/api/{room}.md": page(room, names) for room, names in found.items()}
    return {"reference/names.md": index(found), **made}


def index(found: dict[str, list[str]]) -> str:
    """All names in alphabetical order, each with its place and the first line of what it is."""
    lines = ["# Names", "", "Each is reached as `eqxformer.NAME`.", "", "| name | |", "|---|---|"]
    every = ((place.rpartition(".")[2], room, place) for room in found for place in found[room])
    for name, room, place in sorted(every, key=lambda each: each[0].lower()):
        lines.append(f"| [`{name}`](api/{room}.md#{place}) | {first_line(place)} |")
    return "\n".join(lines) + "\n"


def first_line(place: str) -> str:
    """How the docstring of a function, a class or a module begins; nothing for other values."""
    module, _, name = place.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    says = inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value)
    return (inspect.getdoc(value) or "").partition("\n")[0] if says else ""


def rooms() -> dict[str, list[str]]:
    """The public names of every room as `eqxformer.ROOM.FILE.NAME`; the root's own names first."""
    found = {
        room: [place(importlib.import_module(f"{ROOT}.{room}"), name) for name in names]
        for room, names in public_names().items()
        if room != ROOT
    }
    own = [place(ef, name) for name in public_names()[ROOT]]
    return {ROOT: [*own, *OUTSIDE], **found}


def public_names() -> dict[str, list[str]]:
    """What is reached as `eqxformer.NAME`, by the room that offers it."""
    found = {room: list(importlib.import_module(f"{ROOT}.{room}").__all__) for room in ef._ROOMS}
    offered = {name for names in found.values() for name in names}
    own = [
        name
        for name in dir(ef)
        if not name.startswith("_")
        and name not in offered | {"Any", "TYPE_CHECKING"}
        and not inspect.ismodule(getattr(ef, name))
    ]
    return {ROOT: own, **found}


def place(module: ModuleType, name: str) -> str:
    """Where a name that a module offers is defined, as `module.NAME`; a module is itself."""
    value: Any = getattr(module, name)
    if inspect.ismodule(value):
        return value.__name__
    for home in (getattr(value, "__module__", None) or ROOT, *_below(module)):
        ours = home != ROOT and home.startswith(ROOT)
        if ours and name in vars(importlib.import_module(home)):
            return f"{home}.{name}"
    return f"{module.__name__}.{name}"  # has another name where it is defined


def page(room: str, places: list[str]) -> str:
    """One page: what the room is, then its names by the file in which they stand."""
    if room == ROOT:
        lines = ["# Beside the rooms", "", "Names of `eqxformer` that stand in no room.", ""]
    else:
        said = inspect.getdoc(importlib.import_module(f"{ROOT}.{room}")) or ""
        lines = [f"# {room.capitalize()}", "", said.partition("\n\n")[0], ""]
    files: dict[str, list[str]] = {}
    for each in sorted(places):
        files.setdefault(file_of(each), []).append(each)
    for file, inside in files.items():
        lines += [f"## {file}", ""]
        lines += [line for each in inside for line in (f"::: {each}", "")]
    return "\n".join(lines)


def file_of(place: str) -> str:
    """The file of `eqxformer.layers.norms.RMSNorm` below the package: `layers/norms.py`."""
    home = place if place in sys.modules else place.rpartition(".")[0]
    inside = "/__init__" if hasattr(importlib.import_module(home), "__path__") else ""
    return home.removeprefix(f"{ROOT}.").replace(".", "/") + f"{inside}.py"


def _below(module: ModuleType) -> list[str]:
    """The modules of a room, or of the root those that stand beside the rooms."""
    if module.__name__ == ROOT:
        return [f"{ROOT}.axes", f"{ROOT}.config", f"{ROOT}.checks"]
    return [info.name for info in pkgutil.iter_modules(module.__path__, f"{module.__name__}.")]
