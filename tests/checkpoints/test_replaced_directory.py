"""A directory is replaced in one step or not at all, whatever happens while it is written."""

import os
import subprocess
import sys

import pytest

from eqxformer.checkpoints import _replacing
from eqxformer.checkpoints.tensor_files import INDEX, WEIGHTS, replaced_directory

OLD = {
    "config.json": "old config",
    "tokenizer.json": "tokenizer",
    WEIGHTS: "old weights",
    "model-00001-of-00002.safetensors": "old shard",
    INDEX: "old index",
    "pytorch_model.bin": "not ours",
    "model_notes.safetensors": "not ours",
    "1_Pooling/config.json": "pooling",
    "1_Pooling/model.safetensors": "weights of that part",
}
KEPT = {
    name: OLD[name]
    for name in (
        "tokenizer.json",
        "pytorch_model.bin",
        "model_notes.safetensors",
        "1_Pooling/config.json",
        "1_Pooling/model.safetensors",
    )
}
NEW = {"config.json": "new config", WEIGHTS: "new weights"}


def fill(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files_of(folder):
    """Every file below a directory, hidden ones too, with its text."""
    found = [path for path in folder.rglob("*") if path.is_file() or path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_text() for path in found}


@pytest.fixture(params=["exchanged", "renamed"])
def either_way(request, monkeypatch):
    """Both ways of putting a directory in the place of another."""
    if request.param == "renamed":
        monkeypatch.setattr(_replacing, "_exchange", lambda one, other: False)
    elif not sys.platform.startswith("linux"):
        pytest.skip("only Linux exchanges directories")
    return request.param


@pytest.fixture
def old(tmp_path):
    fill(tmp_path / "model", OLD)
    return tmp_path / "model"


# What comes out


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_directory_is_there_when_all_is_written_and_not_before(there, overwrite, tmp_path):
    folder = tmp_path / "some" / "model"
    if there:
        folder.mkdir(parents=True)
    with replaced_directory(folder, overwrite=overwrite) as new:
        fill(new, NEW)
        assert new.parent == folder.parent
        assert folder.exists() == there
        assert not there or not list(folder.iterdir())
    assert files_of(tmp_path) == {f"some/model/{name}": text for name, text in NEW.items()}


def test_an_old_directory_is_replaced_and_keeps_what_the_new_one_lacks(old, either_way):
    with replaced_directory(old, overwrite=True) as new:
        fill(new, NEW)
        assert files_of(old) == OLD
    assert files_of(old.parent) == {f"model/{name}": text for name, text in (KEPT | NEW).items()}


def test_old_weights_stay_where_no_new_ones_are_written(old):
    with replaced_directory(old, overwrite=True) as new:
        fill(new, {"config.json": "new"})
    assert files_of(old) == OLD | {"config.json": "new"}


def test_what_the_new_directory_has_goes_before_what_the_old_one_had(old):
    new = {"tokenizer.json": "new", "1_Pooling/config.json": "new", INDEX: "new"}
    with replaced_directory(old, overwrite=True) as folder:
        fill(folder, new)
    assert files_of(old) == KEPT | {"config.json": "old config"} | new


def test_a_file_in_the_place_of_an_old_directory_and_the_reverse(old):
    with replaced_directory(old, overwrite=True) as new:
        fill(new, {"1_Pooling": "a file", "tokenizer.json/inner": "a directory"})
    found = files_of(old)
    assert found["1_Pooling"] == "a file"
    assert found["tokenizer.json/inner"] == "a directory"


@pytest.mark.skipif(os.name == "nt", reason="Windows has few of these")
def test_links_and_permissions_stay_as_they_are(old):
    (old / "link").symlink_to("../elsewhere")
    (old / "folder").symlink_to("1_Pooling")
    (old / "tokenizer.json").chmod(0o640)
    (old / "1_Pooling").chmod(0o711)
    old.chmod(0o750)
    (old.parent / "elsewhere").write_text("elsewhere")
    with replaced_directory(old, overwrite=True) as new:
        fill(new, NEW)
    assert os.readlink(old / "link") == "../elsewhere"
    assert os.readlink(old / "folder") == "1_Pooling"
    paths = {old: 0o750, old / "tokenizer.json": 0o640, old / "1_Pooling": 0o711}
    assert {path: path.stat().st_mode & 0o777 for path in paths} == paths


def test_files_are_copied_where_there_are_no_hard_links(old, monkeypatch):
    def fail(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", fail)
    with replaced_directory(old, overwrite=True) as new:
        fill(new, NEW)
    assert files_of(old) == KEPT | NEW


def test_a_link_to_a_directory_stays_one(old, either_way):
    (old.parent / "link").symlink_to("model")
    with replaced_directory(old.parent / "link", overwrite=True) as new:
        fill(new, NEW)
    assert os.readlink(old.parent / "link") == "model"
    assert files_of(old) == KEPT | NEW


def test_a_relative_path_is_meant_from_where_the_process_was(old, monkeypatch):
    monkeypatch.chdir(old.parent)
    with replaced_directory("model", overwrite=True) as new:
        fill(new, NEW)
        monkeypatch.chdir("/")
    assert files_of(old) == KEPT | NEW


@pytest.mark.skipif(os.name == "nt", reason="Windows flushes in its own way")
def test_all_is_on_the_disk_before_it_is_put_in_its_place(old, monkeypatch):
    done = []
    sync, put = _replacing.sync, _replacing._put
    monkeypatch.setattr(_replacing, "sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr(_replacing, "_put", lambda *paths: (done.append("PUT"), put(*paths)))
    with replaced_directory(old, overwrite=True) as new:
        fill(new, NEW | {"sub/file": "text"})
    before, after = done[: done.index("PUT")], done[done.index("PUT") + 1 :]
    assert {*NEW, "file", "sub", new.name} <= set(before)
    assert after == [old.parent.name]


# What is refused before anything is written


def test_a_directory_with_anything_in_it_is_not_replaced_unasked(old):
    with (
        pytest.raises(FileExistsError, match=r"model is not empty; .* `overwrite=True`"),
        replaced_directory(old),
    ):
        pytest.fail("nothing should be written")
    assert files_of(old.parent) == {f"model/{name}": text for name, text in OLD.items()}


def test_what_comes_into_the_directory_meanwhile_is_not_replaced_unasked(tmp_path):
    folder = tmp_path / "model"

    def write():
        with replaced_directory(folder) as new:
            fill(new, NEW)
            fill(folder, {"other": "text"})

    with pytest.raises(FileExistsError, match="is not empty"):
        write()
    assert files_of(tmp_path) == {"model/other": "text"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_not_replaced(overwrite, tmp_path):
    (tmp_path / "model").write_text("a file")
    with (
        pytest.raises(NotADirectoryError, match="model is a file; name a directory"),
        replaced_directory(tmp_path / "model", overwrite=overwrite),
    ):
        pytest.fail("nothing should be written")
    assert files_of(tmp_path) == {"model": "a file"}


@pytest.mark.parametrize("here", [".", "1_Pooling"])
def test_the_directory_that_the_process_works_in_is_not_replaced(here, old, monkeypatch):
    monkeypatch.chdir(old / here)
    with (
        pytest.raises(ValueError, match="save to a directory in it"),
        replaced_directory(old, overwrite=True),
    ):
        pytest.fail("nothing should be written")
    assert files_of(old) == OLD


def test_a_mounted_directory_is_not_replaced(old, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(old))
    with (
        pytest.raises(ValueError, match="save to a directory in it"),
        replaced_directory(old, overwrite=True),
    ):
        pytest.fail("nothing should be written")
    assert files_of(old) == OLD


# Failures


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("there", [False, True])
def test_an_exception_while_writing_leaves_all_as_it_was(error, there, tmp_path):
    folder = tmp_path / "model"
    if there:
        fill(folder, OLD)
    before = files_of(tmp_path)

    def write():
        with replaced_directory(folder, overwrite=True) as new:
            fill(new, NEW)
            raise error

    with pytest.raises(type(error)):
        write()
    assert files_of(tmp_path) == before
    assert folder.exists() == there


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("failing", ["_carry", "_link", "_sync_all", "_put", "_exchange"])
def test_a_step_that_fails_leaves_all_as_it_was(failing, error, old, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(_replacing, failing, fail)
    before = files_of(old.parent)
    with pytest.raises(type(error)), replaced_directory(old, overwrite=True) as new:
        fill(new, NEW)
    assert files_of(old.parent) == before


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("done", [False, True])
def test_a_rename_that_fails_leaves_one_of_the_two(done, number, error, old, monkeypatch):
    """Before or after it was done: the interrupt may come at any moment."""
    monkeypatch.setattr(_replacing, "_exchange", lambda one, other: False)
    rename, calls = os.rename, []

    def fail(*paths):
        calls.append(paths)
        if len(calls) != number:
            return rename(*paths)
        if done:
            rename(*paths)
        raise error

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(type(error)), replaced_directory(old, overwrite=True) as new:
        fill(new, NEW)
    complete = number == 2 and done
    assert files_of(old) == (KEPT | NEW if complete else OLD)
    with replaced_directory(old.parent / "model", overwrite=True) as new:
        assert files_of(old) == (KEPT | NEW if complete else OLD)
    assert {path.name for path in old.parent.iterdir()} == {"model"}


KILLED = """
import os, pathlib, sys
from eqxformer.checkpoints import _replacing
from eqxformer.checkpoints.tensor_files import replaced_directory

root, way = pathlib.Path(sys.argv[1]), sys.argv[2]
if way == "renamed":
    _replacing._exchange = lambda one, other: False

def save(target, steps):
    count = 0
    def dying(step):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count > steps:
                os._exit(9)
            return step(*args, **kwargs)
        return call
    for name in ("mkdir", "rename", "link", "unlink", "rmdir", "fsync"):
        setattr(os, name, dying(getattr(os, name)))
    _replacing._exchange = dying(_replacing._exchange)
    with replaced_directory(target, overwrite=True) as new:
        for name in ("config.json", "model.safetensors"):
            (new / name).write_text("new")
    os._exit(0)

for steps in range(100):
    target = root / str(steps) / "model"
    target.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (target / name).write_text("old")
    child = os.fork()
    if not child:
        save(target, steps)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
print(steps)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("way", ["exchanged", "renamed"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_and_the_next_save_clears_up(way, tmp_path):
    if way == "exchanged" and not sys.platform.startswith("linux"):
        pytest.skip("only Linux exchanges directories")
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), way]
    options = {"env": {**os.environ, "EQXFORMER_CHECKS": "0"}, "check": True}
    ended = subprocess.run(command, capture_output=True, text=True, **options)
    steps = int(ended.stdout)
    assert steps > 10
    names = ("config.json", "model.safetensors", "tokenizer.json")
    old, new = dict.fromkeys(names, "old"), dict.fromkeys(names[:2], "new") | {names[2]: "old"}
    seen = []
    for root in (tmp_path / str(number) for number in range(steps + 1)):
        seen.append(files_of(root / "model") if (root / "model").exists() else None)
        with replaced_directory(root / "model", overwrite=True):
            after = files_of(root / "model")
        assert after in (old, new)
        assert [path.name for path in root.iterdir()] == ["model"]
    assert seen[0] == old
    assert seen[-1] == new
    assert all(found in (old, new) for found in seen if way == "exchanged" or found is not None)
    assert seen.count(None) == (way == "renamed")  # between its two renames
    assert seen == sorted(seen, key=lambda found: (found != old, found == new))
