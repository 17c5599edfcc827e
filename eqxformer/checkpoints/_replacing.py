"""A directory written beside its place and put there in one step, or not at all.

The new directory is `.NAME.saving-RANDOM` until it is whole, and locked by the process that writes
it; one that nobody has locked is left from a process that was killed, and the next save removes it.
"""

import contextlib
import ctypes
import os
import pathlib
import re
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator

try:
    import fcntl
except ImportError:  # Windows, which keeps what a killed process left
    fcntl = None

_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_AT_CWD, _EXCHANGE = -100, 2  # of Linux's renameat2


@contextlib.contextmanager
def replaced_directory(
    directory: str | os.PathLike[str], *, overwrite: bool = False, but: Collection[str] = ()
) -> Iterator[pathlib.Path]:
    """A new directory to write to, which takes the place of `directory` when all went well.

    After an exception, an interrupt or a kill, `directory` is what it was. Whoever opens it sees
    the old files or the new ones, never a mixture. (Where the system cannot exchange two
    directories, a kill between two renames leaves it absent; the next save puts the old one back.)

    Arguments:
        directory: what is made or replaced; missing parents are made.
        overwrite: replace what is there. Files that the new directory does not have stay, but for
            old weights where it has new ones: `model.safetensors`, its shards and their index.
        but: names of other files and directories that do not stay.

    Raises `FileExistsError` for a directory that is not empty unless `overwrite`,
    `NotADirectoryError` for a file, and `ValueError` for a directory that cannot be renamed: where
    something is mounted, or that the process works in. All of it before anything is written.

    Example:
        >>> import os, pathlib, tempfile
        >>> from eqxformer.checkpoints.tensor_files import replaced_directory
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model = pathlib.Path(folder, "model")
        ...     with replaced_directory(model) as new:
        ...         _ = (new / "config.json").write_text("{}")
        ...         there = model.exists()
        ...     there, os.listdir(folder), os.listdir(model)
        (False, ['model'], ['config.json'])
    """
    target = pathlib.Path(os.path.realpath(directory))
    _put_back(target)
    _check_replaceable(target, overwrite)
    made = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    fresh, lock = _fresh(target)
    try:
        yield fresh
        _check_replaceable(target, overwrite)
        if target.exists():
            _carry(target, fresh, but)
            shutil.copymode(target, fresh)
        _sync_all(fresh)
        _put(fresh, target)
    except BaseException:
        _put_back(target)
        raise
    finally:
        # By now this is the old directory, or the new one that failed.
        shutil.rmtree(fresh, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        if not target.exists():
            for parent in made:
                with contextlib.suppress(OSError):  # not empty: it is someone else's by now
                    parent.rmdir()


@contextlib.contextmanager
def hidden_directory(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new directory beside `target` to write to, which is removed in the end.

    Those that killed processes left there are removed too, when all went well: until then the only
    whole files may be in one of them.
    """
    fresh, lock = _fresh(target)
    try:
        yield fresh
        _sweep(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _check_replaceable(target: pathlib.Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; name a directory to save to.")
    if not overwrite and any(target.iterdir()):
        raise FileExistsError(
            f"{target} is not empty; save to another directory, or replace what is there with "
            "`overwrite=True`."
        )
    if os.path.ismount(target) or target in (here := _working_directory(), *here.parents):
        raise ValueError(
            f"{target} is mounted or is where this process works, so that it cannot be replaced; "
            "save to a directory in it."
        )


def _working_directory() -> pathlib.Path:
    try:
        return pathlib.Path.cwd()
    except FileNotFoundError:  # removed; nothing can be in it
        return pathlib.Path(os.devnull)


def _fresh(target: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """A new directory beside `target` and the descriptor that locks it, if there are locks."""
    while True:
        fresh = _beside(target, "saving")
        fresh.mkdir()
        # Before it is locked, another process may take it for a dead one's.
        with contextlib.suppress(BlockingIOError):
            lock = _lock(fresh)
            if fresh.exists():
                return fresh, lock


def _beside(target: pathlib.Path, purpose: str) -> pathlib.Path:
    return target.with_name(f".{target.name}.{purpose}-{secrets.token_hex(8)}")


def _left(target: pathlib.Path, purpose: str) -> list[pathlib.Path]:
    """What earlier saves put beside `target` for a purpose and did not remove."""
    pattern = re.compile(re.escape(f".{target.name}.{purpose}-") + "[0-9a-f]{16}")
    if not target.parent.is_dir():
        return []
    return [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]


def _sweep(target: pathlib.Path) -> None:
    """Removes what killed processes left beside `target`."""
    for path in _left(target, "saving"):
        with contextlib.suppress(BlockingIOError):
            lock = _lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)
    for path in _left(target, "replaced") if target.exists() else ():
        shutil.rmtree(path, ignore_errors=True)


def _lock(path: pathlib.Path) -> int | None:
    """A descriptor that locks a directory, until it is closed or the process ends.

    None where there are no locks; `BlockingIOError` where another process has this one.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def _carry(old: pathlib.Path, new: pathlib.Path, but: Collection[str], *, top: bool = True) -> None:
    """Links into `new` the files of `old` that it does not have.

    Left behind are old weights where there are new ones, and what `but` names.
    """
    weighed = top and any(_WEIGHTS.fullmatch(path.name) for path in new.iterdir())
    for path in old.iterdir():
        there = new / path.name
        if top and path.name in but:
            continue
        if path.is_dir() and not path.is_symlink():
            if not os.path.lexists(there):
                there.mkdir()
                shutil.copymode(path, there)
            if there.is_dir() and not there.is_symlink():
                _carry(path, there, (), top=False)
        elif weighed and _WEIGHTS.fullmatch(path.name):
            continue
        elif not os.path.lexists(there):
            _link(path, there)


def _link(old: pathlib.Path, new: pathlib.Path) -> None:
    """The same file under another path, or a copy where the system has no such links."""
    try:
        os.link(old, new, follow_symlinks=False)
    except OSError:
        shutil.copy2(old, new, follow_symlinks=False)


def _put(fresh: pathlib.Path, target: pathlib.Path) -> None:
    """Puts a directory in its place; the one that was there is then at `fresh`, or gone."""
    if not target.exists() or (os.name != "nt" and not any(target.iterdir())):
        os.rename(fresh, target)
    elif not _exchange(fresh, target):
        aside = _beside(target, "replaced")
        os.rename(target, aside)
        os.rename(fresh, target)
        shutil.rmtree(aside, ignore_errors=True)
    sync(target.parent)


def _put_back(target: pathlib.Path) -> None:
    """Undoes the first of the two renames of `_put` where the second did not happen."""
    aside = _left(target, "replaced")
    if aside and not os.path.lexists(target):
        os.rename(aside[0], target)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges two directories in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(_AT_CWD, names[0], _AT_CWD, names[1], _EXCHANGE) == 0


def _sync_all(folder: pathlib.Path) -> None:
    """Waits until a directory and all that is in it is on the disk."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            _sync_all(path)
        elif path.is_file() and not path.is_symlink():
            sync(path)
    sync(folder)


def sync(path: pathlib.Path) -> None:
    if os.name == "nt":  # which can do so only through the descriptor that wrote
        return
    with contextlib.suppress(PermissionError):  # a file carried along that nobody may read
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
