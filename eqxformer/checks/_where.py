"""Where in a model something happened, read from the stack: `blocks.3.attention.query`.

Costs nothing until something fails: no module knows its own name, so the frames that are running
are asked, from the failing call outwards, and each module is looked for in those that led to it.
"""

import dataclasses
import os
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import equinox as eqx
import jax
from jaxtyping import jaxtyped

# Files whose frames say nothing about the model: these checks, and what calls methods for Equinox.
_HIDDEN = (
    os.path.dirname(__file__),
    jaxtyped.__code__.co_filename,
    os.path.dirname(eqx.__file__),
)

# What is called in the library is told by the message: a path in the model says more than frames.
_LIBRARY = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")


def module_path(owner: Any) -> str:
    """The path from the outermost module that is running to `owner`; "" if that is the outermost.

    Arguments:
        owner: what is called `self` where the failure is, or None outside of methods.

    A module that JAX has taken apart and rebuilt (in a scan, under remat) is recognised by its
    class, with `*` for its index; one that is not part of its caller appears as `<Class>`, or not
    at all if it is `owner`.
    """
    running = list(_running(owner))
    if not running:
        return ""
    child, names = running[0][0], []
    while len(running) > 1:
        callers = running[1:]
        step, skipped = _step(child, callers)
        if step is not None:
            names.append(step)
        elif child is not owner:
            names.append(f"<{type(child).__name__}>")
        running = callers[skipped:]
        child = running[0][0]
    return ".".join(reversed(names))


def _running(owner: Any) -> Iterator[tuple[Any, bool]]:
    """The modules whose methods are running, innermost first, and whether they are being made."""
    frame: FrameType | None = sys._getframe(1)
    last, candidate, made = None, owner, False
    while frame is not None:
        if _is_part(candidate) and candidate is not last:
            yield candidate, made
            last = candidate
        code = frame.f_code
        is_method = code.co_varnames[:1] == ("self",)
        candidate = frame.f_locals.get("self") if is_method else None
        made = code.co_name == "__init__"
        frame = frame.f_back


def _is_part(candidate: Any) -> bool:
    """Whether this is a module of somebody's model, not one of Equinox's wrappers of functions."""
    home = type(candidate).__module__
    wrapper = home.startswith("equinox.") and not home.startswith("equinox.nn")
    return isinstance(candidate, eqx.Module) and not wrapper


def _step(child: Any, callers: list[tuple[Any, bool]]) -> tuple[str | None, int]:
    """The path of `child` in the nearest of its callers that has it, and how many were passed."""
    inside = [list(_inside(caller, (), set())) for caller, _ in callers]
    for i, parts in enumerate(inside):
        for path, part in parts:
            if part is child:
                return ".".join(path), i
    for i, (parts, (_, made)) in enumerate(zip(inside, callers, strict=True)):
        # A module that is being made has some of its parts only, which may be of this class.
        alike = {_starred(path) for path, part in parts if type(part) is type(child)}
        if len(alike) == 1 and not made:
            return alike.pop(), i
    return None, 0


def _starred(path: tuple[str, ...]) -> str:
    return ".".join("*" if name.isdecimal() else name for name in path)


def _inside(node: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[Any, Any]]:
    """Every module, dataclass and container inside `node`, as (path, part)."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if path:
        yield path, node
    for name, item in _items(node):
        if dataclasses.is_dataclass(item) or isinstance(item, tuple | list | dict):
            yield from _inside(item, (*path, name), seen)


def _items(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [(str(key), item) for key, item in node.items()]
    # A module with items, as a stack of blocks, is spoken of by them, however it stores them.
    if isinstance(node, tuple | list) or hasattr(type(node), "__iter__"):
        return [(str(i), item) for i, item in enumerate(node)]
    return list(vars(node).items()) if hasattr(node, "__dict__") else []


def tidy(traceback: TracebackType | None) -> TracebackType | None:
    """`traceback` without the frames of the checks and of the library: the user's own come last.

    With JAX_TRACEBACK_FILTERING=off, which shows all of JAX's frames too, the library's stay.
    """
    whole = jax.config.jax_traceback_filtering == "off"  # pyright: ignore[reportAttributeAccessIssue]
    hidden = _HIDDEN if whole else (*_HIDDEN, _LIBRARY)
    kept = []
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(hidden):
            kept.append(traceback)
        traceback = traceback.tb_next
    tidied = None
    for entry in reversed(kept):
        tidied = TracebackType(tidied, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return tidied
