"""Which of a checkpoint's tensors hold which of our arrays: a table that reads both ways.

A rule names parts of ours and of theirs, `*` standing for the number of a block, and says how the
numbers move. A name without its last word stands for all arrays of that part, so that
`turned("blocks.*.attention.query", "layers.*.self_attn.q_proj")` is about weight and bias alike.
"""

import dataclasses
import re
import typing
from collections.abc import Mapping

from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.moves import (
    Fused,
    Move,
    Reshaped,
    Reversed,
    Same,
    Shape,
    Stacked,
    Turned,
)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Parts or arrays of ours, tensors of theirs, and the move between them.

    In `theirs`, `*` is the number of the block and `#` runs over the entries of a stacked array.
    """

    ours: tuple[str, ...]
    theirs: str
    move: Move


Rules = tuple[Rule, ...]
_MOST = 2**18  # tensors of a model; a trillion parameters in experts take some 70,000


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
    can take another's table and add what is different; a rule about one array takes precedence over
    those about its whole part. Every array is in one binding, every tensor too.

    Raises `CheckpointError` with the path of an array that no rule knows, that is stored together
    with one that is not there or is stored elsewhere, in the same tensor as another, in a layout
    that its shape does not allow, or in more tensors than any checkpoint has.
    """
    known = {name: rule for rule in rules for name in rule.ours}
    found: dict[str, Binding] = {}
    stored: dict[str, str] = {}  # our array by their tensor
    for path in shapes:
        found[path] = binding = _binding(path, known, shapes)
        for name in binding.theirs if path == binding.ours[0] else ():
            if name in stored:
                raise CheckpointError(f"`{stored[name]}` and `{path}` are both stored as {name}.")
            stored[name] = path
        if len(stored) > _MOST:
            raise CheckpointError(f"`{path}` and those before it are in more than {_MOST} tensors.")
    for path, binding in found.items():
        for other in binding.ours:
            if found[other].ours != binding.ours:
                raise CheckpointError(
                    f"`{path}` is stored in {binding.theirs[0]} together with `{other}`, which "
                    f"another rule looks for in {found[other].theirs[0]}."
                )
    return list({binding.ours: binding for binding in found.values()}.values())


@typing.no_type_check  # called for every array, with all of them
def _binding(path: str, known: Mapping[str, Rule], shapes: Mapping[str, Shape]) -> Binding:
    pattern, places = _starred(path)
    stem, _, leaf = pattern.rpartition(".")
    rule, ending = (known.get(pattern), "") if pattern in known else (known.get(stem), f".{leaf}")
    if rule is None:
        raise CheckpointError(f"No rule of this architecture says where `{path}` is stored.")
    if rule.theirs.count("*") > len(places):
        raise CheckpointError(f"`{path}` has no number for every `*` of {rule.theirs}.")
    ours = tuple(_placed(name + ending, places) for name in rule.ours)
    lost = [name for name in ours if name not in shapes]
    if lost:
        raise CheckpointError(f"`{path}` is stored together with {lost}, which are not there.")
    held = tuple(shapes[name] for name in ours)
    theirs = _tensors(path, rule.move, _placed(rule.theirs, places) + ending, held)
    return Binding(ours, held, theirs, rule.move)


def _tensors(path: str, move: Move, theirs: str, ours: tuple[Shape, ...]) -> tuple[str, ...]:
    """The names of the tensors that `theirs` stands for, as many as the move makes of ours."""
    names = (theirs,)
    if "#" in theirs and ours[0]:
        count = ours[0][0]
        if count > _MOST:
            raise CheckpointError(f"`{path}` would be in {count} tensors; {_MOST} are the most.")
        names = tuple(theirs.replace("#", str(i)) for i in range(count))
    try:
        stored = move.shapes(ours)
    except ValueError as error:
        raise CheckpointError(f"`{path}` cannot be stored as {theirs}: {error}") from None
    if len(stored) != len(names):
        raise CheckpointError(
            f"`{path}` is in {len(stored)} tensors, for which {theirs} has {len(names)} names."
        )
    return names


def _starred(path: str) -> tuple[str, list[str]]:
    """A path with `*` in place of its numbers, and the numbers."""
    words = path.split(".")
    numbers = [word for word in words if word.isdigit()]
    return ".".join("*" if word.isdigit() else word for word in words), numbers


def _placed(pattern: str, numbers: list[str]) -> str:
    """A pattern with the numbers in place of its `*`."""
    left = iter(numbers)
    return re.sub(r"\*", lambda _: next(left), pattern)
