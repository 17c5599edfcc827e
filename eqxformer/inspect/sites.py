"""The names of values inside of a model: of every part its output, its input, and its own sites."""

import difflib
import fnmatch
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import equinox as eqx

from eqxformer.blocks.block import AbstractBlock
from eqxformer.checkpoints.names import unrolled
from eqxformer.layers.abstract_attention import AbstractAttention
from eqxformer.layers.experts import Experts
from eqxformer.layers.taps import HELD


class Site(NamedTuple):
    """One value: the path of its part, what it is of the part, and which head of it, if it has any.

    Heads are the third axis from the end.
    """

    path: str
    what: str
    has_heads: bool = False
    head: int | None = None

    @property
    def name(self) -> str:
        """`blocks.3.attention.heads[2]`; of an output, the path alone."""
        name = self.path if self.what == "output" else f"{self.path}.{self.what}"
        number = "" if self.head is None else f"[{self.head}]"
        return f"{name}{number}".removeprefix(".")


def sites(model: eqx.Module, *patterns: str) -> tuple[str, ...]:
    """The names that `capture` and `patch` know in a model; of those that match, if any are given.

    Of every part: its path, which is its output, and `path.input`, the first of its arguments. Of a
    block `residual`, the stream that leaves it. Of attention, what is in `ATTENTION_SITES`:
    `queries`, `keys` and `values` per head as the scores are made of them, `scores` with their bias
    and before the mask, `weights`, and `heads`, each head's result before the output projection.
    Of a mixture of experts `chosen_experts` and `chosen_weights`. One head of many is `weights[2]`.

    Arguments:
        patterns: names in which `*` stands for any one name or number, also within a name, and `**`
            for any number of them.

    Raises `ValueError` for a pattern that matches nothing.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=65, dim=16, layers=2, heads=2, context=8)
        >>> model = config.build(key=jax.random.key(0))
        >>> ef.sites(model, "blocks.*.residual", "blocks.0.attention.we*")
        ('blocks.0.residual', 'blocks.1.residual', 'blocks.0.attention.weights')
    """
    if not patterns:
        return tuple(site.name for site in every_site(model))
    every = every_site(model)
    return tuple(site.name for pattern in patterns for site in matching(every, pattern))


def matching(every: Sequence[Site], pattern: str) -> list[Site]:
    """The sites whose names match; `ValueError`, with what there is, where none does."""
    name, head = _without_head(pattern)
    found = [site for site in every if site.name == name]
    if "*" in name:
        found = [site for site in every if _is_meant(name, site) and fits(name, site.name)]
    if head is not None:
        found = [site._replace(head=head) for site in found if site.has_heads]
    if not found:
        raise ValueError(_nothing(pattern, every, head))
    return found


def fits(pattern: str, name: str) -> bool:
    """Whether a whole name matches a pattern."""
    return _fits(pattern.split("."), name.split("."))


def _fits(pattern: list[str], names: list[str]) -> bool:
    if not pattern or not names:
        return not names and all(each == "**" for each in pattern)
    if pattern[0] == "**":
        return _fits(pattern[1:], names) or _fits(pattern, names[1:])
    literal = pattern[0].replace("[", "[[]")
    return fnmatch.fnmatchcase(names[0], literal) and _fits(pattern[1:], names[1:])


def parts(node: Any, path: str = "") -> Iterator[tuple[str, eqx.Module]]:
    """Every module in a model that is called, by its path, blocks numbered singly.

    What a mixture of experts stacks is left out: it runs on rows that are sorted by expert.
    """
    if isinstance(node, eqx.Module):
        if callable(node) or hasattr(node, "run"):
            yield path, node
        skipped = {HELD, "experts" if isinstance(node, Experts) else ""}
        names = [name for name in node.__dataclass_fields__ if name not in skipped]
        children = [(name, getattr(node, name, None)) for name in names]
    elif isinstance(node, dict):
        children = list(node.items())
    elif isinstance(node, (tuple, list)):
        children = list(enumerate(node))
    else:
        return
    for name, child in children:
        yield from parts(child, f"{path}.{name}".removeprefix("."))


def every_site(model: eqx.Module) -> list[Site]:
    """All sites of a model, part by part."""
    return [
        site
        for path, part in parts(unrolled(eqx.filter_eval_shape(lambda: model)))
        for site in _of_part(path, part)
    ]


def _of_part(path: str, part: eqx.Module) -> Iterator[Site]:
    if path:
        yield Site(path, "output")
    yield Site(path, "input")
    has_heads = isinstance(part, AbstractAttention)
    yield from (Site(path, what, has_heads) for what in getattr(type(part), "sites", ()))
    if isinstance(part, AbstractBlock):
        yield Site(path, "residual")


def _without_head(pattern: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(.*?)\[(\d+)\]", pattern)
    return (found[1], int(found[2])) if found else (pattern, None)


def _is_meant(pattern: str, site: Site) -> bool:
    """Whether stars may stand for this: at the end they do for parts, which are their outputs."""
    return site.what == "output" or pattern.split(".")[-1] not in ("*", "**")


def _nothing(pattern: str, every: Sequence[Site], head: int | None) -> str:
    names = [site.name for site in every]
    known = {star(name): None for name in names} if "*" in pattern else names
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
    close = f" Close are {', '.join(f'`{name}`' for name in near)}." if near else ""
    heads = " Only values of attention have heads to choose from." if head is not None else ""
    return (
        f"`{pattern}` names nothing in the model.{heads}{close} `ef.sites(model)` lists all "
        f"{len(names)} names."
    )


def star(name: str) -> str:
    """A name with `*` for every number."""
    return ".".join("*" if word.isdigit() else word for word in name.split("."))
