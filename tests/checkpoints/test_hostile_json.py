"""JSON made to do harm is refused by the one exception, soon and small."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqxformer.checkpoints import _json
from eqxformer.checkpoints.errors import MissingFile
from eqxformer.checkpoints.tensor_files import read_json
from tests.helpers.hostile import refused


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{}", {}),
        (' \n{"a": [1, -2.5, 1e3, true, null, "\\ud83d\\ude00", "[{"]}', None),
        ("{" + '"a":[' * 1 + "[" * 98 + "]" * 99 + "}", None),
        ('{"a": "' + '[{"'.replace('"', '\\"') * 1000 + '"}', None),
    ],
)
def test_sound_json_is_read(text, value, tmp_path):
    (tmp_path / "x.json").write_text(text)
    found = read_json(tmp_path / "x.json", limit_bytes=10_000)
    assert found == (json.loads(text) if value is None else value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"{}\0", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b"null", "must be a JSON object; got NoneType"),
        (b'"a"', "must be a JSON object; got str"),
        (b'{"a": NaN}', "must be a number; got nan"),
        (b'{"a": Infinity}', "must be finite; got infinity"),
        (b'{"a": [-Infinity]}', "must be finite; got -infinity"),
        (b'{"a": 1e999}', "must be finite; got 1e999"),
        (b'{"a": -1e999}', "must be finite; got -1e999"),
        (b'{"a": ' + b"9" * 10**5 + b"}", "not JSON"),
        (b'{"a": 1, "a": 1}', "`a` is there twice"),
        (b'{"a": {"b": 1, "\\u0062": 1}}', "`b` is there twice"),
        (b'{"' + b"a" * 10**5 + b'": 1, "' + b"a" * 10**5 + b'": 1}', "is there twice"),
        (b'{"a\\n": 1, "a\\n": 1}', r"`a\n` is there twice"),
        (b"\xff\xfe{\0}\0", "not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8"),
        (b'{"a": "\\udfff"}', "half of a surrogate pair"),
        (b'{"\\uD800": "\\uD800"}', "half of a surrogate pair"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested at most 100 deep"),
        (b"[" * 10**5, "nested at most 100 deep"),
        (b'{"\\"":' * 10**5 + b"1" + b"}" * 10**5, "nested at most 100 deep"),
        (b'{"a' + b'\\"' * 10**6, "not JSON"),
        (b'{"a":"\\', "not JSON"),
        (b"[]" * 10**6, "not JSON"),
        (b"]" * 10**6, "not JSON"),
        (b'"' * 10**6, "not JSON"),
    ],
)
def test_json_that_is_none_is_refused(text, reason, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    refused(lambda: read_json(path, limit_bytes=3 * 10**6), f"{path}: ", reason)


def test_json_larger_than_its_limit_is_not_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json(path, limit_bytes=8) == {"a": 1}
    refused(lambda: read_json(path, limit_bytes=7), f"{path} may hold 7 bytes of JSON at most")
    refused(lambda: read_json(tmp_path / "y", limit_bytes=7), "No y in", kind=MissingFile)


@given(st.binary(max_size=30) | st.text('[]{}",:\\ u', max_size=60).map(str.encode))
def test_the_depth_of_json_is_never_counted_too_low(data):
    """A parser that follows strings and escapes one character at a time agrees on sound JSON."""
    with contextlib.suppress(ValueError):
        json.loads(data.decode("utf-8", "surrogateescape"))
        # Few brackets are not counted at all.
        assert _json._depth(b"[]" * 101 + data) == max(1, _depth_of(data))


def _depth_of(data):
    deepest = depth = 0
    quoted = escaped = False
    for byte in data:
        if quoted:
            quoted = escaped or byte != ord('"')
            escaped = not escaped and byte == ord("\\")
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
        elif byte == ord('"'):
            quoted = True
    return deepest
