"""Headers made to do harm: any bytes give the tensors that they declare or the one exception."""

import json
import os
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from eqxformer.checkpoints import _header, tensor_files
from eqxformer.checkpoints.errors import CheckpointError
from eqxformer.checkpoints.tensor_files import WEIGHTS, TensorFiles
from tests.helpers.hostile import refused
from tests.helpers.safetensors import raw_file, write_raw

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(**changes):
    """The header of a file of one tensor of eight bytes, changed."""
    return json.dumps({"a": {**F32, **changes}})


def entries(**spans):
    """The header of a file of bytes by their spans."""
    return json.dumps(
        {
            n: {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]}
            for n, (a, b) in spans.items()
        }
    )


# A file too short, or a header too long


@pytest.mark.parametrize("count", range(8))
def test_a_file_without_room_for_its_first_number(count, tmp_path):
    (tmp_path / WEIGHTS).write_bytes(b"\1" * count)
    refused(
        lambda: TensorFiles.open(tmp_path),
        f"{WEIGHTS} is not a whole safetensors file: it has {count} bytes",
    )


@pytest.mark.parametrize("length", [3, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file(length, tmp_path):
    write_raw(tmp_path / WEIGHTS, "{}", length=length)
    refused(
        lambda: TensorFiles.open(tmp_path),
        f"{WEIGHTS} is not a whole safetensors file",
        f"should have {length:,} bytes",
    )


@pytest.mark.parametrize("length", [_header.MAX_HEADER + 1, 101 * 10**6, 2**40])
def test_a_header_longer_than_any(length, tmp_path):
    write_raw(tmp_path / WEIGHTS, "{}", length=length)
    os.truncate(tmp_path / WEIGHTS, 2**41)  # a hole: nothing is on the disk
    refused(
        lambda: TensorFiles.open(tmp_path),
        WEIGHTS,
        "its header may have 8,388,608 bytes at most",
        f"it has {length:,}",
    )


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_file_that_was_cut_off(kept, tmp_path):
    data = save({f"tensor {n}": np.ones(n) for n in range(20)})
    (tmp_path / WEIGHTS).write_bytes(data[: int(len(data) * kept)])
    refused(lambda: TensorFiles.open(tmp_path), f"{WEIGHTS} is not a whole safetensors file")


# A header that says what it should not


HEADERS = {
    "empty": ("", "must begin with a brace"),
    "spaces": (" " * 8, "must begin with a brace"),
    "words": ("not at all", "must begin with a brace"),
    "list": ("[]", "must begin with a brace"),
    "space before": (" " + entry(), "must begin with a brace"),
    "byte order mark": (b"\xef\xbb\xbf" + entry().encode(), "must begin with a brace"),
    "cut off": (entry()[:-1], "not JSON"),
    "two": (entry() * 2, "not JSON"),
    "pickle": (b"\x80\x04}q\0.", "must begin with a brace"),
    "NUL behind": (entry().encode() + b"\0", "not JSON"),
    "not UTF-8": (b'{"\xff":' + json.dumps(F32).encode() + b"}", "not UTF-8"),
    "overlong UTF-8": (b'{"\xc0\xae":' + json.dumps(F32).encode() + b"}", "not UTF-8"),
    "half a pair": ('{"\\ud800":' + json.dumps(F32) + "}", "half of a surrogate pair"),
    "deep lists": ('{"a":' + "[" * 10**5 + "]" * 10**5 + "}", "nested at most 100 deep"),
    "deep objects": ('{"a":' * 10**5 + "1" + "}" * 10**5, "nested at most 100 deep"),
    "deep and open": ('{"a":' * 10**5, "nested at most 100 deep"),
    "deep metadata": ('{"__metadata__":' + '{"a":' * 10**5, "nested at most 100 deep"),
    "huge number": (entry().replace("[2]", f"[{'9' * 5000}]"), "not JSON"),
    "same name twice": (f'{{"a":{json.dumps(F32)},"a":{json.dumps(F32)}}}', "`a` is there twice"),
    "escaped twice": (
        f'{{"a":{json.dumps(F32)},"\\u0061":{json.dumps(F32)}}}',
        "`a` is there twice",
    ),
    "same key twice": (entry()[:-2] + ',"shape":[2]}}', "`shape` is there twice"),
    "metadata twice": ('{"__metadata__":{},"__metadata__":{}}', "`__metadata__` is there twice"),
    "entry is a list": ('{"a":["F32",[2],[0,8]]}', "must have dtype, shape and data_offsets"),
    "entry is null": ('{"a":null}', "must have dtype, shape and data_offsets"),
    "key missing": ('{"a":{"dtype":"F32","shape":[2]}}', "must have dtype, shape and data_offsets"),
    "key unknown": (entry(strides=[1]), "must have dtype, shape and data_offsets"),
    "type unknown": (entry(dtype="F128"), "'a' is of type 'F128'; the known ones are BOOL, U8"),
    "type in small": (entry(dtype="f32"), "is of type 'f32'"),
    "type of Python": (entry(dtype="object"), "is of type 'object'"),
    "type is a list": (entry(dtype=["F32"]), "is of type ['F32']"),
    "type is null": (entry(dtype=None), "is of type None"),
    "shape negative": (entry(shape=[-2]), "must be up to 32 whole numbers"),
    "shape twice negative": (entry(shape=[-1, -2]), "must be up to 32 whole numbers"),
    "shape a float": (entry(shape=[2.0]), "must be up to 32 whole numbers"),
    "shape true": (entry(shape=[2, True]), "must be up to 32 whole numbers"),
    "shape text": (entry(shape=["2"]), "must be up to 32 whole numbers"),
    "shape a number": (entry(shape=2), "must be up to 32 whole numbers"),
    "shape null": (entry(shape=None), "must be up to 32 whole numbers"),
    "shape an object": (entry(shape={"2": 2}), "must be up to 32 whole numbers"),
    "shape not finite": (entry().replace("[2]", "[1e999]"), "must be finite"),
    "shape NaN": (entry().replace("[2]", "[NaN]"), "must be a number"),
    "shape too large": (entry(shape=[2**63]), "must be up to 32 whole numbers"),
    "axes": (entry(shape=[2] + [1] * 32), "must be up to 32 whole numbers"),
    "a million axes": (entry(shape=[1] * 10**6), "must be up to 32 whole numbers"),
    "shape too small": (entry(shape=[1]), "has 4 bytes; its data_offsets give it 8"),
    "shape too wide": (entry(shape=[3]), "has 12 bytes; its data_offsets give it 8"),
    "type too wide": (entry(dtype="F64"), "has 16 bytes; its data_offsets give it 8"),
    "product too large": (entry(shape=[2**40, 2**40]), "is larger than any memory"),
    "product around 2^64": (entry(shape=[2**32, 2**31, 2]), "is larger than any memory"),
    "product of 2^61 floats": (entry(shape=[2**61]), "is larger than any memory"),
    "product zero": (
        entry(shape=[0, 2**62, 2**62], data_offsets=[0, 0]),
        "is larger than any memory",
    ),
    "empty but offset": (entry(shape=[0]), "has 0 bytes; its data_offsets give it 8"),
    "offsets reversed": (entry(data_offsets=[8, 0]), "bytes 8 to 0 of 'a' are not among the 8"),
    "offsets negative": (entry(data_offsets=[-8, 0]), "must have two data_offsets"),
    "offsets behind": (entry(data_offsets=[8, 16]), "bytes 8 to 16 of 'a' are not among the 8"),
    "offsets far": (entry(data_offsets=[2**62, 2**62 + 8]), "are not among the 8 bytes"),
    "offsets too large": (entry(data_offsets=[0, 2**64 + 8]), "must have two data_offsets"),
    "one offset": (entry(data_offsets=[8]), "must have two data_offsets"),
    "three offsets": (entry(data_offsets=[0, 8, 8]), "must have two data_offsets"),
    "offsets true": (entry(data_offsets=[False, 8]), "must have two data_offsets"),
    "offsets floats": (entry(data_offsets=[0.0, 8.0]), "must have two data_offsets"),
    "offsets an object": (entry(data_offsets={"0": 8}), "must have two data_offsets"),
    "over each other": (entries(a=(0, 5), b=(3, 8)), "'a' and 'b' lie over the same bytes"),
    "the same bytes": (entries(a=(0, 8), b=(0, 8)), "'a' and 'b' lie over the same bytes"),
    "one in the other": (entries(a=(0, 8), b=(2, 4)), "'a' and 'b' lie over the same bytes"),
    "empty in another": (entries(a=(0, 8), b=(2, 2)), "'a' and 'b' lie over the same bytes"),
    "hole": (entries(a=(0, 3), b=(5, 8)), "2 bytes before 'b' belong to no tensor"),
    "hole at first": (entries(a=(1, 8)), "1 bytes before 'a' belong to no tensor"),
    "rest": (entries(a=(0, 3)), "5 bytes at its end belong to no tensor"),
    "rest of all": ("{}", "8 bytes at its end belong to no tensor"),
    "no name": (f'{{"":{json.dumps(F32)}}}', "the name of a tensor must be"),
    "space first": (f'{{" a":{json.dumps(F32)}}}', "the name of a tensor must be"),
    "space last": (f'{{"a ":{json.dumps(F32)}}}', "the name of a tensor must be"),
    "newline": (f'{{"a\\nb":{json.dumps(F32)}}}', r"got 'a\nb'"),
    "terminal": (f'{{"\\u001b[2J":{json.dumps(F32)}}}', r"got '\x1b[2J'"),
    "NUL": (f'{{"a\\u0000":{json.dumps(F32)}}}', r"got 'a\x00'"),
    "right to left": (f'{{"a\\u202eb":{json.dumps(F32)}}}', r"got 'a\u202eb'"),
    "no-break space": (f'{{"a\\u00a0b":{json.dumps(F32)}}}', r"got 'a\xa0b'"),
    "long name": (f'{{"{"a" * 10**6}":{json.dumps(F32)}}}', "must be 1 to 1,000 printable"),
    "metadata a list": ('{"__metadata__":[]}', "__metadata__ must be an object of strings"),
    "metadata null": ('{"__metadata__":null}', "__metadata__ must be an object of strings"),
    "metadata numbers": ('{"__metadata__":{"a":1}}', "__metadata__ must be an object of strings"),
    "metadata nested": ('{"__metadata__":{"a":{}}}', "__metadata__ must be an object of strings"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_is_none(case, tmp_path):
    header, reason = HEADERS[case]
    write_raw(tmp_path / WEIGHTS, header, bytes(8))
    refused(
        lambda: TensorFiles.open(tmp_path),
        f"{tmp_path / WEIGHTS} is not a whole safetensors file: ",
        reason,
    )


def test_the_header_that_those_were_made_of_is_one(tmp_path):
    write_raw(tmp_path / WEIGHTS, entry(), bytes(8))
    assert TensorFiles.open(tmp_path).read("a").tolist() == [0, 0]
    write_raw(tmp_path / WEIGHTS, entries(b=(3, 8), a=(0, 3), c=(3, 3), d=(8, 8)), bytes(range(8)))
    files = TensorFiles.open(tmp_path)
    assert [files.read(n).tolist() for n in "abcd"] == [[0, 1, 2], [3, 4, 5, 6, 7], [], []]


DENSE = {
    "lists": ('{"a":[' + "[]," * 10, "[],", "[]]}"),
    "objects": ('{"a":[', "{},", "{}]}"),
    "numbers": ('{"a":[', "1.5,", "1.5]}"),
    "keys": ("{", None, '"":1}'),
    "one key": ("{", '"a":1,', '"a":1}'),
}


@pytest.mark.parametrize("case", DENSE)
def test_a_header_as_large_and_as_dense_as_one_may_be(case, tmp_path):
    first, item, last = DENSE[case]
    room = _header.MAX_HEADER - len(first) - len(last)
    items = item * (room // len(item)) if item else "".join(f'"{n}":1,' for n in range(room // 11))
    write_raw(tmp_path / WEIGHTS, first + items + last)
    start = time.process_time()
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        TensorFiles.open(tmp_path)
    assert time.process_time() - start < 2  # 0.3 to 0.9 seconds on an old machine


def test_booleans_that_are_neither_true_nor_false(tmp_path):
    header = {"a": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}
    write_raw(tmp_path / WEIGHTS, json.dumps(header), b"\1\2")
    files = TensorFiles.open(tmp_path)
    refused(lambda: files.read("a"), WEIGHTS, "'a' has bytes that are neither false nor true")


def test_names_that_look_like_paths_are_names_and_nothing_else(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    raw_file(folder / WEIGHTS, {"../../x": ("U8", [2]), "/etc/passwd": ("U8", [3])})
    files = TensorFiles.open(folder)
    assert files.names == ("../../x", "/etc/passwd")
    assert files.read("/etc/passwd").tolist() == [0, 0, 0]
    (folder / WEIGHTS).unlink()
    tensors = [("../../y", lambda: np.ones(1), (1,), np.float64)]
    tensor_files.write_tensors(folder, tensors, shard_bytes=100)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in folder.iterdir()] == [WEIGHTS]


# Any bytes at all


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One directory for many examples."""
    return tmp_path_factory.mktemp("any")


def check_any(folder, data):
    """Whether a file of these bytes is read; if so, as a reader that trusts its header reads it."""
    (folder / WEIGHTS).write_bytes(data)
    try:
        files = TensorFiles.open(folder)
        found = {name: files.read(name) for name in files.names}
    except CheckpointError:
        return False
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    assert found.keys() == header.keys()
    for name, array in found.items():
        entry = header[name]
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        assert array.dtype == _header.DTYPES[entry["dtype"]]
        assert list(array.shape) == entry["shape"]
        assert array.tobytes() == data[start:end]
    return True


SOUND = save(
    {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bb": np.array([True, False]),
        "c": np.zeros((0, 4), np.int64),
        "d": np.array(2.5, np.float16),
    },
    metadata={"format": "pt"},
)
HEADER_END = 8 + int.from_bytes(SOUND[:8], "little")

changes = st.lists(
    st.tuples(
        st.integers(0, len(SOUND) - 1) | st.integers(0, HEADER_END - 1),
        st.sampled_from(["set", "delete", "insert", "copy"]),
        st.binary(min_size=1, max_size=3)
        | st.sampled_from(list(b'0129"{}[],:\\ e-')).map(chr).map(str.encode),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=400, deadline=None)
@given(changes=changes, keep_length=st.booleans(), cut=st.none() | st.integers(0, len(SOUND)))
def test_a_changed_file_gives_what_it_declares_or_the_one_error(place, changes, keep_length, cut):
    data = bytearray(SOUND)
    for position, kind, new in changes:
        if kind == "set":
            data[position : position + len(new)] = new
        elif kind == "insert":
            data[position:position] = new
        elif kind == "copy":
            data[position:position] = data[position : position + 8 * len(new)]
        else:
            del data[position : position + len(new)]
    if not keep_length:  # a header of the new length, so that the change is inside of it
        grown = len(data) - len(SOUND)
        data[:8] = max(0, HEADER_END - 8 + grown).to_bytes(8, "little")
    check_any(place, bytes(data[:cut]))


def test_the_file_that_those_are_made_of_is_sound(place):
    assert check_any(place, SOUND)


numbers = st.integers(-2, 40) | st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, 10**30])
junk = st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | st.text(max_size=3)
fields = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*_header.DTYPES, "F4", "f32"]) | junk,
        "shape": st.lists(st.integers(0, 4) | numbers, max_size=4)
        | st.lists(junk, max_size=3)
        | junk,
        "data_offsets": st.lists(numbers, min_size=2, max_size=2).map(sorted)
        | st.lists(junk)
        | junk,
    },
    optional={"extra": junk},
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(max_size=4), fields | junk, max_size=4), st.binary(max_size=60))
def test_a_header_of_any_values_gives_what_it_declares_or_the_one_error(place, header, data):
    text = json.dumps(header).encode()
    check_any(place, len(text).to_bytes(8, "little") + text + data)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(_header.DTYPES)), st.lists(st.integers(0, 3), max_size=3)),
        max_size=4,
    ),
    st.sampled_from([-1, 0, 0, 0, 1]),
)
def test_a_file_is_read_if_and_only_if_it_is_sound(place, layout, excess):
    tensors = {f"t{number}": entry for number, entry in enumerate(layout)}
    raw_file(place / WEIGHTS, tensors)
    data = (place / WEIGHTS).read_bytes()
    sound = excess == 0 or (excess < 0 and data == data[:excess])
    data = data + b"\0" if excess > 0 else data[: len(data) + excess]
    assert check_any(place, data) == sound
