"""A directory with adapters of PEFT, opened: all of it checked, the numbers still on disk."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from eqxformer.adapters.lora import Adapter
from eqxformer.adapters.peft_config import CONFIG, described, ends
from eqxformer.adapters.peft_modules import DOWN, MAGNITUDE, UP, Module, renamed
from eqxformer.adapters.peft_tied import TiedTable
from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.moves import Shape
from eqxformer.checkpoints.rules import Binding
from eqxformer.checkpoints.settings import nearest
from eqxformer.checkpoints.stored import Stored
from eqxformer.checkpoints.tensor_files import TensorFiles, read_json

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every name
_KINDS = (DOWN, UP, MAGNITUDE)
_LIMIT = 2**20  # bytes of a config
_MOST = 20  # lines of an error


class Adapted:
    """The adapters in a directory, and what was saved whole beside them.

    Arguments:
        folder: where the two files lie.
        prefix: what stands before the names of the base model's parts in a model with a head.
        modules: as of `Architecture`. What is saved whole may have these names or those of the
            base's tensors, by which it is found here.
    """

    def __init__(self, folder: pathlib.Path, prefix: str, modules: Mapping[str, str]) -> None:
        self.where = str(folder / CONFIG)
        words = {module: word for word, module in modules.items()}
        said = described(read_json(folder / CONFIG, limit_bytes=_LIMIT), self.where)
        saved = tuple(renamed(name, words) for name in said.saved)
        self.described = dataclasses.replace(said, saved=saved)
        self.files = TensorFiles.open_one(folder, WEIGHTS)
        self.stored = Stored(_Bare(self.files), prefix)
        for name in self.stored.names:
            other = renamed(name, words)
            if self.stored.find(other) is None:
                self.stored.call(other, name)

    def account(
        self,
        modules: Mapping[str, Module],
        bindings: Iterable[Binding],
        tied: TiedTable | None,
    ) -> None:
        """Raises `CheckpointError` with all that is missing, left over or misshapen.

        Arguments:
            tied: the token table that the model uses twice, if it has one.
        """
        there = [module for module in modules.values() if self._has_some(module)]
        wanted = {
            f"{module.name}.{kind}": shape
            for module in there
            for kind, shape in module.tensors(self.described.of(module.name)).items()
        }
        whole, lines = self._saved(there, bindings)
        copy = self._copy(tied) if tied is not None and tied.name in whole else None
        if tied is not None and copy is not None:
            whole[copy] = whole[tied.name]
        lines += self._differences({**wanted, **whole})
        lines += self._targets(modules, {module.name for module in there})
        if lines:
            more = [f"and {len(lines) - _MOST} more"] if len(lines) > _MOST else []
            raise CheckpointError(
                f"{self.where}: the tensors beside it are not those that it describes for this "
                "model:\n  " + "\n  ".join([*lines[:_MOST], *more])
            )
        if tied is not None and copy is not None and not self.stored.equal(tied.name, copy):
            raise CheckpointError(
                f"{self.where}: the tensors {tied.name} and {copy} must be equal, since the model "
                "uses one table as both; they differ."
            )

    def adapters(self, modules: Mapping[str, Module]) -> dict[str, Adapter]:
        """The adapters, by the paths of our linear maps."""
        found: dict[str, Adapter] = {}
        for module in modules.values():
            if self._has_some(module):
                lora = self.described.of(module.name)
                names = {kind: f"{module.name}.{kind}" for kind in module.tensors(lora)}
                tensors = {kind: self._read(name) for kind, name in names.items()}
                found |= module.apart(lora, tensors)
        return found

    def whole(self, bindings: Iterable[Binding]) -> dict[str, np.ndarray]:
        """The arrays that were saved whole, by their paths in our model."""
        found: dict[str, np.ndarray] = {}
        for binding in bindings:
            if all(self.stored.find(name) is not None for name in binding.theirs):
                theirs = [self.stored.read(name) for name in binding.theirs]
                read = binding.move.read(theirs, binding.shapes)
                found |= dict(zip(binding.ours, read, strict=True))
        return found

    def _read(self, name: str) -> np.ndarray:
        return self.stored.read(name).astype(np.float32)

    def _has_some(self, module: Module) -> bool:
        return any(self.stored.find(f"{module.name}.{kind}") is not None for kind in _KINDS)

    def _saved(
        self, there: Iterable[Module], bindings: Iterable[Binding]
    ) -> tuple[dict[str, Shape], list[str]]:
        """The shapes of what must be there whole, and a line for each array that is so in part."""
        wanted: dict[str, Shape] = {}
        lines, inner = [], set(self._inner(there))
        for binding in bindings:
            of, saved = binding.their_shapes(), self.described.saved
            some = {name: of[name] for name in of if name in inner or saves(saved, name)}
            wanted |= some
            if some and len(some) < len(of):
                lines.append(
                    f"in part: {next(iter(some))} is saved without "
                    f"{next(name for name in of if name not in some)}, which is one array with it"
                )
        return wanted, lines

    def _inner(self, there: Iterable[Module]) -> Iterator[str]:
        """The weights and biases of maps with adapters that are there too, as PEFT stores a head's.

        From now on they are found under these names, those that they have without adapters.
        """
        for module in there:
            for kind in ("weight", "bias"):
                stored = f"{module.name}.base_layer.{kind}"
                if self.stored.find(stored) is not None:
                    self.stored.call(f"{module.name}.{kind}", stored)
                    yield f"{module.name}.{kind}"

    def _copy(self, tied: TiedTable) -> str:
        """The tensor in which PEFT has stored a table again that it has replaced in the head too.

        Raises `CheckpointError` for a table that it has replaced in one place alone.
        """
        if tied.copy is not None and self.described.tied:
            return tied.copy
        train = "" if tied.copy is None else ", or train again with `ensure_weight_tying`"
        raise CheckpointError(
            f"{self.where}: `modules_to_save` has {tied.name}, which this model uses twice; PEFT "
            "has replaced one use alone, and the other keeps the old table. Load into a base that "
            "is not tied, with `tie_word_embeddings` false in its config.json and a head of its "
            f"own in its file{train}."
        )

    def _differences(self, wanted: Mapping[str, Shape]) -> list[str]:
        """A line for every tensor that is missing, left over or misshapen."""
        found = {name: self.stored.find(name) for name in wanted}
        used = set(found.values())
        left = [PREFIX + name for name in self.stored.names if name not in used]
        left += [name for name in self.files.names if not name.startswith(PREFIX)]
        lines = [f"missing: {name} {wanted[name]}" for name, at in found.items() if at is None]
        lines += [
            f"unexpected: {name} {self.files.shape(name)}"
            f"{nearest(name, (PREFIX + known for known in wanted))}"
            for name in sorted(left)[: _MOST + 1]
        ]
        lines += [
            f"shape: {name} is {self.stored.shape(name)}, expected {wanted[name]}"
            for name, at in found.items()
            if at is not None and self.stored.shape(name) != wanted[name]
        ]
        return lines

    def _targets(self, modules: Iterable[str], there: set[str]) -> Iterator[str]:
        """Where a list of targets and the modules with adapters disagree."""
        if self.described.targets is None:
            return
        targets, saved = set(self.described.targets), set(self.described.saved)
        hit = {end for name in there for end in ends(name)}
        if not targets & hit:  # PEFT reads past a target that names no module, but not past all
            yield from (f"no tensors for the target {end!r}" for end in sorted(targets))
        for name in modules:
            meant = bool(targets & ends(name))
            if name in there and not meant:
                yield f"no target means {name}, which has tensors"
            left_out = self.described.restricted or _is_in(name, saved)
            if meant and name not in there and not left_out:
                yield f"no tensors for {name}, which a target means"


class _Bare:
    """The tensors of a file under their names without PEFT's prefix; those without it left out."""

    def __init__(self, files: TensorFiles) -> None:
        self.files = files
        prefixed = (name for name in files.names if name.startswith(PREFIX))
        self.names = tuple(name.removeprefix(PREFIX) for name in prefixed)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.files.shape(PREFIX + name)

    def read(self, name: str) -> np.ndarray:
        """The numbers of a tensor."""
        return self.files.read(PREFIX + name)


def saves(modules: Iterable[str], tensor: str) -> bool:
    """Whether a tensor is in one of the modules that these names mean to `modules_to_save`.

    To PEFT all modules are meant whose names end so, within a word too: `norm` means `layer_norm`.
    """
    words, names = tensor.split("."), tuple(modules)
    return any(".".join(words[:i]).endswith(names) for i in range(1, len(words)))


def _is_in(module: str, modules: set[str]) -> bool:
    """Whether a module is, or is in, one of these, called by whole words: without adapter."""
    words = module.split(".")
    return any(modules & ends(".".join(words[:i])) for i in range(1, len(words) + 1))
