"""Directories made to do harm: files are plain files of the directory."""

import json
import os
import signal
import socket

import numpy as np
import pytest
from safetensors.numpy import save_file

from eqxformer.checkpoints.errors import CheckpointError, MissingFile
from eqxformer.checkpoints.tensor_files import INDEX, WEIGHTS, TensorFiles, read_json
from tests.helpers.hostile import refused, watch_opened
from tests.helpers.safetensors import shard_files

# An index that says what it should not

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sharded(folder, **index):
    """A sound checkpoint of two shards, or one with entries of its index replaced."""
    listed = {"a": ONE, "b": ONE, "c": TWO} | index
    listed = {name: file for name, file in listed.items() if file is not None}
    shard_files(folder, {ONE: {"a": np.zeros(1), "b": np.ones(2)}, TWO: {"c": np.ones(3)}}, listed)


def test_the_shards_that_those_are_made_of_are_sound(tmp_path):
    sharded(tmp_path)
    files = TensorFiles.open(tmp_path)
    assert [files.shape(name) for name in files.names] == [(1,), (2,), (3,)]
    assert files.read("c").tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "/model.safetensors",
        "../model.safetensors",
        "../../../../../../etc/x.safetensors",
        "sub/model.safetensors",
        "sub/../model.safetensors",
        "./model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "\\\\host\\share\\model.safetensors",
        "file:model.safetensors",
        "",
        ".",
        "..",
        ".safetensors",
        "pytorch_model.bin",
        "model.safetensors.bin",
        "model.SAFETENSORS",
        "model.safetensors/",
        "model.safetensors ",
        "model\x00.safetensors",
        "model\n.safetensors",
        "\u202emodel.safetensors",
        "a" * 5000 + ".safetensors",
        7,
        None,
        True,
        ["model.safetensors"],
        {"file": "model.safetensors"},
    ],
)
def test_an_index_names_files_of_its_own_directory_only(name, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoint"
    save_file({"d": np.ones(4)}, tmp_path / "model.safetensors")
    (folder / "sub").mkdir(parents=True)
    sharded(folder)
    values = json.loads((folder / INDEX).read_text())
    values["weight_map"]["d"] = name
    (folder / INDEX).write_text(json.dumps(values))
    opened = watch_opened(monkeypatch)
    refused(
        lambda: TensorFiles.open(folder),
        f"{folder / INDEX} may name files of its own directory that end in .safetensors",
    )
    assert set(opened) <= {str(folder / INDEX)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "must have a `weight_map` of tensors; got None"),
        ('{"weight_map": {}}', "must have a `weight_map` of tensors; got {}"),
        ('{"weight_map": ["a"]}', "must have a `weight_map` of tensors; got ['a']"),
        ('{"weight_map": 3}', "must have a `weight_map` of tensors; got 3"),
        ("[]", "must be a JSON object; got list"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "`a` is there twice"),
        ('{"weight_map": {}, "weight_map": {}}', "`weight_map` is there twice"),
        ('{"metadata": {"total_size": NaN}, "weight_map": {}}', "must be a number; got nan"),
        ('{"weight_map": ' * 10**5, "nested at most 100 deep"),
        ("\xff", "not UTF-8"),
    ],
)
def test_an_index_that_is_none(text, reason, tmp_path):
    (tmp_path / INDEX).write_bytes(text.encode("latin-1"))
    refused(lambda: TensorFiles.open(tmp_path), str(tmp_path / INDEX), reason)


def test_an_index_larger_than_any_is_not_read(tmp_path):
    (tmp_path / INDEX).write_bytes(b"{")
    os.truncate(tmp_path / INDEX, 2**40)
    refused(
        lambda: TensorFiles.open(tmp_path),
        f"{INDEX} may hold 12,582,912 bytes of JSON at most; it holds 1,099,511,627,776",
    )


@pytest.mark.parametrize(
    ("index", "line"),
    [
        ({"b": None}, f"'b' is in {ONE}, and not meant to be"),
        ({"b": TWO}, f"'b' is in {ONE}, and not meant to be"),
    ],
)
def test_an_index_fits_its_shards(index, line, tmp_path):
    sharded(tmp_path, **index)
    refused(lambda: TensorFiles.open(tmp_path), f"{INDEX} does not fit its shards:\n  {line}")


def test_an_index_may_name_what_is_in_no_shard(tmp_path):
    """As those of checkpoints do whose tied tensors were left out when they became safetensors."""
    sharded(tmp_path)
    names = set(TensorFiles.open(tmp_path).names)
    sharded(tmp_path, d=TWO)
    assert set(TensorFiles.open(tmp_path).names) == names


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    shards = {ONE: {"a": np.zeros(1), "c": np.zeros(1)}, TWO: {"a": np.ones(1), "b": np.ones(1)}}
    shard_files(tmp_path, shards)
    refused(lambda: TensorFiles.open(tmp_path), f"'a' is in {ONE}, and not meant to be")


def test_all_that_does_not_fit_is_listed_up_to_a_length(tmp_path):
    names = {f"t{n:03d}": np.zeros(1) for n in range(50)}
    shard_files(tmp_path, {ONE: names}, {"other": ONE})
    with pytest.raises(CheckpointError) as caught:
        TensorFiles.open(tmp_path)
    lines = str(caught.value).split("\n")
    assert lines[1] == f"  't000' is in {ONE}, and not meant to be"
    assert lines[20:] == [f"  't019' is in {ONE}, and not meant to be", "  and 30 more"]


def test_shards_that_are_not_there_are_listed(tmp_path):
    sharded(tmp_path, d="three.safetensors", e="four.safetensors")
    refused(
        lambda: TensorFiles.open(tmp_path),
        f"{INDEX} names shards that are not there:\n  four.safetensors\n  three.safetensors",
        kind=MissingFile,
    )


def test_a_shard_that_is_broken_is_named(tmp_path):
    sharded(tmp_path)
    (tmp_path / TWO).write_bytes(b"\1")
    refused(lambda: TensorFiles.open(tmp_path), f"{TWO} is not a whole safetensors file")


# Links


def link_checkpoint(folder, target, name):
    """A directory whose only weights are a link."""
    folder.mkdir(parents=True)
    (folder / name).symlink_to(target)
    if name != WEIGHTS:
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))


@pytest.mark.parametrize("name", [WEIGHTS, ONE])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_out_of_the_directory_is_refused(name, relative, tmp_path, monkeypatch):
    save_file({"a": np.ones(1)}, tmp_path / "secret")
    target = "../secret" if relative else tmp_path / "secret"
    link_checkpoint(tmp_path / "checkpoint", target, name)
    opened = watch_opened(monkeypatch)
    refused(
        lambda: TensorFiles.open(tmp_path / "checkpoint"),
        f"{tmp_path / 'checkpoint' / name} is a link to {tmp_path / 'secret'}, which is outside",
    )
    assert str(tmp_path / "secret") not in opened


def test_links_over_links_out_of_the_directory_are_refused(tmp_path):
    save_file({"a": np.ones(1)}, tmp_path / "secret")
    link_checkpoint(tmp_path / "checkpoint", "inner", WEIGHTS)
    (tmp_path / "checkpoint" / "inner").symlink_to("up/secret")
    (tmp_path / "checkpoint" / "up").symlink_to("..")
    refused(lambda: TensorFiles.open(tmp_path / "checkpoint"), "which is outside")


def test_an_index_that_is_a_link_out_of_the_directory_is_refused(tmp_path):
    (tmp_path / "secret").write_text('{"weight_map": {}}')
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / INDEX).symlink_to("../secret")
    refused(lambda: TensorFiles.open(tmp_path / "checkpoint"), INDEX, "which is outside")


@pytest.mark.parametrize("name", [WEIGHTS, ONE])
def test_links_to_nothing_and_to_themselves_are_refused(name, tmp_path):
    link_checkpoint(tmp_path / "nothing", "nowhere", name)
    refused(lambda: TensorFiles.open(tmp_path / "nothing"), name, "not there", kind=MissingFile)
    link_checkpoint(tmp_path / "loop", name, name)
    refused(lambda: TensorFiles.open(tmp_path / "loop"), name)


@pytest.mark.parametrize("name", [WEIGHTS, ONE])
def test_a_link_within_the_directory_is_followed(name, tmp_path):
    link_checkpoint(tmp_path / "checkpoint", "files/a", name)
    (tmp_path / "checkpoint" / "files").mkdir()
    save_file({"a": np.ones(1)}, tmp_path / "checkpoint" / "files" / "a")
    assert TensorFiles.open(tmp_path / "checkpoint").read("a").tolist() == [1]
    (tmp_path / "link").symlink_to("checkpoint")  # a directory may be reached as one likes
    assert TensorFiles.open(tmp_path / "link").read("a").tolist() == [1]


@pytest.mark.parametrize("name", [WEIGHTS, ONE])
@pytest.mark.parametrize("below", ["", "0_Transformer"])
def test_the_links_of_the_hubs_cache_are_followed(name, below, tmp_path):
    repository = tmp_path / "models--someone--something"
    (repository / "blobs").mkdir(parents=True)
    save_file({"a": np.ones(1)}, repository / "blobs" / "0123abcd")
    folder = repository / "snapshots" / "fedc" / below
    up = os.path.relpath(repository / "blobs" / "0123abcd", folder)
    link_checkpoint(folder, up, name)
    assert TensorFiles.open(folder).read("a").tolist() == [1]


@pytest.mark.parametrize(
    "target",
    [
        "../../../other/blobs/x",
        "../../elsewhere/x",
        "../other/x",
        "../../../secret",
        "../../blobs/x",
    ],
)
def test_a_snapshot_in_the_hubs_cache_has_blobs_of_its_own_repository_only(target, tmp_path):
    for folder in ("other/blobs", "repository/elsewhere", "repository/snapshots/other", "real"):
        (tmp_path / folder).mkdir(parents=True)
        save_file({"a": np.ones(1)}, tmp_path / folder / "x")
    save_file({"a": np.ones(1)}, tmp_path / "secret")
    (tmp_path / "repository" / "blobs").symlink_to("../real")  # and these are not its own
    folder = tmp_path / "repository" / "snapshots" / "revision"
    link_checkpoint(folder, target, WEIGHTS)
    assert (folder / WEIGHTS).exists()
    refused(lambda: TensorFiles.open(folder), f"{folder / WEIGHTS} is a link to", "outside")


# What is no file


@pytest.fixture
def impatient():
    """Turns waiting for ever into an error."""

    def stop(*_):
        raise TimeoutError("It waits.")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has none of these")
@pytest.mark.parametrize("name", [WEIGHTS, INDEX, ONE])
@pytest.mark.parametrize("kind", ["a pipe", "a directory", "a socket", "a device"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    name, kind, tmp_path, monkeypatch, impatient
):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    if name == ONE:
        sharded(tmp_path)
        (tmp_path / ONE).unlink()
    if kind == "a pipe":
        os.mkfifo(name)
    elif kind == "a directory":
        os.mkdir(name)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(name)
    else:
        os.symlink("/dev/zero", name)
    # A link to a device is one out of the directory, too.
    reason = "is outside" if kind == "a device" else f"must be a file; it is {kind}"
    refused(lambda: TensorFiles.open(tmp_path), name, reason)
    wrong = "is a device" if kind == "a device" else kind
    refused(lambda: read_json(tmp_path / name, limit_bytes=100), name, wrong)


def test_a_directory_that_is_none_is_refused(tmp_path):
    refused(
        lambda: TensorFiles.open(tmp_path / "nowhere"), "nowhere is not there", kind=MissingFile
    )
    (tmp_path / WEIGHTS).write_bytes(b"")
    refused(
        lambda: TensorFiles.open(tmp_path / WEIGHTS),
        f"{WEIGHTS} is a file; name the directory it lies in",
        kind=MissingFile,
    )


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", [WEIGHTS, INDEX])
def test_a_file_that_may_not_be_read_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"{}")
    (tmp_path / name).chmod(0)
    refused(lambda: TensorFiles.open(tmp_path), f"{name} cannot be read: Permission denied")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Broken")])
def test_an_error_of_the_system_is_one_of_the_checkpoint(error, tmp_path, monkeypatch):
    save_file({"a": np.ones(1)}, tmp_path / WEIGHTS)
    files = TensorFiles.open(tmp_path)

    def fail(*_):
        raise error

    monkeypatch.setattr(os, "open", fail)
    for call in (lambda: files.read("a"), lambda: TensorFiles.open(tmp_path)):
        refused(call, f"{WEIGHTS} cannot be read: {error.strerror}")


@pytest.mark.parametrize(
    ("there", "says"),
    [
        ([], "The directory is empty."),
        (["README.md", "tf_model.h5"], "There is 'README.md', 'tf_model.h5'."),
        (["adapter_model.safetensors"], "'adapter_model.safetensors' would have to be named"),
        (["a\x1b[2J"], r"There is 'a\x1b[2J'."),
    ],
)
def test_where_there_are_no_tensors_the_error_says_what_is_there(there, says, tmp_path):
    for name in there:
        (tmp_path / name).touch()
    refused(lambda: TensorFiles.open(tmp_path), f"No {WEIGHTS}", INDEX, says, kind=MissingFile)
