import shutil

import pytest


def test_a_language_model_goes_on_from_the_prompt(command, trained):
    code, out, err = command(
        "generate", trained / "text", "--prompt", "17 times", "--max-new-tokens", 30
    )
    assert (code, err) == (0, "")
    assert out.startswith("17 times")
    assert len(out) == len("17 times") + 30 + 1


def test_a_models_answer_is_the_same_whether_it_is_the_best_or_the_newest_of_a_run(
    command, trained, tmp_path
):
    for name, prompt in {"text": "17 times", "rot13": "hey there"}.items():
        asked = ("--prompt", prompt)
        code, out, err = command("generate", trained / name / "best", *asked)
        assert (code, err) == (0, "")
        moved = shutil.copytree(trained / name, tmp_path / name)
        shutil.copy(moved / "best/model.safetensors", moved)
        assert command("generate", moved, *asked)[1] == out


def test_answers_follow_from_the_seed(command, trained):
    def said(*options):
        asked = ("--prompt", "1", "--max-new-tokens", 32, "--seed", *options)
        return command("generate", trained / "text", *asked)[1]

    assert said(1) == said(1) != said(2)


@pytest.mark.parametrize("options", [["--temperature", 0], ["--top-k", 1]])
def test_the_likeliest_answer_has_no_seed(command, trained, options):
    asked = ["generate", trained / "text", "--prompt", "1", "--max-new-tokens", 32, *options]
    assert command(*asked, "--seed", 1)[1] == command(*asked, "--seed", 2)[1]


def test_a_prompt_may_be_longer_than_the_context(command, trained):
    prompt = "12 times " * 20
    asked = ("--prompt", prompt, "--max-new-tokens", 16)
    code, out, _ = command("generate", trained / "text", *asked)
    assert code == 0
    assert out.startswith(prompt)


@pytest.mark.parametrize("option", ["--temperature", "--max-new-tokens", "--seed"])
def test_a_run_that_draws_nothing_refuses_what_would_change_nothing(command, trained, option):
    code, out, err = command("generate", trained / "rot13", "--prompt", "hey", option, 3)
    assert (code, out) == (2, "")
    assert f"{option} changes nothing here: SOURCE is a run of `rot13`" in err


def test_a_file_ends_with_its_last_word(command, trained, tmp_path):
    (tmp_path / "words.txt").write_bytes("\ufeffhey there\r\n".encode())
    found = command("generate", trained / "rot13", "--file", tmp_path / "words.txt")
    assert found == command("generate", trained / "rot13", "--prompt", "hey there")


def test_an_encoder_decoder_translates_the_words_of_the_prompt(command, trained):
    code, out, err = command("generate", trained / "rot13", "--prompt", "hey there")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
