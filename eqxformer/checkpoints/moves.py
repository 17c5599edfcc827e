"""How the numbers of a checkpoint's tensors lie in our arrays: reversible, and nothing but moves.

A move takes the tensors of one rule to the arrays of one rule and back. It only moves numbers, so
that it takes gradients over just as it takes weights, and writing undoes reading bit for bit.
"""

import abc
import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

Shape = tuple[int, ...]


class Move(abc.ABC):
    """One way to lay out the same numbers; `theirs` are a file's tensors, `ours` our arrays."""

    @abc.abstractmethod
    def read(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        """Our arrays, of the shapes `ours`, from tensors of the shapes that `shapes` gives."""

    @abc.abstractmethod
    def write(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Their tensors from our arrays."""

    @abc.abstractmethod
    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        """The shapes of their tensors, given those of our arrays."""

    def outputs(self) -> "Fused | None":
        """How the outputs of linear maps lie in their tensor, stored as [out, in]; None for others.

        Adapters of a map are stored so, whichever way its weight is turned.
        """
        return None


@dataclasses.dataclass(frozen=True)
class Same(Move):
    """The tensor as it stands."""

    def read(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        return list(theirs)

    def write(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(ours)

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return list(ours)

    def outputs(self) -> "Fused":
        return Fused()


@dataclasses.dataclass(frozen=True)
class Turned(Move):
    """A weight stored as [out, in] where ours is [in, out]; a bias stays as it is."""

    def read(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        return [turn(tensor) for tensor in theirs]

    def write(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [turn(array) for array in ours]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [turn_shape(shape) for shape in ours]

    def outputs(self) -> "Fused":
        return Fused()


@dataclasses.dataclass(frozen=True)
class Reversed(Move):
    """A tensor whose axes stand the other way round: [out, in, kernel], ours [kernel, in, out]."""

    def read(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor.T for tensor in theirs]

    def write(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [array.T for array in ours]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [shape[::-1] for shape in ours]


@dataclasses.dataclass(frozen=True)
class Reshaped(Move):
    """A tensor with axes of one in front that ours does not have."""

    ones: int = 1

    def read(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        return [tensor.reshape(tensor.shape[self.ones :]) for tensor in theirs]

    def write(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [array.reshape(self.shapes([array.shape])[0]) for array in ours]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        return [(1,) * self.ones + shape for shape in ours]


@dataclasses.dataclass(frozen=True)
class Fused(Move):
    """Several of our projections in one of their tensors, side by side along its outputs.

    With `groups`, the outputs are so many equal groups, in each of which every projection has its
    share: one group per head where query, key and value take turns head by head (GPT-NeoX), one
    per number where gate and up alternate (gpt-oss). `turned` says whether they store [out, in].
    """

    groups: int = 1
    turned: bool = True

    def read(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        (whole,) = theirs
        whole = turn(whole) if self.turned else whole
        shares = [shape[-1] // self.groups for shape in ours]
        grouped = whole.reshape(*whole.shape[:-1], self.groups, sum(shares))
        pieces = np.split(grouped, np.cumsum(shares)[:-1], axis=-1)
        return [piece.reshape(shape) for piece, shape in zip(pieces, ours, strict=True)]

    def write(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        pieces = [a.reshape(*a.shape[:-1], self.groups, a.shape[-1] // self.groups) for a in ours]
        whole = np.concatenate(pieces, axis=-1)
        whole = whole.reshape(*whole.shape[:-2], -1)
        return [turn(whole) if self.turned else whole]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        if len({shape[:-1] for shape in ours}) > 1:
            raise ValueError(f"all must have the same inputs; got the shapes {[*ours]}.")
        if any(shape[-1] % self.groups for shape in ours):
            raise ValueError(f"`groups` must divide all outputs; got {self.groups} for {[*ours]}.")
        whole = (*ours[0][:-1], sum(shape[-1] for shape in ours))
        return [turn_shape(whole) if self.turned else whole]

    def outputs(self) -> "Fused":
        return dataclasses.replace(self, turned=True)


@dataclasses.dataclass(frozen=True)
class Stacked(Move):
    """One tensor of theirs for each entry of the first axis of ours, such as one per expert."""

    each: Move = Turned()

    def read(self, theirs: Sequence[np.ndarray], ours: Sequence[Shape]) -> list[np.ndarray]:
        (shape,) = ours
        out = np.empty(shape, holding({tensor.dtype for tensor in theirs}))
        for place, tensor in zip(out, theirs, strict=True):
            place[...] = self.each.read([tensor], [shape[1:]])[0]
        return [out]

    def write(self, ours: Sequence[np.ndarray]) -> list[np.ndarray]:
        (whole,) = ours
        return [self.each.write([array])[0] for array in whole]

    def shapes(self, ours: Sequence[Shape]) -> list[Shape]:
        (shape,) = ours
        return self.each.shapes([shape[1:]]) * shape[0]


def holding(dtypes: Collection[np.dtype]) -> np.dtype:
    """The smallest floating-point type with all numbers of several: of bfloat16 and float16, say,
    float32."""
    widest = max(dtypes, key=lambda each: each.itemsize)
    as_wide = [each for each in dtypes if each.itemsize == widest.itemsize]
    return widest if len(as_wide) == 1 else np.dtype(np.float32)


def turn(array: np.ndarray) -> np.ndarray:
    """An array with its last two axes exchanged; one with a single axis as it is."""
    return array.swapaxes(-1, -2) if array.ndim > 1 else array


def turn_shape(shape: Shape) -> Shape:
    """The shape of a turned array."""
    return (*shape[:-2], shape[-1], shape[-2]) if len(shape) > 1 else shape
