"""`eqxformer inspect`: the three programs of a preset or a run, on the terminal and in files."""

import re

import pytest

import eqxformer as ef
from tests.cli.test_mistakes import refused
from tests.helpers.models import DECODERS, SEQ2SEQ, filled


@pytest.fixture
def tiny(here):
    ef.save(filled(DECODERS["llama"]), here / "tiny")
    return "tiny"


def test_without_options_equations_are_counted_and_nothing_is_compiled(command, tiny, monkeypatch):
    monkeypatch.setattr("eqxformer.inspect.compiler.dumped", None)
    code, out, err = command("inspect", tiny, "--length", 5)
    assert (code, err) == (0, "")
    assert re.findall(r"^(\w+): ", out, re.MULTILINE) == ["forward", "gradient", "decode"]
    assert out.count("attention   plain (no GPU; this is a cpu): blocks.*.attention x 2") == 3
    assert re.search(r"^  gives       f32\[1,5,13\]$", out, re.MULTILINE)


def test_all_of_a_program_is_shown_with_whole_texts_in_files(command, here, tiny):
    wanted = ("--jaxpr", "--hlo", "--cost", "--memory", "--out", "seen", "--only", "decode")
    _, out, _ = command("inspect", tiny, "--batch", 2, "--length", 6, *wanted)
    assert re.search(r"cost        .* by the compiler, .*FLOP by our count of products", out)
    assert re.search(r"^  memory      [\d.]+ kB at most: arguments ", out, re.MULTILINE)
    assert re.search(
        r" argument +2 x f32\[11,12\] +model\.blocks\.groups\[\*\]\.attention\.key", out
    )
    for kind in ("jaxpr", "hlo"):
        lines = (here / f"seen/decode.{kind}.txt").read_text().splitlines()
        assert f"  {kind:<10}  {len(lines):,} lines in seen/decode.{kind}.txt" in out


def test_an_encoder_decoder_has_all_programs(command, here):
    ef.save(filled(SEQ2SEQ["widths"]), here / "both")
    _, out, _ = command("inspect", "both", "--length", 4)
    assert re.findall(r"^(\w+): ", out, re.MULTILINE) == ["forward", "gradient", "decode"]
    assert "decoder.blocks.*.cross_attention x 1" in out


def test_an_encoder_decodes_nothing_and_texts_are_printed_where_no_directory_is_named(
    command, here
):
    config = ef.families.bert(vocab=13, dim=12, layers=1, heads=3, hidden=7, context=8)
    ef.save(filled(config), here / "encoder")
    _, out, _ = command("inspect", "encoder", "--length", 4, "--jaxpr")
    assert re.findall(r"^(\w+): ", out, re.MULTILINE) == ["forward", "gradient"]
    assert "# [blocks.0/feed_forward_residual/feed_forward" in out


def test_a_program_that_a_model_has_not_is_refused_with_those_it_has(command, here):
    config = ef.families.bert(vocab=13, dim=12, layers=1, heads=3, hidden=7, context=8)
    ef.save(filled(config), here / "encoder")
    line = refused(command, here, "inspect", "encoder", "--length", 4, "--only", "decode")
    assert "--only decode is nothing that Encoder does; there is forward and gradient." in line


def test_a_source_that_is_nothing_is_refused(command, here):
    assert "There is no directory nothing" in refused(command, here, "inspect", "nothing")
