"""`eqxformer draw`: a file for each kind of picture, and mistakes in one line."""

import pytest

import eqxformer as ef
from tests.cli.test_mistakes import refused
from tests.helpers.models import filled

PNG = b"\x89PNG"


def _drawn(command, here, *arguments, out):
    code, said, err = command("draw", *arguments, "--out", here / out)
    assert (code, err) == (0, "")
    assert said == f"{here / out}\n"
    return (here / out).read_bytes()


def test_the_blocks_of_a_preset_are_drawn_from_its_config(command, here):
    svg = _drawn(command, here, "blocks", "bart-base", out="bart.svg").decode()
    assert svg.startswith("<svg")
    assert "cross-attention" in svg
    assert "6 x Block" in svg


@pytest.mark.parametrize(
    "arguments",
    [
        ("attention", "text", "--text", "7 times", "--heads", "0"),
        (
            *("attention", "rot13", "--text", "hello", "--target", "he"),
            *("--part", "decoder.blocks.0.cross_attention"),
        ),
        ("attention", "text/best", "--text", "7 times", "--heads", "0"),
        ("losses", "text"),
        ("mask", "text", "--length", "6"),
        ("positions", "text"),
    ],
)
def test_a_run_is_drawn(command, here, trained, arguments):
    kind, run, *more = arguments
    assert _drawn(command, here, kind, trained / run, *more, out="a.png").startswith(PNG)


def test_the_positions_and_masks_of_presets_are_drawn(command, here):
    assert _drawn(command, here, "positions", "qwen3-0.6b", out="q.svg").startswith(b"<?xml")
    part = ("--part", "blocks.0.attention", "--length", "12")
    assert _drawn(command, here, "mask", "gemma-2-2b", *part, out="m.pdf").startswith(b"%PDF")
    latent = _drawn(command, here, "positions", "deepseek-v3", out="l.svg")  # turns 64 of its 192
    assert latent.startswith(b"<?xml")


def test_the_attention_of_blocks_that_repeat_is_that_of_the_last_time(command, here):
    import tokenizers

    config = ef.families.bert(vocab=11, dim=8, layers=1, heads=2, hidden=8, context=16)
    repeated = ef.Repeated.Config(blocks=config.blocks, times=3)
    ef.save(filled(config.edit(blocks=(repeated,))), here / "model")
    words = tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a")
    tokenizers.Tokenizer(words).save(str(here / "model/tokenizer.json"))
    svg = _drawn(command, here, "attention", here / "model", "--text", "ab", out="a.svg").decode()
    assert "blocks.0.blocks.0.attention" in svg


def test_the_attention_of_a_checkpoint_has_its_tokens(command, here, checkpoint):
    arguments = ("attention", checkpoint, "--text", "7 times 8")
    svg = _drawn(command, here, *arguments, out="a.svg").decode()
    assert "<!-- head 1 -->" in svg


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("blocks", "gpt2", "--out", "x.png"), "A diagram of blocks is an SVG"),
        (("positions", "gpt2"), "is learned, and a preset has no numbers; name a checkpoint"),
        (("positions", "gpt2", "--part", "head"), "`head` knows nothing of positions; embedding"),
        (("losses", "nowhere"), "`nowhere` has no metrics.jsonl"),
        (("mask", "bert-base-uncased"), "every token may look at every other"),
        (("mask", "gpt2", "--part", "blocks.99.attention"), "is no self-attention; there are"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_a_line(command, here, arguments, message):
    assert message in refused(command, here, "draw", *arguments)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--heads", "a"), "--heads must be numbers such as 0,3; got a"),
        (("--heads", "9"), "`heads` must be among 0 to"),
        (("--target", "x"), "--target is for encoder-decoders"),
        (("--part", "blocks.7.attention"), "is no attention whose weights can be had; blocks.0"),
        (("--out", "a.xyz"), "Format 'xyz' is not supported"),
    ],
)
def test_what_cannot_be_drawn_of_attention_is_said_in_a_line(command, here, trained, more, message):
    source = trained / "text"
    assert message in refused(command, here, "draw", "attention", source, "--text", "7 t", *more)
