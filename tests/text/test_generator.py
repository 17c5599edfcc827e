"""`TextGenerator`: all there is in a checkpoint, and texts that end before their strings."""

import dataclasses
import json

import jax
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import eqxformer as ef
from tests.helpers.models import VOCAB, model

TALK = [{"role": "user", "content": "a"}]


def tokenizer_of(words, decoder, special):
    """As many tokens as the models have, the last of them special."""
    words = [*words, *(f"w{number}" for number in range(VOCAB - len(words) - len(special)))]
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=words[0]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoder
    tokenizer.add_special_tokens(special)
    return tokenizer


def writer(name, tokenizer, words, **settings):
    """A generator that writes these words."""
    forced = ef.Force({i: tokenizer.token_to_id(word) for i, word in enumerate(words)})
    settings |= {"processors": (forced,), "max_new_tokens": len(words)}
    return ef.TextGenerator(model(name), tokenizer, ef.GenerationSettings(**settings))


@pytest.mark.parametrize("where", ["settings", "call"])
def test_a_text_ends_before_a_special_token_that_is_a_string_to_stop_at(where):
    tokenizer = tokenizer_of(["▁a", "▁b", "▁c"], decoders.Metaspace(), ["<|im_end|>", "<no>"])
    words = ["▁b", "<no>", "▁c", "<|im_end|>", "▁a"]
    said, asked = ((), ("<|im_end|>",)) if where == "call" else (("<|im_end|>",), ())
    generator = writer("gpt", tokenizer, words, stop_strings=said)
    assert generator("a", stop=asked) == " b c"
    assert "".join(generator.stream("a", stop=asked, every=1)) == " b c"
    stop = ef.StopStrings("<|im_end|>", tokenizer)
    sampler = generator.settings.sampler
    (made,) = ef.generate(model("gpt"), [[0]], max_new_tokens=5, sampler=sampler, stop=stop)
    assert tokenizer.decode(made, skip_special_tokens=False) == "b<no> c<|im_end|>"


@pytest.mark.parametrize(
    ("decoder", "stop", "text"),
    [
        (decoders.Metaspace(), " Paris", "Paris is big"),
        (decoders.Metaspace(), "Paris", ""),
        (decoders.Metaspace(), " is", "Paris"),
        (decoders.Metaspace(prepend_scheme="never"), " Paris", ""),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()]), " Paris", ""),
    ],
)
def test_the_text_of_an_encoder_decoder_ends_where_it_says_so_itself(decoder, stop, text):
    words = ["▁Paris", "▁is", "▁big"]
    generator = writer("t5", tokenizer_of(words, decoder, ["<pad>"]), words, start=VOCAB - 1)
    assert generator("big", stop=stop) == text
    assert "".join(generator.stream("big", stop=stop)) == text


@pytest.mark.parametrize(
    ("words", "stop", "text"),
    [
        (["▁▁Paris", "▁is", "▁big"], " Paris", "Paris is big"),
        (["<e>", "▁Paris", "▁is"], ("x<e>", " Paris"), "Paris is"),
        (["<e>", "▁Paris", "▁is"], ("x<e>", " is"), "Paris"),
    ],
)
def test_the_text_of_an_encoder_decoder_ends_early_at_nothing_that_is_cut(words, stop, text):
    tokenizer = tokenizer_of([w for w in words if w != "<e>"], decoders.Metaspace(), ["<e>"])
    generator = writer("t5", tokenizer, words, start=VOCAB - 1)
    assert generator("is", stop=stop) == text


def test_settings_that_draw_ask_for_a_key_which_others_leave_alone():
    tokenizer = tokenizer_of(["▁a", "▁b"], decoders.Metaspace(), ["<end>"])
    drawn = writer("gpt", tokenizer, ["▁a", "▁b"], samples=True)
    for make in (drawn, drawn.stream):
        with pytest.raises(ValueError, match=r"\(`do_sample`\) and need a `key`; .*samples=False"):
            make("a")
    settings = dataclasses.replace(drawn.settings, samples=False)
    plain = dataclasses.replace(drawn, settings=settings)
    assert drawn("a", key=jax.random.key(0)) == plain("a") == plain("a", key=jax.random.key(0))


@pytest.mark.parametrize("beside", [True, False])
def test_settings_and_template_beside_a_model_of_our_own_format_count(tmp_path, beside):
    ef.save(model("gpt"), tmp_path / "own")
    tokenizer = tokenizer_of(["▁a", "▁b"], decoders.Metaspace(), ["<end>"])
    tokenizer.save(str(tmp_path / "own" / "tokenizer.json"))
    if beside:
        said = {"eos_token_id": VOCAB - 1, "max_new_tokens": 3}
        (tmp_path / "own" / "generation_config.json").write_text(json.dumps(said))
        (tmp_path / "own" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    generator = ef.TextGenerator.read(tmp_path / "own")
    assert generator.settings.stop == ((VOCAB - 1,) if beside else ())
    if beside:
        assert generator(TALK) == generator("a", max_new_tokens=3)
    else:
        assert generator.template is None
    same = jax.tree.map(lambda a, b: (a == b).all(), generator.model, model("gpt"))
    assert all(jax.tree.leaves(same))


def test_a_run_over_characters_answers_what_its_tokens_say(tmp_path):
    characters = ef.Characters.of("abcdefghij\n é")
    assert characters.vocab == VOCAB
    ef.save(model("gpt"), tmp_path / "run")
    (tmp_path / "run" / "tokenizer.json").write_text(characters.to_json())
    generator = ef.TextGenerator.read(tmp_path / "run")
    prompt = "é bad\nh"
    rows = [characters.encode(prompt).tolist()]
    (made,) = ef.generate(model("gpt"), rows, max_new_tokens=9)
    text = characters.decode(made)
    assert generator(prompt, max_new_tokens=9) == text
    before, stop = text[:4], text[4]
    assert generator(prompt, max_new_tokens=9, stop=stop) == before.partition(stop)[0]


@pytest.mark.parametrize("part", ["best", "last/4"])
def test_a_model_in_a_run_has_what_lies_beside_the_run(tmp_path, part):
    characters, run = ef.Characters.of("abcdefghij\n é"), tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (run / "tokenizer.json").write_text(characters.to_json())
    (run / "generation_config.json").write_text('{"max_new_tokens": 3}')
    (run / "chat_template.jinja").write_text("{{ messages[0].content }}")
    ef.save(model("gpt"), run / part)
    assert ef.load_tokenizer(run / part).get_vocab() == characters.tokenizer.get_vocab()
    generator = ef.TextGenerator.read(run / part)
    (made,) = ef.generate(model("gpt"), [characters.encode("a").tolist()], max_new_tokens=3)
    assert generator(TALK) == generator("a") == characters.decode(made)


def test_a_model_with_a_tokenizer_of_its_own_and_one_in_no_run_have_none_of_another(tmp_path):
    for folder in ("run/best", "none/best"):
        ef.save(model("gpt"), tmp_path / folder)
    (tmp_path / "run/run.json").write_text("{}")
    for folder, letters in {"run": "abc", "run/best": "abcdefghij\n é", "none": "abc"}.items():
        characters = ef.Characters.of(letters)
        (tmp_path / folder / "tokenizer.json").write_text(characters.to_json())
    assert ef.TextGenerator.read(tmp_path / "run/best").tokenizer.get_vocab_size() == VOCAB
    with pytest.raises(ef.CheckpointError, match=r"There is no tokenizer\.json in .*none/best"):
        ef.TextGenerator.read(tmp_path / "none/best")


def test_characters_that_a_tokenizer_lacks_are_named():
    generator = ef.TextGenerator(model("gpt"), ef.Characters.of("abcdefghijklm").tokenizer)
    with pytest.raises(ValueError, match=r"that are no tokens: 'x', 'é'\.$"):
        generator("axéb", max_new_tokens=1)
