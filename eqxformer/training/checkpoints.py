"""Checkpoints of a training run: written by Orbax beside the steps, checked when they are read.

A checkpoint holds the arrays of a `TrainState` by their names, and a record in plain JSON: where
the run stands, and what it is. Orbax writes it under another name; when it is complete, it is
sealed with the digests of its files and renamed. A process killed at any time leaves the one
before.
"""

import contextlib
import errno
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from eqxformer.training.differences import differences
from eqxformer.training.processes import told_by_first
from eqxformer.training.seals import BrokenSeal, check_seal, seal

_STATE, _RECORD = "state", "record"


class Restored(NamedTuple):
    """A checkpoint that has been read: its step, the state, and where the run stood."""

    step: int
    state: Any
    progress: dict[str, Any]


class DamagedCheckpoints(ValueError):
    """There are checkpoints, and none of them can be read."""


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; `last` is the step of the newest one there is, or None."""

    def __init__(self, directory: Path, error: Exception, last: int | None):
        there = "there is none before it" if last is None else f"that of step {last:,} is complete"
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        super().__init__(
            f"A checkpoint could not be written to `{directory}`: {reason}; {there}. "
            "Make room or the directory writable, and go on from there."
        )
        self.last = last


class Checkpoints:
    """The checkpoints in a directory, which belongs to one training run at a time.

    `Trainer(..., checkpoints=Checkpoints("run/checkpoints", every=500))` writes one every 500 steps
    and at the end, and goes on from the newest one that is whole, if there is one. Needs the extra
    `train`.

    Arguments:
        directory: where they are; made if it is not there.
        every: steps between two.
        keep: how many of the newest are kept; at least 2, since the newest may be damaged.
        identity: what the run is, as plain JSON values, such as the config of the experiment and
            the fingerprint of the data. A run with another one is refused, with what differs.
        only_shown: paths in `identity` that may differ, such as `data.name`.
        warn: is told about every damaged checkpoint that was passed over.

    Example:
        >>> import eqxformer as ef
        >>> checkpoints = ef.Checkpoints("run/checkpoints", every=500, identity={"data": "a.txt"})
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: int,
        keep: int = 2,
        identity: Mapping[str, Any] | None = None,
        only_shown: Collection[str] = (),
        warn: Callable[[str], Any] | None = None,
    ) -> None:
        for name, value, least in (("every", every, 1), ("keep", keep, 2)):
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}; got {value}.")
        self.directory, self.every, self.keep = Path(directory).absolute(), every, keep
        self.identity, self._only_shown = json.loads(json.dumps(identity or {})), only_shown
        self._warn = _warned if warn is None else warn
        self._manager: Any = None
        self._writes: int | None = None  # the step of the one that was begun last
        self._closing = contextlib.ExitStack()

    def open(self) -> "Checkpoints":
        """Takes the directory for this process. Raises `ValueError` where another one has it."""
        if self._manager is None:
            with contextlib.ExitStack() as closing:
                told_by_first(lambda: closing.enter_context(_locked(self.directory)))
                self._manager = _manager(self.directory, self.keep, self._seal)
                closing.callback(self._manager.close)
                self._closing = closing.pop_all()
        return self

    def close(self) -> None:
        """Waits for the last one to be written and lets the directory go."""
        try:
            self.wait()
        finally:
            self._manager = None
            self._closing.close()

    def _seal(self) -> None:
        """What is done in Orbax's thread when a checkpoint is complete, before it is renamed."""
        if jax.process_index() == 0:
            for unnamed in self.directory.glob(f"{self._writes}.*tmp*"):
                seal(unnamed)

    def save(self, step: int, state: Any, progress: Mapping[str, Any]) -> None:
        """Begins to write a checkpoint; returns when the arrays may be changed.

        Raises `CheckpointNotWritten` where this one or the one before it could not be.
        """
        from orbax.checkpoint import args

        arrays = named(state)
        record = {
            "progress": dict(progress),
            "identity": {**self.identity, "arrays": _shapes(arrays)},
        }
        parts = {_STATE: args.StandardSave(arrays), _RECORD: args.JsonSave(record)}
        self.wait()
        with self._writing():
            if not self.directory.is_dir():
                raise FileNotFoundError(errno.ENOENT, "the directory is not there any more")
            self._writes = step
            self._manager.save(step, args=args.Composite(**parts), force=True)

    def wait(self) -> None:
        """Returns when all are written. Raises `CheckpointNotWritten` where one could not be."""
        if self._manager is not None:
            with self._writing():
                self._manager.wait_until_finished()

    def exist(self) -> bool:
        """Whether there are any, whole or damaged."""
        return told_by_first(lambda: bool(self._all()))

    def restore(self, like: Any) -> Restored | None:
        """The newest checkpoint that is whole, in the form and on the devices of `like`.

        `like` is a state, or what is left of one that was `given_up`. None where there are no
        checkpoints. Damaged ones that are newer are told about and moved out of the way. Raises
        `ValueError` for checkpoints of another run, `DamagedCheckpoints` where all are damaged; in
        both cases nothing is changed.
        """
        step, damaged = told_by_first(self._newest)
        if step is None:
            return None
        found = self._read(step, like)
        if damaged:
            told_by_first(lambda: self._set_aside(damaged, going_on_from=step))
            self._manager.reload()
        return found

    def _newest(self) -> tuple[int | None, dict[str, str]]:
        """The step of the newest one that is whole, and what is wrong with those after it."""
        damaged: dict[str, str] = {}
        for step in reversed(self._all()):
            try:
                check_seal(self.directory / str(step))
            except BrokenSeal as broken:
                damaged[str(step)] = str(broken)
                continue
            return step, damaged
        if damaged:
            lines = "\n  ".join(f"step {step}: {reason}" for step, reason in damaged.items())
            raise DamagedCheckpoints(
                f"None of the checkpoints in `{self.directory}` can be read:\n  {lines}\n"
                "Nothing was changed. To begin anew, give another directory."
            )
        return None, {}

    def _read(self, step: int, like: Any) -> Restored:
        from orbax.checkpoint import args

        arrays = named(like)
        record = self._manager.restore(step, args=args.Composite(**{_RECORD: args.JsonRestore()}))
        record = record[_RECORD]
        wanted = {**self.identity, "arrays": _shapes(arrays)}
        lines = differences(record["identity"], wanted, but=self._only_shown)
        _refuse_another(lines, self.directory)
        targets = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
            for name, array in arrays.items()
        }
        parts = args.Composite(**{_STATE: args.StandardRestore(targets)})
        found = self._manager.restore(step, args=parts)[_STATE]
        return Restored(step, renamed(like, found), record["progress"])

    def _all(self) -> list[int]:
        """The steps of all that are there, whole or not."""
        names = (path.name for path in self.directory.iterdir())
        return sorted(int(name) for name in names if re.fullmatch(r"\d+", name))

    def _set_aside(self, damaged: Mapping[str, str], *, going_on_from: int) -> None:
        for step, reason in damaged.items():
            aside = _beside(self.directory, "{}-damaged")
            aside.mkdir(exist_ok=True)
            numbers = (step if i == 0 else f"{step}-{i}" for i in itertools.count())
            place = next(aside / each for each in numbers if not (aside / each).exists())
            shutil.move(self.directory / step, place)
            self._warn(
                f"The checkpoint of step {step} is damaged: {reason}. It is now `{place}`; "
                f"going on from step {going_on_from}."
            )

    @contextlib.contextmanager
    def _writing(self) -> Any:
        try:
            yield
        except Exception as error:  # Orbax passes on whatever happened in its thread
            steps = self._all() if self.directory.is_dir() else []
            raise CheckpointNotWritten(self.directory, error, max(steps, default=None)) from error


def given_up(state: Any) -> Any:
    """What arrays a state has and where, in their places; the arrays themselves are gone.

    What is read in their place then needs no memory beside theirs. Random keys stay.
    """

    def described(leaf: Any) -> Any:
        if not eqx.is_array(leaf) or _is_key(leaf):
            return leaf
        left = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        leaf.delete()
        return left

    return jax.tree.map(described, state)


def named(state: Any) -> dict[str, Any]:
    """Every array of a tree by its path; random keys as the numbers that they are made of."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {_name(path): _numbers(leaf) for path, leaf in leaves if _has_shape(leaf)}


def renamed(like: Any, arrays: Mapping[str, Any]) -> Any:
    """The inverse of `named`: a tree with these arrays in the places of its own."""

    def put(path: Any, leaf: Any) -> Any:
        if not _has_shape(leaf):
            return leaf
        array = arrays[_name(path)]
        return (
            jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
            if _is_key(leaf)
            else array
        )

    return jax.tree_util.tree_map_with_path(put, like)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _has_shape(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)


def _numbers(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _shapes(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def _refuse_another(lines: list[str], directory: Path) -> None:
    if lines:
        raise ValueError(
            f"The checkpoints in `{directory}` are of another run; then and now:\n  "
            + "\n  ".join(lines)
            + "\nAsk for the same as then, or give another directory."
        )


def _warned(message: str) -> None:
    import warnings

    warnings.warn(message, stacklevel=2)


@contextlib.contextmanager
def _locked(directory: Path) -> Any:
    """Holds the directory's lock, which the system takes back whatever becomes of the process."""
    try:
        from filelock import FileLock, Timeout
    except ImportError:
        raise ValueError("Checkpoints need the extra: pip install 'eqxformer[train]'.") from None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(_beside(directory, ".{}.lock"), blocking=False):
            yield
    except Timeout:
        raise ValueError(
            f"Another process is training in `{directory}`; wait for its end, or give another "
            "directory."
        ) from None
    except OSError as error:
        raise ValueError(f"`{directory}` cannot be used: {error.strerror}.") from None


def _beside(directory: Path, name: str) -> Path:
    """A path beside a directory, with its name in `name`: the same for all links to it.

    It is inside, where Orbax looks at steps alone, if the directory is the root of a file system or
    nothing may be written beside it.
    """
    real = Path(os.path.realpath(directory))
    inside = os.path.ismount(real) or not os.access(real.parent, os.W_OK)
    return (real if inside else real.parent) / name.format(real.name)


def _manager(directory: Path, keep: int, completed: Callable[[], None]) -> Any:
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise ValueError("Checkpoints need the extra: pip install 'eqxformer[train]'.") from None
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=completed),
    )
    return ocp.CheckpointManager(directory, options=options, item_names=(_STATE, _RECORD))
