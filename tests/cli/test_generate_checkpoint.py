"""`eqxformer generate` and `eqxformer score` of checkpoints say what the library does."""

import dataclasses
import io
import json
import math
import shutil
import sys

import jax
import pytest

import eqxformer as ef
from eqxformer.pretrained.presets import described
from tests.helpers.models import filled

PROMPT = "12 times 13"


@pytest.fixture
def piped(monkeypatch):
    """Gives text on standard input, as through a pipe."""

    def give(text):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    give("")
    return give


@pytest.fixture
def typed(monkeypatch):
    """Gives lines that a person types at a terminal."""

    def give(*lines):
        stdin = io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in lines).encode()))
        monkeypatch.setattr(stdin, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", stdin)

    return give


@pytest.fixture(scope="module")
def written(checkpoint):
    """What the library makes of a prompt, with the settings of the checkpoint or others."""
    generator = ef.TextGenerator.read(checkpoint)

    def write(prompt, seed=0, **options):
        key = jax.random.fold_in(jax.random.key(seed), 0)
        return generator(prompt, key=key, **options)

    return write


def test_no_prompts_have_no_answers(checkpoint):
    assert ef.TextGenerator.read(checkpoint)([]) == []


def test_the_type_of_weights_in_our_own_format_can_be_asked_for(command, checkpoint, tmp_path):
    assert command("convert", checkpoint, tmp_path / "own", "--to", "native")[0] == 0
    for dtype in ("bfloat16", None):
        model = ef.TextGenerator.read(tmp_path / "own", dtype=dtype).model
        assert model.embedding.tokens.weight.dtype == (dtype or "float32")


def test_a_checkpoint_goes_on_by_its_own_settings(command, checkpoint, written):
    code, out, err = command("generate", checkpoint, "--prompt", PROMPT)
    assert (code, err) == (0, "")
    assert out == PROMPT + written(PROMPT) + "\n"
    _, other, _ = command("generate", checkpoint, "--prompt", PROMPT, "--seed", 1)
    assert other == PROMPT + written(PROMPT, seed=1) + "\n" != out


def test_prompts_come_from_files_and_pipes(command, checkpoint, written, piped, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    expected = PROMPT + written(PROMPT) + "\n"
    assert command("generate", checkpoint, "--file", tmp_path / "prompt.txt")[1] == expected
    piped(PROMPT + "\n")
    assert command("generate", checkpoint)[1] == expected
    piped(PROMPT + "\n")
    assert command("generate", checkpoint, "--file", "-")[1] == expected


@pytest.mark.parametrize(
    "options", [["--temperature", 0], ["--top-k", 1], ["--beams", 1, "--top-k", 1]]
)
def test_the_likeliest_text_needs_no_luck(command, checkpoint, options):
    made = {
        command("generate", checkpoint, "--prompt", PROMPT, "--seed", seed, *options)[1]
        for seed in (0, 1)
    }
    assert len(made) == 1


def test_every_option_of_sampling_reaches_the_sampler(checkpoint):
    from eqxformer.cli.sampling import over

    settings = ef.GenerationSettings.read(checkpoint)
    asked = {"temperature": 0.5, "top_k": 7, "top_p": 0.8, "min_p": 0.1, "typical": 0.9}
    changed = over(settings, {**asked, "repetition_penalty": 1.3, "no_repeat_ngram": 2})
    expected = (ef.Temperature(0.5), ef.TopK(7), ef.TopP(0.8), ef.MinP(0.1), ef.Typical(0.9))
    assert str(changed.warpers) == str(expected)
    assert str(changed.processors) == str((ef.RepetitionPenalty(1.3), ef.NoRepeatNGram(2)))
    assert changed.samples
    assert not over(settings, {"temperature": 0.0}).samples
    assert over(settings, {"top_k": 0}).warpers == tuple(settings.warpers[:1])
    assert over(settings, {"top_p": None}).warpers == settings.warpers


def test_beams_give_the_text_of_beam_search(command, checkpoint):
    code, out, err = command(
        "generate", checkpoint, "--prompt", PROMPT, "--beams", 3, "--max-new-tokens", 6
    )
    assert (code, err) == (0, "")
    model, tokenizer = ef.from_pretrained(checkpoint), ef.load_tokenizer(checkpoint)
    ids = tokenizer.encode(PROMPT).ids
    found = ef.beam_search(model, [ids], beams=3, max_new_tokens=6, stop=0)
    whole = tokenizer.decode([*ids, *found.tokens[0][0]])
    assert out == whole + "\n"


def test_a_text_ends_before_a_stop(command, checkpoint, written):
    text = written(PROMPT)
    stop = text[len(text) // 2 :][:2]
    _, out, _ = command("generate", checkpoint, "--prompt", PROMPT, "--stop", stop)
    assert out == PROMPT + text[: text.index(stop)] + "\n"


def test_chat_answers_what_is_said_by_the_template(command, checkpoint, written):
    code, out, err = command(
        "generate", checkpoint, "--chat", "--system", "3 times", "--prompt", "7 times?"
    )
    assert (code, err) == (0, "")
    assert out == written("system: 3 times\nuser: 7 times?\nassistant:") + "\n"


def test_a_conversation_goes_on_until_an_empty_line(command, checkpoint, typed):
    typed("7 times?", "and 8?", "")
    options = ["--temperature", 0, "--max-new-tokens", 6]
    code, out, err = command("generate", checkpoint, "--chat", *options)
    assert code == 0
    assert "An empty line ends the conversation" in err
    generator = ef.TextGenerator.read(checkpoint)
    generator = dataclasses.replace(
        generator, settings=dataclasses.replace(generator.settings, samples=False)
    )
    messages, answers = [], []
    for said in ("7 times?", "and 8?"):
        messages.append({"role": "user", "content": said})
        answers.append(generator(messages, max_new_tokens=6))
        messages.append({"role": "assistant", "content": answers[-1]})
    assert out == f"{answers[0]}\n{answers[1]}\n"


def test_the_end_of_input_ends_a_conversation(command, checkpoint, typed):
    typed()
    assert command("generate", checkpoint, "--chat")[:2] == (0, "")


def test_a_score_is_that_of_the_library(command, checkpoint):
    text = "14 times 15 times 16"
    code, out, err = command("score", checkpoint, "--text", text, "--tokens")
    assert (code, err) == (0, "")
    ids = ef.load_tokenizer(checkpoint).encode(text).ids
    (numbers,) = ef.score(ef.from_pretrained(checkpoint), [ids])
    lines = out.splitlines()
    shown = [float(line.split()[0]) for line in lines[: len(numbers)]]
    assert shown == pytest.approx(numbers, abs=1e-4)
    assert f"{len(numbers)} of {len(ids)}" in lines[-4]
    assert f"{math.exp(-sum(numbers) / len(numbers)):,.4f}" in lines[-2]
    assert f"{-sum(numbers) / math.log(2) / len(text):.4f}" in lines[-1]


def test_one_token_has_no_score(command, checkpoint):
    code, out, err = command("score", checkpoint, "--text", "a")
    assert (code, out) == (2, "")
    assert "The text must have at least two tokens; got 1." in err


def test_padding_that_a_tokenizer_asks_for_is_not_scored(command, checkpoint, tmp_path):
    padded = shutil.copytree(checkpoint, tmp_path / "padded")
    file = padded / "tokenizer.json"
    values = json.loads(file.read_text())
    values["padding"] = {
        "strategy": {"Fixed": 40},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "a",
    }
    file.write_text(json.dumps(values))
    asked = ("--text", "hello there", "--tokens")
    assert command("score", padded, *asked) == command("score", checkpoint, *asked)


def test_a_long_text_is_scored_in_windows(command, checkpoint, tmp_path):
    (tmp_path / "long.txt").write_text("17 times 18 " * 50)  # the model has 64 positions
    code, out, _ = command("score", checkpoint, "--file", tmp_path / "long.txt")
    assert code == 0
    narrow = command("score", checkpoint, "--file", tmp_path / "long.txt", "--window", 8)[1]
    assert out.splitlines()[0] == narrow.splitlines()[0]
    assert out != narrow


def test_a_text_is_scored_in_windows_as_long_as_the_checkpoint_was_trained_with(
    command, checkpoint, tmp_path
):
    place, long = tmp_path / "llama", tmp_path / "long.txt"
    config = ef.families.llama(vocab=300, dim=16, layers=1, heads=2, hidden=16)
    ef.save_pretrained(filled(config), place)
    shutil.copy(checkpoint / "tokenizer.json", place)
    long.write_text("17 times 18 " * 50)
    asked = ("score", place, "--file", long)
    whole = command(*asked, "--window", 10_000)[1]
    assert command(*asked)[1] == whole  # rotary positions, and no word of a length
    settings = json.loads((place / "config.json").read_text())
    settings["max_position_embeddings"] = 16
    (place / "config.json").write_text(json.dumps(settings))
    assert command(*asked)[1] == command(*asked, "--window", 16)[1] != whole


@pytest.mark.parametrize(("kind", "key"), [("gptj", "n_positions"), ("bloom", "seq_length")])
def test_the_length_of_the_training_has_several_names(command, checkpoint, tmp_path, kind, key):
    place, long = tmp_path / kind, tmp_path / "long.txt"
    settings = {"model_type": kind, "vocab_size": 300, "n_layer": 1, "n_head": 2, key: 16}
    settings |= {
        "gptj": {"architectures": ["GPTJForCausalLM"], "n_embd": 8, "rotary_dim": 2},
        "bloom": {"architectures": ["BloomForCausalLM"], "hidden_size": 8},
    }[kind]
    ef.save_pretrained(filled(described(settings, "here")[1]), place)
    (place / "config.json").write_text(json.dumps(settings))
    shutil.copy(checkpoint / "tokenizer.json", place)
    long.write_text("17 times 18 " * 20)
    asked = ("score", place, "--file", long)
    found = command(*asked)
    assert found == command(*asked, "--window", 16) != command(*asked, "--window", 10_000)
    assert found[0] == 0


def test_a_run_is_scored_by_its_characters(command, trained):
    code, out, _ = command("score", trained / "text", "--text", "11 times")
    assert code == 0
    assert "7 of 8" in out


def test_a_run_is_scored_in_windows_as_long_as_those_it_learned_from(command, trained, tmp_path):
    (tmp_path / "long.txt").write_text("17 times " * 40)
    asked = ("score", trained / "text", "--file", tmp_path / "long.txt")  # rows of 64 tokens
    code, out, _ = command(*asked)
    assert (code, out) == (0, command(*asked, "--window", 65)[1])
    assert out != command(*asked, "--window", 1000)[1]


def test_the_best_model_of_a_run_is_scored_by_its_characters_and_windows(
    command, trained, tmp_path
):
    (tmp_path / "long.txt").write_text("17 times " * 40)
    asked = ("score", trained / "text/best", "--file", tmp_path / "long.txt")
    code, out, _ = command(*asked)
    assert (code, out) == (0, command(*asked, "--window", 65)[1])
    moved = shutil.copytree(trained / "text", tmp_path / "text")
    ef.save(filled(ef.load(moved).config), moved / "best")
    best = command("score", moved / "best", *asked[2:])
    assert best != command("score", moved, *asked[2:])
    shutil.copy(moved / "best/model.safetensors", moved)
    assert best == command("score", moved, *asked[2:])


def test_a_native_directory_with_a_tokenizer_is_read(command, checkpoint, tmp_path):
    ef.save(ef.from_pretrained(checkpoint), tmp_path / "native")
    shutil.copy(checkpoint / "tokenizer.json", tmp_path / "native")
    asked = ["--prompt", PROMPT, "--temperature", 0, "--max-new-tokens", 5]
    _, ours, _ = command("generate", tmp_path / "native", *asked)
    assert ours == command("generate", checkpoint, *asked)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "The prompt is empty"),
        (["--prompt", "a", "--file", "b"], "Give --prompt or --file, not both"),
        (["--file", "nowhere.txt"], "nowhere.txt"),
        (["--prompt", "a", "--system", "b"], "--system is for --chat"),
        (["--prompt", "a", "--max-new-tokens", 0], "`max_new_tokens` must be at least 1; got 0"),
        (["--prompt", "a", "--max-new-tokens", 99], "64 positions"),
        (["--prompt", "a", "--temperature", -1], "temperature"),
        (["--prompt", "a", "--beams", 0], "`beams` must be at least 1"),
        (["--prompt", "a", "--beams", 2, "--top-k", 5], "A beam search draws nothing"),
        (["--prompt", "a", "--stop", ""], "at least one letter"),
        (["--prompt", "a", "--length-penalty", 0], "--length-penalty is for a beam search; add"),
        (["--prompt", "a", "--beams", 1, "--length-penalty", 2], "--length-penalty is for a beam"),
    ],
)
def test_mistakes_are_one_line(command, checkpoint, here, arguments, message):
    code, out, err = command("generate", checkpoint, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1


def test_what_is_for_checkpoints_is_refused_for_a_run(command, trained):
    options = [["--chat"], ["--dtype", "bfloat16"], ["--stop", "a"], ["--beams", 2]]
    for option in [*options, ["--beams", 0], ["--length-penalty", 0]]:
        code, _, err = command("generate", trained / "text", "--prompt", "1", *option)
        assert code == 2
        assert f"{option[0]} is for checkpoints with a tokenizer" in err


def test_a_model_that_makes_no_text_is_refused(command, checkpoint, tmp_path):
    block = ef.Block.Config(ef.Attention.Config(heads=2), ef.MLP.Config(hidden=8))
    encoder = ef.Encoder.Config(vocab=300, dim=8, blocks=(block,))
    ef.save(filled(encoder), tmp_path / "encoder")
    shutil.copy(checkpoint / "tokenizer.json", tmp_path / "encoder")
    for name, option in {"generate": "--prompt", "score": "--text"}.items():
        code, _, err = command(name, tmp_path / "encoder", option, "12 times")
        assert (code, err.count("\n")) == (2, 1)
        assert "this is Encoder" in err
