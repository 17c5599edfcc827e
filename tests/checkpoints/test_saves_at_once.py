"""Several processes that save to one directory, and what one of them has left behind."""

import pathlib

from eqxformer.checkpoints import _replacing
from eqxformer.checkpoints.tensor_files import replaced_directory
from tests.checkpoints.test_replaced_directory import NEW, OLD, files_of, fill


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    folder = tmp_path / "model"
    with replaced_directory(folder) as first:
        fill(first, NEW)
        with replaced_directory(folder) as second:
            fill(second, {"config.json": "second"})
        assert files_of(first) == NEW
        assert files_of(folder) == {"config.json": "second"}
        (folder / "config.json").unlink()
    assert files_of(tmp_path) == {f"model/{name}": text for name, text in NEW.items()}


def test_a_new_directory_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, calls = _replacing._lock, []

    def late(path):
        calls.append(path)
        if len(calls) == 1:
            path.rmdir()
        elif len(calls) == 2:
            raise BlockingIOError
        return lock(path)

    monkeypatch.setattr(_replacing, "_lock", late)
    with replaced_directory(tmp_path / "model") as new:
        assert new == calls[2]
        fill(new, NEW)
    assert files_of(tmp_path / "model") == NEW


def test_only_what_a_save_has_left_is_swept(tmp_path):
    left = tmp_path / f".model.saving-{'0' * 16}"
    others = [".model.saving-mine", f".other.saving-{'0' * 16}", f"model.saving-{'0' * 16}"]
    fill(left, OLD)
    for name in others:
        fill(tmp_path / name, {"file": "text"})
    with replaced_directory(tmp_path / "model") as new:
        fill(new, NEW)
    assert {path.name for path in tmp_path.iterdir()} == {"model", *others}


def test_without_locks_nothing_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr(_replacing, "fcntl", None)
    left = tmp_path / f".model.saving-{'0' * 16}"
    fill(left, OLD)
    with replaced_directory(tmp_path / "model") as new:
        fill(new, NEW)
    assert files_of(tmp_path / "model") == NEW
    assert files_of(left) == OLD


def test_a_directory_beside_is_never_the_checkpoint(tmp_path):
    """What is being written has another name, one that listings leave out."""
    with replaced_directory(pathlib.Path(tmp_path, "model")) as new:
        assert new.name.startswith(".model.saving-")
