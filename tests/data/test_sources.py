import itertools
import json
import os
import pickle
from pathlib import Path

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eqxformer as ef
from eqxformer.data import sources
from eqxformer.data.documents import check_documents


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(path, content):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def every(documents):
    found = [documents[number] for number in range(len(documents))]
    assert [str(one) for one in documents] == [str(one) for one in found]
    return found


def test_texts_come_from_files_directories_and_patterns_each_once_by_name():
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "notes.md"):
        write(f"books/{name}", f"text of {name}")
    texts = ef.TextFiles("books").open()
    assert every(texts) == ["text of a.txt", "text of b.txt", "text of deep/er/c.txt"]
    assert every(ef.TextFiles("books/*.md").open()) == ["text of notes.md"]
    assert every(ef.TextFiles("books/**/*.txt").open()) == every(texts)
    several = ef.TextFiles(("books/b.txt", "books/?.txt"))
    assert every(several.open()) == ["text of b.txt", "text of a.txt"]
    assert ef.Config.from_json(several.to_json()) == several


def test_lines_of_json_are_documents_of_text_ids_or_several_fields():
    lines = [{"text": "eins", "en": "one", "ids": [1, 2]}, {"text": "zwei", "en": "", "ids": []}]
    write("some.jsonl", "\ufeff" + "\r\n".join(json.dumps(line) for line in lines))
    write("more/x.jsonl", '{"text": "drei\\nvier"}\n')
    documents = ef.JsonLines(("some.jsonl", "more")).open()
    assert every(documents) == ["eins", "zwei", "drei\nvier"]
    assert documents.where(2) == "Line 1 of `more/x.jsonl`"
    pairs = ef.JsonLines("some.jsonl", fields=("text", "en")).open()
    assert every(pairs) == [("eins", "one"), ("zwei", "")]
    ids = every(ef.JsonLines("some.jsonl", fields="ids").open())
    assert [row.tolist() for row in ids] == [[1, 2], []]


@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(st.text(max_size=8), min_size=1, max_size=8), last=st.sampled_from(["", "\n"])
)
def test_any_text_comes_back_from_its_line(texts, last):
    encoded = [json.dumps({"text": text}, ensure_ascii=len(texts) % 2 == 0) for text in texts]
    write("any.jsonl", ("\n".join(encoded) + last).encode("utf-8", "surrogatepass"))
    assert every(ef.JsonLines("any.jsonl").open()) == texts


BAD_LINES = {
    "not json": ('{"text": "x"', "Line 2 of `bad.jsonl` is no document. This is not JSON"),
    "not an object": ('["x"]', "must be a JSON object; got list"),
    "no such field": ('{"txt": "x"}', "has no field `text`; its fields are txt"),
    "a number": ('{"text": 3}', "must be a text or a list of token ids; got 3"),
    "null": ('{"text": null}', "got None"),
    "not whole numbers": ('{"text": [1, 2.5]}', "got [1, 2.5]"),
    "truth for numbers": ('{"text": [true]}', "got [True]"),
    "a field twice": ('{"text": "x", "text": "y"}', "`text` is there twice"),
    "huge": ('{"text": [99999999999999999999]}', "got [99999999999999999999]"),
    "not utf-8": (b'{"text": "\xff"}', "can't decode byte 0xff"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_an_error_that_names_file_and_line(name):
    line, message = BAD_LINES[name]
    line = line if isinstance(line, bytes) else line.encode()
    write("bad.jsonl", b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    documents = ef.JsonLines("bad.jsonl").open()
    assert len(documents) == 3
    assert documents[0] == documents[2] == "good"
    with pytest.raises(ValueError, match=r"Line 2 of `bad\.jsonl` is no document") as error:
        documents[1]
    assert message in str(error.value)
    with pytest.raises(ValueError, match=r"Line 2 of `bad\.jsonl`"):
        ef.tokenized(documents, lambda text: [len(text)])


@pytest.mark.parametrize("blank", [b"\n", b"\r\n"])
def test_a_blank_line_is_an_error_and_an_end_of_the_last_line_is_none(blank):
    write("blank.jsonl", b'{"text": "a"}\n' + blank + b'{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"Line 2 of `blank\.jsonl` is blank"):
        ef.JsonLines("blank.jsonl").open()
    write("blank.jsonl", b'{"text": "a"}\n{"text": "b"}\n' + blank)
    with pytest.raises(ValueError, match=r"Line 3 of `blank\.jsonl` is blank"):
        ef.JsonLines("blank.jsonl").open()


def test_arrays_are_mapped_and_cut_behind_each_separator():
    ids = np.array([5, 6, 0, 0, 7, 0, 8], np.uint16)
    wanted = [[5, 6, 0], [0], [7, 0], [8]]
    np.save("ids.npy", ids)
    ids.tofile("ids.bin")
    for path, dtype in (("ids.npy", None), ("ids.bin", "uint16")):
        documents = ef.TokenFiles(path, dtype=dtype, separator=0).open()
        assert isinstance(documents.tokens, np.memmap)
        assert [row.tolist() for row in every(documents)] == wanted
        assert all(np.shares_memory(row, documents.tokens) for row in every(documents))
        assert documents.lengths.tolist() == [3, 1, 2, 1]
        whole = ef.TokenFiles(path, dtype=dtype).open()
        assert [row.tolist() for row in every(whole)] == [ids.tolist()]
    both = ef.TokenFiles((".",), dtype="uint16", separator=0).open()
    assert [row.tolist() for row in every(both)] == wanted + wanted
    assert both.where(5) == "document 1 of ids.npy"


def test_windows_of_a_mapped_array_read_only_what_a_batch_holds():
    np.arange(1000, dtype=np.uint16).tofile("ids.bin")
    tokens = ef.TokenFiles("ids.bin", dtype="uint16").open().tokens
    for windows in (ef.RandomWindows(7, 5), ef.Epochs(7, 5)):
        batch = windows.build(tokens, seed=1)(3)
        assert batch.tokens.dtype == np.int32
        plain = windows.build(np.arange(1000), seed=1)(3)
        np.testing.assert_array_equal(batch.tokens, plain.tokens)


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=30), piece=st.integers(1, 7))
def test_no_token_is_lost_or_repeated_however_the_array_is_looked_through(ids, piece):
    before, sources._PIECE = sources._PIECE, piece
    try:
        np.save("ids.npy", np.array(ids))
        documents = every(ef.TokenFiles("ids.npy", separator=0).open())
    finally:
        sources._PIECE = before
    assert [i for row in documents for i in row.tolist()] == ids
    assert all(0 not in row[:-1] and len(row) for row in documents)


def bad_npy():
    write("x.npy", b"\x93NUMPY no header")


BAD_ARRAYS = {
    "floats": (lambda: np.save("x.npy", np.ones(3)), "x.npy", {}, "whole numbers in one row"),
    "a table": (lambda: np.save("x.npy", np.ones((2, 2), int)), "x.npy", {}, "of shape (2, 2)"),
    "objects": (lambda: np.save("x.npy", np.array([{}])), "x.npy", {}, "cannot be mapped"),
    "no array": (bad_npy, "x.npy", {}, "cannot be mapped"),
    "no bytes": (lambda: write("x.npy", b""), "x.npy", {}, "`x.npy` cannot be mapped"),
    "odd bytes": (lambda: write("x.bin", b"123"), "x.bin", {"dtype": "uint16"}, "cut off"),
    "no type": (lambda: write("x.bin", b"12"), "x.bin", {}, "give `dtype`"),
    "an unknown type": (lambda: write("x.bin", b"12"), "x.bin", {"dtype": "u17"}, "u17"),
    "nothing": (lambda: write("x.bin", b""), "x.bin", {"dtype": "uint16"}, "no document"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_what_is_no_array_of_ids_is_refused(name):
    make, path, options, message = BAD_ARRAYS[name]
    make()
    with pytest.raises(ValueError) as error:
        ef.TokenFiles(path, **options).open()
    assert message in str(error.value)
    assert "x." in str(error.value) or name in ("nothing", "an unknown type")


def test_a_path_that_finds_nothing_is_refused():
    os.makedirs("empty")
    with pytest.raises(ValueError, match=r"`empty` is a directory without .txt files"):
        ef.TextFiles("empty").open()
    with pytest.raises(ValueError, match=r"`no\*.txt` is neither a file nor a directory"):
        ef.TextFiles(("no*.txt",)).open()
    with pytest.raises(ValueError, match=r"`TextFiles.paths` is empty"):
        ef.TextFiles(()).open()
    write("empty.jsonl", "")
    with pytest.raises(ValueError, match="there is no document"):
        ef.JsonLines("empty.jsonl").open()
    write("x.txt", b"\xff")
    with pytest.raises(ValueError, match=r"`x.txt` is not UTF-8 text"):
        ef.TextFiles("x.txt").open()[0]
    for mark in (b"", b"\xef\xbb\xbf"):  # the place is that in the file
        write("y.txt", mark + b"ab\xff")
        with pytest.raises(ValueError, match=f"byte 0xff at position {len(mark) + 2}"):
            ef.TextFiles("y.txt").open()[0]
    with pytest.raises(IndexError, match="from 0 to 0; got 1"):
        ef.TextFiles("x.txt").open()[1]


def test_the_fingerprint_notices_every_change_of_content_and_of_how_it_is_read():
    write("a.jsonl", '{"text": "one", "en": "x"}\n{"text": "two", "en": "y"}\n')
    np.save("a.npy", np.arange(100, dtype=np.uint16))
    write("a.txt", "text")
    made = {
        "lines": lambda: ef.JsonLines("a.jsonl"),
        "another field": lambda: ef.JsonLines("a.jsonl", fields="en"),
        "array": lambda: ef.TokenFiles("a.npy"),
        "documents of it": lambda: ef.TokenFiles("a.npy", separator=7),
        "text": lambda: ef.TextFiles("a.txt"),
        "twice": lambda: ef.TokenFiles(("a.npy", "copy.npy")),
    }
    np.save("copy.npy", np.arange(100, dtype=np.uint16))
    before = {name: source().open().fingerprint for name, source in made.items()}
    assert len(set(before.values())) == len(before)
    assert all(source().open().fingerprint == before[name] for name, source in made.items())
    for name, place in (("a.jsonl", 11), ("a.npy", 250), ("a.txt", 2)):
        changed = bytearray(Path(name).read_bytes())
        changed[place] ^= 1
        about = os.stat(name)
        write(name, bytes(changed))
        os.utime(name, ns=(about.st_atime_ns, about.st_mtime_ns))  # neither size nor date says so
    for name, source in made.items():
        assert source().open().fingerprint != before[name], name
    assert ef.TokenFiles("copy.npy").open().fingerprint == before["array"]


def test_documents_are_a_source_for_grain():
    write("a.jsonl", "".join(f'{{"text": "{n}"}}\n' for n in range(10)))
    documents = ef.JsonLines("a.jsonl").open()
    numbers = grain.MapDataset.source(documents).seed(0).shuffle().map(int)
    assert sorted(numbers) == list(range(10))
    assert list(itertools.islice(numbers, 10)) != list(range(10))


def test_tokenizing_keeps_every_document_even_an_empty_one():
    texts = ["hello", "", "hole"]
    tokenizer = ef.Characters.of("helo")
    documents = ef.tokenized(texts, tokenizer.encode)
    assert [tokenizer.decode(ids) for ids in every(documents)] == texts
    assert documents.tokens.dtype == np.int32


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda text: text, "must give a list of whole numbers; got str"),
        (lambda text: [0.5], "must give a list of whole numbers"),
        (lambda text: [-1], "ids must be from 0 to"),
        (lambda text: [2**31], "ids must be from 0 to"),
        (ef.Characters.of("a").encode, "outside the alphabet"),
    ],
)
def test_what_an_encoder_cannot_make_names_the_document(encode, message):
    with pytest.raises(ValueError, match="Document 0 has no tokens") as error:
        ef.tokenized(["x"], encode)
    assert message in str(error.value)
    write("a.jsonl", '{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"Line 1 of `a.jsonl` has no tokens"):
        ef.tokenized(ef.JsonLines("a.jsonl").open(), encode)


def test_ends_that_do_not_end_at_the_last_token_are_refused():
    for ends in ([2, 1, 3], [2], [], [-1, 3]):
        with pytest.raises(ValueError, match="must rise to the number of tokens, 3"):
            ef.TokenDocuments(np.arange(3), np.array(ends, np.int64))


def test_what_are_no_documents_is_refused():
    with pytest.raises(TypeError, match="got str"):
        ef.tokenized("one text", len)
    with pytest.raises(TypeError, match=r"got JsonLines. Write `JsonLines\(...\).open\(\)`"):
        check_documents(ef.JsonLines("a.jsonl"))


def of_ids(separator=None):
    return ef.TokenFiles("ids", dtype="uint16", separator=separator).open()


def test_what_workers_are_sent_of_a_file_is_its_name(monkeypatch, tmp_path):
    ids = np.arange(500_000, dtype=np.uint16)
    write("ids/some.bin", ids.tobytes())
    np.save("ids/some.npy", ids)
    write("some.jsonl", "".join(json.dumps({"text": c * 500_000}) + "\n" for c in "ab"))
    made = (of_ids(), ef.JsonLines("some.jsonl").open())
    sent = [pickle.dumps(documents) for documents in made]
    assert all(len(each) < 10_000 for each in sent)
    monkeypatch.chdir("ids")  # a worker may work elsewhere
    for documents, each in zip(made, sent, strict=True):
        read = pickle.loads(each)
        assert len(read) == len(documents)
        assert all(map(np.array_equal, read, documents))
    part = np.memmap("some.bin", np.uint16, "r")[7:9]  # NumPy does not say where it begins
    kept = pickle.loads(pickle.dumps(ef.TokenDocuments(part, np.array([2]))))
    assert kept[0].tolist() == [7, 8]


def test_a_file_that_has_become_another_is_refused_when_it_is_mapped_again():
    write("ids/a.bin", np.array([1, 2, 0], np.uint16).tobytes())
    documents = of_ids(0)
    sent = pickle.dumps(documents)
    assert documents[0].tolist() == [1, 2, 0]
    write("ids/a.bin", np.array([1, 2, 3, 0], np.uint16).tobytes())
    with pytest.raises(ValueError, match=r"a.bin` has changed since it was opened; open it anew"):
        pickle.loads(sent)[0]


def test_more_files_than_may_be_open_are_read():
    resource = pytest.importorskip("resource")
    for number in range(150):
        write(f"ids/{number:03}.bin", np.array([number + 1, 0], np.uint16).tobytes())
        write(f"lines/{number:03}.jsonl", json.dumps({"text": str(number)}))
    free = os.dup(0)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 90, limits[1]))
    try:
        documents, lines = of_ids(0), ef.JsonLines("lines").open()
        for number in (*range(150), *range(0, 150, 7)):
            assert documents[number].tolist() == [number + 1, 0]
            assert lines[number] == str(number)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
