"""Tensors are read and written as the safetensors library does, one at a time, never as pickles."""

import json
import os
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors import deserialize, safe_open
from safetensors.numpy import load_file, save_file

from eqxformer.checkpoints import _writing
from eqxformer.checkpoints._header import DTYPES
from eqxformer.checkpoints.errors import CheckpointError, MissingFile
from eqxformer.checkpoints.tensor_files import (
    INDEX,
    WEIGHTS,
    TensorFiles,
    parse_size,
    write_tensors,
)
from tests.helpers.safetensors import raw_file, shard_files

SHAPES = [(), (0,), (1,), (3, 0, 2), (2, 3), (5, 1, 2, 1)]
PLAIN = {"a": (2, 3), "b": (4,), "c": (), "d": (5,)}


def random_tensors(seed=0):
    """A tensor of every type and shape with random bits, so that NaNs of all kinds are there."""
    random = np.random.default_rng(seed)
    tensors = {}
    for kind, dtype in DTYPES.items():
        for number, shape in enumerate(SHAPES):
            top = 2 if dtype == np.bool_ else 256
            count = int(np.prod(shape)) * dtype.itemsize
            raw = random.integers(0, top, count, dtype=np.uint8)
            tensors[f"{kind.lower()}.{number}"] = raw.view(dtype).reshape(shape)
    return tensors


def sources(tensors):
    return [(name, lambda a=a: a, a.shape, a.dtype) for name, a in tensors.items()]


def by_the_library(path):
    """What the safetensors library reads; its own arrays leave out some types of eight bits."""
    return {
        name: np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in deserialize(path.read_bytes())
    }


def assert_same_bits(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


# Agreement with the safetensors library


def test_every_type_and_shape_that_the_library_writes_is_read_as_it_was(tmp_path):
    tensors = random_tensors()
    save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    files = TensorFiles.open(tmp_path)
    assert files.names == tuple(sorted(tensors))
    assert files.nbytes == sum(array.nbytes for array in tensors.values())
    theirs = by_the_library(tmp_path / WEIGHTS)
    for name, array in tensors.items():
        assert name in files
        assert files.shape(name) == array.shape
        assert files.dtype(name) == array.dtype
        assert_same_bits(files.read(name), array)
        assert_same_bits(files.read(name), theirs[name])


def test_every_type_and_shape_that_is_written_is_read_by_the_library_as_it_was(tmp_path):
    tensors = random_tensors()
    write_tensors(tmp_path, sources(tensors), shard_bytes=10**6)
    theirs = by_the_library(tmp_path / WEIGHTS)
    assert theirs.keys() == tensors.keys()
    for name, array in tensors.items():
        assert_same_bits(theirs[name], array)
    with safe_open(tmp_path / WEIGHTS, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_file_is_byte_for_byte_the_one_that_the_library_writes(tmp_path):
    """So that loading and saving a checkpoint of the ecosystem changes nothing."""
    types = [np.float32, np.bool_, np.float16, np.int64, np.uint8, ml_dtypes.bfloat16, np.float64]
    tensors = {f"{n} ß {t.__name__}": np.ones((3, n), t) for n in (2, 11) for t in types}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    write_tensors(tmp_path, sources(tensors), shard_bytes=10**6)
    assert (tmp_path / WEIGHTS).read_bytes() == (tmp_path / "theirs").read_bytes()


def test_other_axes_of_an_array_are_written_in_order(tmp_path):
    turned = np.arange(12, dtype=np.float32).reshape(3, 4).T
    write_tensors(tmp_path, [("a", lambda: turned, (4, 3), np.float32)], shard_bytes=100)
    np.testing.assert_array_equal(load_file(tmp_path / WEIGHTS)["a"], turned)
    np.testing.assert_array_equal(TensorFiles.open(tmp_path).read("a"), turned)


def test_no_tensors_at_all_are_a_file_too(tmp_path):
    write_tensors(tmp_path, [], shard_bytes=1)
    assert load_file(tmp_path / WEIGHTS) == {}
    assert TensorFiles.open(tmp_path).names == ()


def test_tensors_lie_at_multiples_of_the_size_of_their_type(tmp_path):
    """Those who map the file need that; a type of one byte comes last therefore."""
    tensors = {"a": np.ones(3, np.int8), "b": np.ones(5, np.float16), "c": np.ones(1, np.float64)}
    write_tensors(tmp_path, sources(tensors), shard_bytes=100)
    data = (tmp_path / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert {n: header[n]["data_offsets"] for n in "abc"} == {
        "c": [0, 8],
        "b": [8, 18],
        "a": [18, 21],
    }


# Reading


def test_what_is_read_is_the_readers_own(tmp_path):
    save_file({"a": np.arange(4.0)}, tmp_path / WEIGHTS)
    files = TensorFiles.open(tmp_path)
    first = files.read("a")
    first[:] = 7
    np.testing.assert_array_equal(files.read("a"), np.arange(4.0))


def test_reading_a_tensor_of_a_large_file_takes_the_memory_of_that_tensor(tmp_path):
    sizes = {"huge": 2**36, "one": 10**6, "two": 10**6}
    raw_file(tmp_path / WEIGHTS, {n: ("U8", [s]) for n, s in sizes.items()}, sparse=True)
    tracemalloc.start()
    try:
        files = TensorFiles.open(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 10**6
        tracemalloc.reset_peak()
        assert files.read("two").sum() == 0
        assert 10**6 <= tracemalloc.get_traced_memory()[1] < 1.2 * 10**6
    finally:
        tracemalloc.stop()
    assert files.nbytes == sum(sizes.values())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux what is mapped")
def test_nothing_is_mapped_and_no_file_stays_open(tmp_path):
    save_file({"a": np.arange(4.0)}, tmp_path / WEIGHTS)
    files = TensorFiles.open(tmp_path)
    kept = files.read("a")
    with open("/proc/self/maps") as maps:
        assert str(tmp_path) not in maps.read()
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    assert not [n for n in links if os.path.lexists(n) and str(tmp_path) in os.readlink(n)]
    assert kept.sum() == 6


def test_a_file_that_changes_after_it_was_checked_is_not_read(tmp_path):
    path = tmp_path / WEIGHTS
    save_file({"a": np.arange(4.0), "b": np.arange(4.0)}, path)
    files = TensorFiles.open(tmp_path)
    (tmp_path / "other").write_bytes(path.read_bytes())
    os.replace(tmp_path / "other", path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has changed since"):
        files.read("a")
    files = TensorFiles.open(tmp_path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has changed since"):
        files.read("a")
    path.unlink()
    with pytest.raises(MissingFile, match=r"model\.safetensors"):
        files.read("a")


def test_a_relative_directory_stays_the_same_when_the_process_moves(tmp_path, monkeypatch):
    save_file({"a": np.arange(4.0)}, tmp_path / WEIGHTS)
    monkeypatch.chdir(tmp_path.parent)
    files = TensorFiles.open(tmp_path.name)
    monkeypatch.chdir("/")
    assert files.read("a").sum() == 6


def test_an_unknown_name_is_a_key_error(tmp_path):
    save_file({"a": np.arange(4.0)}, tmp_path / WEIGHTS)
    files = TensorFiles.open(tmp_path)
    assert "b" not in files
    assert 3 not in files
    for ask in (files.read, files.shape, files.dtype):
        with pytest.raises(KeyError, match="b"):
            ask("b")


# Shards


@pytest.mark.parametrize(
    ("limit", "shards"),
    [
        (1000, [["a", "b", "c", "d", "e"]]),
        (100, [["a", "b", "c", "d", "e"]]),
        (60, [["a", "b", "c", "d"], ["e"]]),
        (40, [["c"], ["a", "b", "d"], ["e"]]),  # what is larger than a shard goes first
        (1, [["a"], ["c"], ["d"], ["e"], ["b"]]),
    ],
)
def test_shards_are_filled_in_the_order_given(limit, shards, tmp_path):
    sizes = {"a": 4, "b": 1, "c": 44, "d": 8, "e": 32}
    tensors = {name: np.full(size, ord(name), np.uint8) for name, size in sizes.items()}
    write_tensors(tmp_path, sources(tensors), shard_bytes=limit)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]
    else:
        assert {path.name for path in tmp_path.iterdir()} == {INDEX, *files}
        index = json.loads((tmp_path / INDEX).read_text())
        assert index == {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {n: f for f, names in zip(files, shards, strict=True) for n in names},
        }
    found = TensorFiles.open(tmp_path)
    assert found.names == tuple(sizes)
    for name, array in tensors.items():
        assert_same_bits(found.read(name), array)


def test_an_index_is_written_as_transformers_writes_it(tmp_path):
    tensors = {name: np.zeros(shape, np.float32) for name, shape in PLAIN.items()}
    write_tensors(tmp_path, sources(tensors), shard_bytes=30)
    assert (tmp_path / INDEX).read_text() == (
        '{\n  "metadata": {\n    "total_size": 64\n  },\n  "weight_map": {\n'
        '    "a": "model-00001-of-00003.safetensors",\n'
        '    "b": "model-00002-of-00003.safetensors",\n'
        '    "c": "model-00002-of-00003.safetensors",\n'
        '    "d": "model-00003-of-00003.safetensors"\n  }\n}\n'
    )


def test_the_same_tensors_in_another_order_are_the_same_file(tmp_path):
    tensors = random_tensors()
    for name, given in {"one": tensors, "two": dict(reversed(tensors.items()))}.items():
        (tmp_path / name).mkdir()
        write_tensors(tmp_path / name, sources(given), shard_bytes=10**6)
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "two" / WEIGHTS).read_bytes()


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    size = 2**20
    tensors = [(n, lambda: np.ones(size, np.uint8), (size,), np.uint8) for n in "abcdefgh"]
    for limit in (10**9, 3 * size):
        folder = tmp_path / str(limit)
        folder.mkdir()
        tracemalloc.start()
        try:
            write_tensors(folder, tensors, shard_bytes=limit)
            assert tracemalloc.get_traced_memory()[1] < 2.2 * size  # one going, one coming
        finally:
            tracemalloc.stop()


def test_the_single_file_counts_where_an_index_is_there_too(tmp_path):
    shard_files(tmp_path, {"one.safetensors": {"a": np.zeros(2)}})
    save_file({"b": np.zeros(3)}, tmp_path / WEIGHTS)
    assert TensorFiles.open(tmp_path).names == ("b",)


# Writing what cannot be read is refused


@pytest.mark.parametrize("name", ["", " a", "a ", "a\nb", "a\x00", "\ud800", "a" * 1001])
def test_names_that_would_not_be_read_are_not_written(name, tmp_path):
    with pytest.raises(ValueError, match="the name of a tensor must be 1 to 1,000 printable"):
        write_tensors(tmp_path, sources({name: np.zeros(2)}), shard_bytes=100)
    assert not list(tmp_path.iterdir())


def test_a_name_is_that_of_one_tensor(tmp_path):
    with pytest.raises(ValueError, match="a is taken already"):
        write_tensors(tmp_path, sources({"a": np.zeros(2)}) * 2, shard_bytes=100)
    with pytest.raises(ValueError, match="__metadata__ is taken already"):
        write_tensors(tmp_path, sources({"__metadata__": np.zeros(2)}), shard_bytes=100)


@pytest.mark.parametrize("dtype", [">f4", np.complex128, "M8[s]", "U3", ml_dtypes.int4])
def test_types_that_the_format_lacks_are_not_written(dtype, tmp_path):
    with pytest.raises(ValueError, match=r"a is .*; the types of safetensors are bool, uint8"):
        write_tensors(tmp_path, sources({"a": np.zeros(2, dtype)}), shard_bytes=100)


@pytest.mark.parametrize("limit", [0, -1, True])
def test_the_size_of_a_shard_is_a_number_of_bytes(limit, tmp_path):
    with pytest.raises(ValueError, match="`shard_bytes` must be a positive number of bytes"):
        write_tensors(tmp_path, sources({"a": np.zeros(2)}), shard_bytes=limit)


@pytest.mark.parametrize("made", [np.zeros((2, 1), np.float32), np.zeros(2, np.float16)])
def test_an_array_must_be_what_was_announced(made, tmp_path):
    with pytest.raises(ValueError, match=r"a should be float32 of shape \(2,\); it was made as"):
        write_tensors(tmp_path, [("a", lambda: made, (2,), np.float32)], shard_bytes=100)


def test_no_file_is_overwritten(tmp_path):
    write_tensors(tmp_path, sources({"a": np.zeros(2)}), shard_bytes=100)
    before = (tmp_path / WEIGHTS).read_bytes()
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path, sources({"b": np.ones(2)}), shard_bytes=100)
    assert (tmp_path / WEIGHTS).read_bytes() == before


def test_a_header_that_would_not_be_read_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(_writing, "MAX_HEADER", 100)
    tensors = {name: np.zeros(2) for name in "abc"}
    with pytest.raises(ValueError, match="3 tensors are too many for one file; use smaller shards"):
        write_tensors(tmp_path, sources(tensors), shard_bytes=1000)
    write_tensors(tmp_path, sources(tensors), shard_bytes=16)


def test_files_are_on_the_disk_before_writing_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd)))
    write_tensors(tmp_path, sources({n: np.zeros(4) for n in "ab"}), shard_bytes=32)
    assert sorted(synced) == sorted(path.stat().st_ino for path in tmp_path.iterdir())


# Sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("500MB", 5 * 10**8),
        ("100_000", 100_000),
        ("7", 7),
        (12, 12),
        ("3 kB", 3000),
        (" 2gib ", 2**31),
        ("1.5MiB", 3 * 2**19),
        ("2TB", 2 * 10**12),
        ("0.001kb", 1),
        ("16b", 16),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "5 GBs", "-5GB", "5G", "1e9", "५GB", "inf", -3, True, "1,000"]
)
def test_anything_else_is_no_size(text):
    with pytest.raises(ValueError, match="must look like 5GB, 500MB, 2GiB or 100_000"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", 0, "0.1B", "0.0004KB"])
def test_a_size_is_one_byte_at_least(text):
    with pytest.raises(ValueError, match="at least one byte"):
        parse_size(text)
