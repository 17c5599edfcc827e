import pytest


def test_a_language_model_goes_on_from_the_prompt(command, trained):
    code, out, err = command(
        "generate", trained / "text", "--prompt", "17 times", "--max-new-tokens", 30
    )
    assert (code, err) == (0, "")
    assert out.startswith("17 times")
    assert len(out) == len("17 times") + 30 + 1


def test_answers_follow_from_the_seed(command, trained):
    def said(*options):
        return command("generate", trained / "text", "--prompt", "1", "--seed", *options)[1]

    assert said(1) == said(1) != said(2)


@pytest.mark.parametrize("options", [["--temperature", 0], ["--top-k", 1]])
def test_the_likeliest_answer_has_no_seed(command, trained, options):
    asked = ["generate", trained / "text", "--prompt", "1", *options]
    assert command(*asked, "--seed", 1)[1] == command(*asked, "--seed", 2)[1]


def test_a_prompt_may_be_longer_than_the_context(command, trained):
    prompt = "12 times " * 20
    code, out, _ = command("generate", trained / "text", "--prompt", prompt, "--max-new-tokens", 5)
    assert code == 0
    assert out.startswith(prompt)


def test_an_encoder_decoder_translates_the_words_of_the_prompt(command, trained):
    code, out, err = command("generate", trained / "rot13", "--prompt", "hey there")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
