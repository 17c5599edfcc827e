"""Every key of a `generation_config.json` is a value of ours, has no effect, or is refused."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.checkpoints.errors import CheckpointError, MissingFile
from eqxformer.generation._settings_keys import INERT, NEUTRAL, READ
from tests.generation.small import small
from tests.helpers.models import model, tokens


def of(**values):
    return ef.GenerationSettings.from_dict(values)


def kinds(parts):
    return [type(part).__name__ for part in parts]


def checkpoint(tmp_path, model=None, generation=None):
    for name, values in (("config.json", model), ("generation_config.json", generation)):
        if values is not None:
            (tmp_path / name).write_text(json.dumps(values))
    return tmp_path


def test_nothing_said_is_greedy_without_an_end():
    settings = of()
    options = settings.options()
    assert sorted(options) == ["sampler", "stop"]
    assert options["stop"] == ()
    assert not options["sampler"].needs_key
    assert (settings.beams, settings.texts, settings.pad, settings.start) == (1, 1, None, None)


def test_processors_come_in_the_order_of_the_reference_whatever_the_order_of_the_keys():
    values = {
        "begin_suppress_tokens": [3],
        "suppress_tokens": [4],
        "exponential_decay_length_penalty": [3, 1.2],
        "forced_eos_token_id": 2,
        "forced_bos_token_id": 5,
        "min_new_tokens": 1,
        "min_length": 3,
        "bad_words_ids": [[1, 2]],
        "no_repeat_ngram_size": 3,
        "repetition_penalty": 1.2,
        "sequence_bias": [[[1], 0.5]],
        "eos_token_id": 2,
    }
    expected = [
        *("LogitBias", "RepetitionPenalty", "NoRepeatNGram", "BadWords"),
        *("MinNewTokens", "ByPrompt", "Force", "ExponentialLengthPenalty", "Suppress", "ByPrompt"),
    ]
    assert kinds(of(**values).processors) == expected


def test_warpers_come_in_the_order_of_the_reference_and_only_where_tokens_are_drawn():
    values = {
        "eta_cutoff": 0.001,
        "epsilon_cutoff": 0.001,
        "typical_p": 0.9,
        "min_p": 0.05,
        "top_p": 0.9,
        "top_k": 20,
        "top_h": 0.5,
        "temperature": 0.7,
    }
    expected = ["Temperature", "Chain", "TopK", "TopP", "MinP", "Typical", "Epsilon", "Eta"]
    assert kinds(of(do_sample=True, **values).warpers) == expected
    assert of(**values).warpers == ()
    assert kinds(of(do_sample=True).warpers) == ["TopK"]  # of 50, where nothing is said
    assert of(do_sample=True, top_k=0, top_p=1.0, temperature=1.0).warpers == ()
    assert of(do_sample=True).sampler.needs_key


def test_ids_may_be_one_or_several():
    assert of(eos_token_id=7).stop == (7,)
    assert of(eos_token_id=[7, 0]).stop == (7, 0)
    assert of(eos_token_id=None).stop == ()
    assert (of(pad_token_id=0).pad, of(pad_token_id=-1).pad) == (0, None)


@pytest.mark.parametrize(
    ("values", "prompt", "new"),
    [
        ({"max_new_tokens": 5}, None, 5),
        ({"max_new_tokens": 5, "max_length": 50}, 9, 5),
        ({"max_length": 20}, 12, 8),
        ({"max_length": 20, "decoder_start_token_id": 0}, None, 19),
        ({}, 12, None),
    ],
)
def test_a_length_counts_the_prompt_and_new_tokens_go_first(values, prompt, new):
    assert of(**values).options(prompt=prompt).get("max_new_tokens") == new
    assert of(**values).options(max_new_tokens=3)["max_new_tokens"] == 3


def test_a_length_that_cannot_be_counted_or_leaves_no_room_is_an_error():
    with pytest.raises(
        ValueError, match=r"`max_length` of 20 counts the prompt: use `options\(pro"
    ):
        of(max_length=20).options()
    with pytest.raises(ValueError, match="leaves no room after a prompt of 20 tokens"):
        of(max_length=20).options(prompt=20)


def test_beams_are_said_to_beam_search_and_refused_by_generate():
    settings = of(
        num_beams=4,
        num_beam_groups=2,
        diversity_penalty=0.5,
        length_penalty=0.6,
        early_stopping="never",
        num_return_sequences=3,
        no_repeat_ngram_size=3,
        renormalize_logits=True,
        eos_token_id=2,
        max_new_tokens=8,
    )
    options = settings.beam_options()
    assert kinds(options.pop("processor").parts) == ["NoRepeatNGram", "Normalize"]
    assert options == {
        "beams": 4,
        "groups": 2,
        "diversity_penalty": 0.5,
        "length_penalty": 0.6,
        "early_stopping": "never",
        "best": 3,
        "stop": (2,),
        "max_new_tokens": 8,
    }
    with pytest.raises(ValueError, match=r"ask for 4 beams: use `beam_options\(\)`"):
        settings.options()
    with pytest.raises(ValueError, match="ask for 3 texts of each prompt"):
        dataclasses.replace(settings, beams=1).options()
    with pytest.raises(NotImplementedError, match="beams are drawn"):
        of(num_beams=4, do_sample=True).beam_options()


def test_options_make_generate_do_as_the_settings_say():
    settings = of(
        eos_token_id=[0, 3], suppress_tokens=[5], repetition_penalty=1.3, max_length=8, min_length=6
    )
    made = ef.generate(small("gpt"), tokens(3, 4), **settings.options(prompt=4))
    by_hand = ef.generate(
        small("gpt"),
        tokens(3, 4),
        max_new_tokens=4,
        stop=(0, 3),
        sampler=ef.RepetitionPenalty(1.3)
        | ef.MinLength(6, stop=(0, 3))
        | ef.Suppress((5,))
        | ef.Greedy(),
    )
    np.testing.assert_array_equal(made, by_hand)


def test_beam_options_make_beam_search_do_as_the_settings_say():
    settings = of(eos_token_id=3, num_beams=3, length_penalty=0.0, num_return_sequences=2)
    found = ef.beam_search(
        small("t5"), tokens(2, 4), start=2, **settings.beam_options(max_new_tokens=4)
    )
    by_hand = ef.beam_search(
        small("t5"),
        tokens(2, 4),
        start=2,
        beams=3,
        length_penalty=0.0,
        best=2,
        stop=3,
        max_new_tokens=4,
    )
    np.testing.assert_array_equal(found.tokens, by_hand.tokens)


def test_the_first_token_is_forced_behind_a_start_alone():
    settings = of(forced_bos_token_id=1, begin_suppress_tokens=[2])
    logits, process = jnp.zeros((2, 4)), eqx.filter_jit(settings.sampler.process)
    seen = ef.Seen(jnp.zeros((2, 5), int), jnp.array([1, 3]), jnp.array([1, 3]), jnp.array([5, 5]))
    first = np.isfinite(process(logits, seen))
    np.testing.assert_array_equal(first, [[0, 1, 0, 0], [1, 1, 0, 1]])
    seen = seen.add(jnp.array([1, 1]))
    second = np.isfinite(process(logits, seen))
    np.testing.assert_array_equal(second, [[1, 1, 0, 1], [1, 1, 1, 1]])


# Files


def test_a_file_is_read_and_the_keys_of_the_model_then_say_nothing(tmp_path):
    folder = checkpoint(tmp_path, {"eos_token_id": 5, "num_beams": 4}, {"eos_token_id": 7})
    settings = ef.GenerationSettings.read(folder)
    assert (settings.stop, settings.beams) == ((7,), 1)


def test_old_checkpoints_say_it_in_the_settings_of_the_model(tmp_path):
    said = {"is_encoder_decoder": True, "d_model": 8, "vocab_size": 9, "use_cache": True}
    said |= {"eos_token_id": 2, "pad_token_id": 1, "decoder_start_token_id": 2, "bos_token_id": 0}
    said |= {"num_beams": 4, "max_length": 62, "no_repeat_ngram_size": 3, "early_stopping": True}
    said |= {"force_bos_token_to_be_generated": True, "task_specific_params": {"a": {}}}
    settings = ef.GenerationSettings.read(checkpoint(tmp_path, said))
    assert (settings.stop, settings.pad, settings.start) == ((2,), 1, 2)
    assert kinds(settings.processors) == ["NoRepeatNGram", "ByPrompt"]
    options = settings.beam_options()
    assert (options["beams"], options["max_new_tokens"]) == (4, 61)


@pytest.mark.parametrize(
    ("model", "generation", "start"),
    [
        ({"is_encoder_decoder": True}, {"bos_token_id": 4}, 4),
        ({"is_encoder_decoder": True}, {"bos_token_id": 4, "decoder_start_token_id": 6}, 6),
        ({}, {"bos_token_id": 4, "decoder_start_token_id": 6}, None),
        (None, {"bos_token_id": 4}, None),
        (None, {"decoder_start_token_id": 6}, 6),
    ],
)
def test_a_target_starts_from_its_own_token_or_from_that_of_a_text(
    tmp_path, model, generation, start
):
    settings = ef.GenerationSettings.read(checkpoint(tmp_path, model, generation))
    assert settings.start == start


def test_a_directory_without_either_file_is_no_checkpoint(tmp_path):
    with pytest.raises(MissingFile, match=r"generation_config\.json"):
        ef.GenerationSettings.read(tmp_path)


def test_a_checkpoint_of_our_own_says_nothing(tmp_path):
    ef.save(model("gpt"), tmp_path / "tiny")
    assert ef.GenerationSettings.read(tmp_path / "tiny").options()["stop"] == ()


@pytest.mark.parametrize(
    ("name", "said", "start"),
    [
        ("t5", {"decoder_start_token_id": 0, "bos_token_id": 4}, 0),
        ("t5", {"bos_token_id": 4}, 4),
        ("gpt", {"decoder_start_token_id": 0, "bos_token_id": 4}, None),
    ],
)
def test_a_file_beside_a_model_of_our_own_format_counts(tmp_path, name, said, start):
    ef.save(model(name), tmp_path / "tiny")
    checkpoint(tmp_path / "tiny", None, {"eos_token_id": [2, 5], **said})
    settings = ef.GenerationSettings.read(tmp_path / "tiny")
    assert (settings.stop, settings.start) == ((2, 5), start)


# What is refused


def test_unknown_keys_are_listed_together_with_the_nearest_that_are_known():
    with pytest.raises(CheckpointError) as error:
        of(temprature=0.7, eos_token=3, top_k=5)
    message = str(error.value)
    assert "eos_token = 3 Did you mean `eos_token_id`?" in message
    assert "temprature = 0.7 Did you mean `temperature`?" in message
    assert "top_k" not in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"guidance_scale": 3.0}, "`guidance_scale` is 3.0; supported is 1 or nothing"),
        ({"watermarking_config": {"bias": 2.5}}, "`watermarking_config` is .*; supported is noth"),
        ({"dola_layers": "high"}, "`dola_layers` is 'high'"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "`penalty_alpha` is 0.6"),
        ({"encoder_no_repeat_ngram_size": 3}, "`encoder_no_repeat_ngram_size` is 3"),
        ({"remove_invalid_values": True}, "`remove_invalid_values` is True; supported is False"),
        ({"forced_decoder_ids": [[1, None], [2, 7]]}, "leaves the token at place 1 to a guess"),
        ({"constraints": [1]}, "`constraints` is"),
    ],
)
def test_what_there_is_not_is_refused_by_name(values, message):
    with pytest.raises(NotImplementedError, match=message):
        of(**values)


@pytest.mark.parametrize("key", sorted(set(NEUTRAL)))
def test_what_is_refused_may_be_null_or_neutral(key):
    assert of(**{key: None}).processors == ()
    for value in NEUTRAL[key]:
        assert of(**{key: value}).processors == ()


def test_strings_to_stop_at_are_kept_and_ask_for_a_tokenizer():
    settings = of(stop_strings="END", eos_token_id=2)
    assert settings.stop_strings == ("END",)
    with pytest.raises(ValueError, match=r"stop at the strings \['END'\]: .*StopStrings"):
        settings.options()
    assert dataclasses.replace(settings, stop_strings=()).options()["stop"] == (2,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": "x"}, "`eos_token_id` must be an id or a list of them; got 'x'"),
        ({"eos_token_id": [True]}, "`eos_token_id` must be an id"),
        ({"temperature": "hot", "do_sample": True}, "`temperature` must be a finite number"),
        (
            {"temperature": 0.0, "do_sample": True},
            "generation_config.json: `temperature` must be ab",
        ),
        ({"do_sample": 1}, "`do_sample` must be true or false; got 1"),
        ({"num_beams": 0}, "`num_beams` must be a whole number from 1"),
        ({"early_stopping": "soon"}, '`early_stopping` must be true, false or "never"; got .soon'),
        ({"bad_words_ids": [3]}, r"`bad_words_ids` must be a list of lists of ids; got \[3\]"),
        ({"sequence_bias": {"a": 1}}, "`sequence_bias` must be a list of"),
        ({"stop_strings": [1]}, "`stop_strings` must be a string or a list of them"),
        ({"forced_decoder_ids": [3]}, "`forced_decoder_ids` must be a list of"),
        ({"exponential_decay_length_penalty": [3]}, "must be .begin, factor.; got .3."),
        ({"exponential_decay_length_penalty": [3, 1.1]}, "needs the ids that would end a row"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(values, message):
    with pytest.raises(CheckpointError, match=message):
        of(**values)


def test_a_key_is_read_or_without_effect_or_refused_and_never_two_of_these():
    assert not READ & INERT
    assert not (READ | INERT) & set(NEUTRAL)


def test_settings_with_a_sampler_run_under_jit():
    settings = of(do_sample=True, top_p=0.9, eos_token_id=1, min_new_tokens=1)
    seen = ef.Seen.start(jnp.zeros((1, 2), int), None, new=2)
    found = jax.jit(lambda x: settings.sampler.process(x, seen))(jnp.zeros((1, 4)))
    np.testing.assert_array_equal(np.isfinite(found), [[1, 0, 1, 1]])
