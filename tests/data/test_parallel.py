import json

import pytest

from eqxformer.data.parallel import ParallelFiles, ParallelText, of_two
from tests.data.made import sentences, write_directory

COUNTS = {"train": 30, "valid": 4, "test": 5}
PAIRS = sentences(30, seed=0)


def write(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_a_directory_has_two_files_for_each_use(tmp_path):
    found = ParallelFiles().read(write_directory(tmp_path / "par", COUNTS))
    assert [len(text.source) for text in found] == [30, 4, 5]
    assert list(zip(*found.train, strict=True)) == PAIRS


def test_languages_and_names_are_settings(tmp_path):
    write_directory(tmp_path, {"corpus": 3, "dev": 2, "t": 1})
    files = ParallelFiles(source="de", target="en", train="corpus", valid="dev", test="t")
    found = files.read(tmp_path)
    assert found.train.source[0].startswith(("ein", "der"))
    assert len(found.test.target) == 1


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "nested jsonl"])
def test_one_file_may_hold_both_sides(tmp_path, kind):
    folder = write_directory(tmp_path, {"valid": 2, "test": 2})
    if kind == "tsv":
        write(folder / "train.tsv", ["\t".join(pair) for pair in PAIRS])
    else:
        values = [{"en": source, "de": target} for source, target in PAIRS]
        lines = [{"translation": each} if kind != "jsonl" else each for each in values]
        write(folder / "train.jsonl", map(json.dumps, lines))
    assert list(zip(*ParallelFiles().read(folder).train, strict=True)) == PAIRS


def test_of_a_single_file_the_last_tenth_is_kept_back(tmp_path):
    path = write(tmp_path / "all.tsv", ["\t".join(pair) for pair in sentences(45)])
    found = ParallelFiles().read(path)
    assert [len(text.target) for text in found] == [41, 2, 2]
    everything = [pair for text in found for pair in zip(*text, strict=True)]
    assert everything == sentences(45)
    write(path, ["\t".join(pair) for pair in sentences(19)])
    with pytest.raises(ValueError, match="it needs at least 20"):
        ParallelFiles().read(path)


def test_only_newlines_end_a_line(tmp_path):
    lines = ["a\u2028b", "c\x0cd\x85e", "f"]
    text = of_two(write(tmp_path / "a.en", lines), write(tmp_path / "a.de", lines))
    assert list(text.source) == lines


def test_files_of_different_lengths_are_refused(tmp_path):
    sides = write(tmp_path / "a.en", "ab"), write(tmp_path / "a.de", "abc")
    with pytest.raises(ValueError, match="same number of lines; got 2 and 3"):
        of_two(*sides)


def test_what_is_missing_is_named_with_what_is_there(tmp_path):
    write_directory(tmp_path, {"train": 2, "val": 2})
    with pytest.raises(
        ValueError, match=r"valid\.en and valid\.de.*it has train\.de, .*files\.val"
    ):
        ParallelFiles().read(tmp_path)
    with pytest.raises(ValueError, match="There is no"):
        ParallelFiles().read(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("all.tsv", "no tab", "line 1 of .* has 0 tabs"),
        ("all.tsv", "a\tb\tc", "line 1 of .* has 2 tabs"),
        ("all.jsonl", "no json", "line 1 of .* is not"),
        ("all.jsonl", '{"en": "a", "fr": "b"}', "with texts `en` and `de`"),
        ("all.jsonl", '{"en": "a", "de": 3}', "with texts `en` and `de`"),
        ("all.jsonl", "[1]", "with texts `en` and `de`"),
        ("all.txt", "a", r"must end in \.tsv or \.jsonl"),
    ],
)
def test_lines_that_are_no_pair_are_named(tmp_path, name, line, message):
    with pytest.raises(ValueError, match=message):
        ParallelFiles().read(write(tmp_path / name, [line] * 20))


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "all.tsv").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        ParallelFiles().read(tmp_path / "all.tsv")


def test_two_languages_differ():
    with pytest.raises(ValueError, match="must differ"):
        ParallelFiles(source="en", target="en")


def test_a_fingerprint_depends_on_every_line_and_side():
    texts = [
        ParallelText(("a", "b"), ("c", "d")),
        ParallelText(("a", "b"), ("c", "e")),
        ParallelText(("a", "c"), ("b", "d")),
        ParallelText(("a",), ("b\nc\nd",)),
    ]
    assert len({text.fingerprint() for text in texts}) == 4
