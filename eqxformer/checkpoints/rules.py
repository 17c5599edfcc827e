"""Which of a checkpoint's tensors hold which of our arrays: a table that reads both ways.

A rule names parts of ours and of theirs, `*` standing for the number of a block, and says how the
numbers move. A name without its last word stands for all arrays of that part, so that
`turned("blocks.*.attention.query", "layers.*.self_attn.q_proj")` is about weight and bias alike.
"""

import dataclasses
import re
from collections.abc import Mapping

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.moves import Fused, Move, Reshaped, Reversed, Same, Shape, Stacked, Turned


@dataclasses.dataclass(frozen=True)
class Rule:
    """Parts or arrays of ours, tensors of theirs, and the move between them.

    In `theirs`, `*` is the number of the block and `#` runs over the entries of a stacked array.
    """

    ours: tuple[str, ...]
    theirs: str
    move: Move


Rules = tuple[Rule, ...]


def same(ours: str, theirs: str) -> Rule:
    """A part stored as ours is: norms, tables."""
    return Rule((ours,), theirs, Same())


def turned(ours: str, theirs: str) -> Rule:
    """A linear map stored as [out, in]."""
    return Rule((ours,), theirs, Turned())


def convolved(ours: str, theirs: str) -> Rule:
    """A convolution stored as [out, in, kernel]."""
    return Rule((ours,), theirs, Reversed())


def reshaped(ours: str, theirs: str, *, ones: int = 1) -> Rule:
    """An array stored with axes of one in front."""
    return Rule((ours,), theirs, Reshaped(ones))


def fused(ours: tuple[str, ...], theirs: str, *, groups: int = 1, turned: bool = True) -> Rule:
    """Several linear maps in one tensor; see `Fused`."""
    return Rule(ours, theirs, Fused(groups, turned))


def stacked(ours: str, theirs: str, each: Move = Turned()) -> Rule:
    """A stacked array of which they store every entry, `#`, as a tensor of its own."""
    return Rule((ours,), theirs, Stacked(each))


def under(ours: str, theirs: str, *rules: Rule) -> Rules:
    """Rules with a prefix on either side; an empty prefix adds nothing."""

    def join(prefix: str, rest: str) -> str:
        return f"{prefix}.{rest}" if prefix else rest

    return tuple(
        dataclasses.replace(
            rule,
            ours=tuple(join(ours, name) for name in rule.ours),
            theirs=join(theirs, rule.theirs),
        )
        for rule in rules
    )


def unprefixed(rules: Rules, prefix: str) -> Rules:
    """Rules for a base model by itself, whose tensors go without the prefix."""
    return tuple(
        dataclasses.replace(rule, theirs=rule.theirs.removeprefix(prefix)) for rule in rules
    )


def within(ours: str, rules: Rules) -> Rules:
    """Those rules that are about one part of ours, for that part by itself."""
    start = f"{ours}."
    return tuple(
        dataclasses.replace(rule, ours=tuple(name.removeprefix(start) for name in rule.ours))
        for rule in rules
        if all(name.startswith(start) for name in rule.ours)
    )


@dataclasses.dataclass(frozen=True)
class Binding:
    """A rule at one place: these arrays of ours are in these tensors of theirs."""

    ours: tuple[str, ...]
    shapes: tuple[Shape, ...]
    theirs: tuple[str, ...]
    move: Move

    def their_shapes(self) -> dict[str, Shape]:
        """The shape of each of their tensors by its name."""
        return dict(zip(self.theirs, self.move.shapes(self.shapes), strict=True))


def bind(rules: Rules, shapes: Mapping[str, Shape]) -> list[Binding]:
    """Where every array of a model is, given the shapes of all by their paths.

    A later rule about the same part takes precedence over an earlier one, so that an architecture
    can take another's table and add what is different. Raises `CheckpointError` for an array that
    no rule knows, or for a rule that finds only some of the arrays it would put together.
    """
    known = {name: rule for rule in rules for name in rule.ours}
    bound: dict[tuple[str, ...], Binding] = {}
    for path in shapes:
        binding = _binding(path, known, shapes)
        bound[binding.ours] = binding
    return list(bound.values())


def _binding(path: str, known: Mapping[str, Rule], shapes: Mapping[str, Shape]) -> Binding:
    pattern, places = _starred(path)
    stem, _, leaf = pattern.rpartition(".")
    rule, ending = (known.get(pattern), "") if pattern in known else (known.get(stem), f".{leaf}")
    if rule is None:
        raise CheckpointError(f"No rule of this architecture says where `{path}` is stored.")
    ours = tuple(_placed(name + ending, places) for name in rule.ours)
    lost = [name for name in ours if name not in shapes]
    if lost:
        raise CheckpointError(f"`{path}` is stored together with {lost}, which are not there.")
    theirs = _placed(rule.theirs, places) + ending
    count = shapes[ours[0]][0] if "#" in theirs else 1
    names = tuple(theirs.replace("#", str(i)) for i in range(count)) if "#" in theirs else (theirs,)
    return Binding(ours, tuple(shapes[name] for name in ours), names, rule.move)


def _starred(path: str) -> tuple[str, list[str]]:
    """A path with `*` in place of its numbers, and the numbers."""
    words = path.split(".")
    numbers = [word for word in words if word.isdigit()]
    return ".".join("*" if word.isdigit() else word for word in words), numbers


def _placed(pattern: str, numbers: list[str]) -> str:
    """A pattern with the numbers in place of its `*`."""
    left = iter(numbers)
    return re.sub(r"\*", lambda _: next(left), pattern)
