"""The tensors of a checkpoint by the names that their architecture gives them today."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

# What old checkpoints call the gain and the bias of a layer norm.
_OLD = {".weight": ".gamma", ".bias": ".beta"}


class Tensors(Protocol):
    """Named tensors that can be read one by one."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor."""
        ...


@dataclasses.dataclass(frozen=True)
class Computed:
    """A tensor that follows from the settings: its shape, and what makes its numbers."""

    shape: tuple[int, ...]
    numbers: Callable[[], np.ndarray]


class Stored:
    """Tensors found with or without the prefix of their base model, and under their old names.

    Arguments:
        tensors: what a file holds.
        prefix: what stands before the names of the base model's tensors in a model with a head,
            `bert.` say; files of the base model alone go without.
    """

    def __init__(self, tensors: Tensors, prefix: str = "") -> None:
        self.tensors, self.prefix = tensors, prefix
        self.names = frozenset(tensors.names)
        self.repeats: set[str] = set()  # tensors that are there twice, by names of theirs
        self.aliases: dict[str, str] = {}  # what a tensor is called that is not under its name

    def find(self, name: str) -> str | None:
        """The name in the file of the tensor with this name, if it is there."""
        name = self.aliases.get(name, name)
        return next((each for each in self._spellings(name) if each in self.names), None)

    def read(self, name: str) -> np.ndarray:
        """The numbers of the tensor with this name, which must be there."""
        return self.tensors.read(self._there(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor with this name, which must be there."""
        return self.tensors.shape(self._there(name))

    def equal(self, a: str, b: str) -> bool:
        """Whether two tensors, both of which are there, have the same bits."""
        one, other = self.read(a), self.read(b)
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return np.array_equal(one.view(np.uint8), other.view(np.uint8))

    def call(self, name: str, other: str) -> None:
        """Says that the tensor with this name is stored as `other`."""
        self.aliases |= dict.fromkeys(self._spellings(name), other)

    def _there(self, name: str) -> str:
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        return found

    def _spellings(self, name: str) -> list[str]:
        """A name as it is, without and with the prefix, and each of these as it once was."""
        found = [name]
        if self.prefix:
            bare = name.removeprefix(self.prefix)
            found.append(bare if bare != name else self.prefix + name)
        old: list[str] = []
        for each in found:
            for new, once in _OLD.items():
                if each.endswith(new):
                    old.append(each.removesuffix(new) + once)
        return found + old


class Planned(Stored):
    """The names of tensors that are about to be written, with no numbers yet.

    A head that is planned beside the table is taken for its equal, so that settings which say that
    the two are one are seen to be wrong.
    """

    def __init__(self, names: Iterable[str], prefix: str) -> None:
        self.prefix, self.names = prefix, frozenset(names)
        self.repeats, self.aliases = set(), {}

    def equal(self, a: str, b: str) -> bool:
        return True
