"""No pickle is ever opened, whatever it is called."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from eqxformer.checkpoints.errors import MissingFile
from eqxformer.checkpoints.tensor_files import INDEX, WEIGHTS, TensorFiles
from tests.checkpoints.test_hostile_files import ONE, sharded
from tests.helpers.hostile import refused, watch_opened

PICKLES = ["pytorch_model.bin", "model.pt", "model.pth", "training_args.bin", "x.pkl", "a.ckpt"]


class _Explosive:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickles_are_explosive_and_opening_is_watched(tmp_path, monkeypatch):
    opened = watch_opened(monkeypatch)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(_Explosive(tmp_path / "exploded")))
    with open(tmp_path / "x.pkl", "rb") as file:
        pickle.load(file).close()
    assert (tmp_path / "exploded").exists()
    assert opened[-2:] == [str(tmp_path / "x.pkl"), str(tmp_path / "exploded")]


@pytest.mark.parametrize("beside", ["nothing", "file", "shards"])
def test_pickles_are_never_opened(beside, tmp_path, monkeypatch):
    for name in PICKLES:
        (tmp_path / name).write_bytes(pickle.dumps(_Explosive(tmp_path / "exploded")))
    if beside == "file":
        save_file({"a": np.ones(1)}, tmp_path / WEIGHTS)
    elif beside == "shards":
        sharded(tmp_path)
    opened = watch_opened(monkeypatch)
    if beside == "nothing":
        refused(
            lambda: TensorFiles.open(tmp_path),
            f"No {WEIGHTS} in {tmp_path}",
            "'pytorch_model.bin', 'training_args.bin', ... is a pickle, which can run code and is "
            "never opened; convert it to safetensors",
            "the class that `architectures` in its config.json names",
            "AutoModel drops the head",
            kind=MissingFile,
        )
    else:
        TensorFiles.open(tmp_path).read("a")
        assert any(path.endswith(".safetensors") for path in opened)
    assert not [path for path in opened if path.endswith(tuple(PICKLES))]
    assert not (tmp_path / "exploded").exists()


def test_a_pickle_under_the_name_of_a_safetensors_file_is_not_unpickled(tmp_path):
    for name in (WEIGHTS, ONE):
        (tmp_path / name).write_bytes(pickle.dumps(_Explosive(tmp_path / "exploded")) * 9)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": ONE}}))
    refused(lambda: TensorFiles.open(tmp_path), f"{WEIGHTS} is not a whole safetensors file")
    (tmp_path / WEIGHTS).unlink()
    refused(lambda: TensorFiles.open(tmp_path), f"{ONE} is not a whole safetensors file")
    assert not (tmp_path / "exploded").exists()
