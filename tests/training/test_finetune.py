"""The recipe `finetune`: times in words and digits, and a checkpoint that other libraries load."""

import contextlib
import io
import json
import os
import re
import shutil

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import eqxformer as ef
from eqxformer.cli.commands import run
from eqxformer.config import Config
from eqxformer.training.recipes.clock import TIMES, ClockTimes, digits, words
from eqxformer.training.recipes.finetune import EXPORTED, Finetuning, _vectors, ids_of, prepare
from eqxformer.training.run_directory import RunDirectory
from tests.helpers.compare import same_bits
from tests.helpers.models import filled

PAD, UNKNOWN, BEGIN, END = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny sentence encoder with a tokenizer that knows every word of the set."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    texts = " ".join(text for side in ClockTimes().longest() for text in side).lower()
    known = sorted(set(re.findall(r"\w+|[^\w\s]", texts)))
    vocab = {token: number for number, token in enumerate([*SPECIAL, *known])}
    made = Tokenizer(models.WordLevel(vocab, UNKNOWN))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing((END, vocab[END]), (BEGIN, vocab[BEGIN]))
    config = ef.families.bert(vocab=len(vocab), dim=8, layers=1, heads=2, hidden=8, context=32)
    pooling = ef.Pooling.Config(take="mean", unit_length=True)
    ef.save_pretrained(filled(config.edit(pooling=pooling)), folder, model_type="bert")
    made.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def trained(checkpoint):
    """A run of three steps beside the checkpoint, and what it printed."""
    place = checkpoint.parent / "run"
    options = ["--steps=3", "--batch=4", "--set", "validate_every=3", "--set", "data.kept_back=20"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert (
            run(["train", "finetune", "--data", str(checkpoint), "--out", str(place), *options])
            == 0
        )
    return place, printed.getvalue()


def test_times_are_said_as_people_say_them():
    said = {
        (0, 0): "twelve o'clock at night",
        (0, 45): "a quarter to one at night",
        (4, 30): "half past four at night",
        (9, 5): "five past nine in the morning",
        (11, 59): "one minute to twelve in the morning",
        (12, 1): "one minute past twelve in the afternoon",
        (17, 37): "twenty-three minutes to six in the afternoon",
        (23, 40): "twenty to twelve at night",
    }
    assert {time: words(*time) for time in said} == said
    assert digits(7, 5) == "07:05"


def test_no_two_times_are_told_alike():
    times = [divmod(minute, 60) for minute in range(TIMES)]
    assert len({digits(*time) for time in times}) == TIMES
    assert len({words(*time) for time in times}) == TIMES


def test_sentences_of_a_row_tell_one_time_and_training_shows_none_that_is_kept_back():
    data = ClockTimes(batch=200)
    by_words = {words(*divmod(minute, 60)): digits(*divmod(minute, 60)) for minute in range(TIMES)}

    def told(pairs):
        found = [re.search(r"\d\d:\d\d", text).group() for text in pairs.in_digits]
        said = [re.search(r"(?:at|is) (.*)\.", text).group(1) for text in pairs.in_words]
        said = [text.removeprefix("at ") for text in said]
        assert found == [by_words[text] for text in said]
        return found

    kept_back = told(data.to_validate())
    assert len(set(kept_back)) == 240
    for step in range(3):
        shown = told(data.to_learn(0, step))
        assert len(set(shown)) == 200
        assert not set(shown) & set(kept_back)
    assert data.to_learn(0, 1) == data.to_learn(0, 1) != data.to_learn(1, 1)


def test_batches_have_one_shape_and_sentences_the_tokenizers_own_ends(checkpoint):
    task = Finetuning(checkpoint)
    task.check(task.experiment)
    with pytest.raises(ValueError, match="`microbatch` must be None with Contrastive"):
        task.experiment.edit(microbatch=4)
    assert Config.from_json(task.experiment.to_json()) == task.experiment
    batches = task.batches(task.experiment)
    shapes = {
        tuple(x.shape for x in (b.anchors.tokens, b.positives.tokens))
        for b in map(batches, range(4))
    }
    assert len(shapes) == 1
    tokens = batches(0).anchors.tokens
    assert (tokens[:, 0] == 2).all()
    lengths = batches(0).anchors.valid.sum(axis=1)
    assert (tokens[np.arange(len(tokens)), lengths - 1] == 3).all()
    assert not (tokens == 1).any()  # every word is known


def test_a_run_begins_with_the_weights_of_the_checkpoint(checkpoint):
    experiment = Finetuning(checkpoint).experiment.edit("model.blocks.*.*_residual", dropout=0.5)
    model = experiment.init()
    assert model.config == experiment.model
    loaded = ef.from_pretrained(checkpoint)
    assert same_bits(ef.named_arrays(model), ef.named_arrays(loaded))


def test_what_comes_out_is_a_checkpoint_of_its_own_kind(trained, checkpoint):
    place, _ = trained
    made = ef.load(place)
    exported = ef.from_pretrained(place / EXPORTED)
    assert same_bits(ef.named_arrays(exported), ef.named_arrays(made))
    assert not same_bits(ef.named_arrays(exported), ef.named_arrays(ef.from_pretrained(checkpoint)))
    files = {f.relative_to(place / EXPORTED).as_posix() for f in (place / EXPORTED).rglob("*.json")}
    assert {"config.json", "modules.json", "tokenizer.json", "1_Pooling/config.json"} <= files
    same = (place / EXPORTED / "tokenizer.json", checkpoint / "tokenizer.json")
    assert same[0].read_bytes() == same[1].read_bytes()


def test_a_run_says_what_was_found_before_and_after(trained):
    place, out = trained
    assert re.search(r"\d+\.\d% of the 20 times kept back are found .*; \d+\.\d% before\.", out)
    last = json.loads((place / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"accuracy_before", "final_accuracy"} <= set(last)


def test_a_trained_model_names_the_nearest_times(trained, capsys):
    prompt = "Dinner is at half past six."
    assert run(["generate", str(trained[0]), "--prompt", prompt]) == 0
    out = capsys.readouterr().out
    assert re.fullmatch(
        r"Dinner is at half past six\. -> (\d\d:\d\d \(-?\d\.\d\d\)(, )?){3}\n", out
    )
    directory = RunDirectory.open(trained[0])
    model, tokenizer = directory.load(), directory.tokenizer()
    texts = [prompt, *(f"{i // 60:02}:{i % 60:02}" for i in range(24 * 60))]
    asked, *times = _vectors(model, ids_of(tokenizer, texts))
    cosines = np.stack(times) @ np.asarray(asked)
    shown = [float(number) for number in re.findall(r"\((-?\d\.\d\d)\)", out)]
    np.testing.assert_allclose(shown, np.sort(cosines)[::-1][:3], atol=0.0051)


def test_what_is_no_sentence_encoder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="begins with a checkpoint of sentence-transformers"):
        prepare(None)
    with pytest.raises(ValueError, match="nowhere"):
        prepare(tmp_path / "nowhere")
    config = ef.families.gpt(vocab=13, dim=8, layers=1, heads=2, context=8)
    ef.save_pretrained(filled(config), tmp_path / "gpt")
    with pytest.raises(ValueError, match="holds a DecoderLM; `finetune` needs a sentence encoder"):
        prepare(tmp_path / "gpt")


def test_a_run_goes_on_with_a_checkpoint_that_has_moved(checkpoint, trained, tmp_path):
    run_path, _ = trained
    moved = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    again = shutil.copytree(run_path, tmp_path / "run")
    shutil.rmtree(again / EXPORTED)
    os.rename(checkpoint, checkpoint.with_name("gone"))
    try:
        assert run(["train", "--out", str(again), "--resume"]) == 2
        assert run(["train", "--out", str(again), "--resume", "--data", str(moved)]) == 0
    finally:
        os.rename(checkpoint.with_name("gone"), checkpoint)
    exported = {path.name for path in (again / EXPORTED).iterdir()}
    assert exported == {path.name for path in (run_path / EXPORTED).iterdir()}
    assert "tokenizer.json" in exported


def test_another_model_to_begin_from_is_refused(checkpoint, capsys):
    words = ["train", "finetune", "--data", str(checkpoint), "--from", str(checkpoint)]
    assert run(words) == 2
    assert "begins with the checkpoint that --data names" in capsys.readouterr().err


def test_sentences_are_padded_to_the_longest_or_to_what_is_asked(checkpoint):
    tokenizer = Finetuning(checkpoint).tokenizer
    found = ids_of(tokenizer, ["Departure 21:15", "at"], 9)
    assert found.tokens.shape == (2, 9)
    assert found.valid.sum(axis=1).tolist() == [6, 3]
    assert ids_of(tokenizer, ["at"]).tokens.shape == (1, 3)
    model = ef.from_pretrained(checkpoint)
    embed = eqx.filter_jit(lambda tokens, mask=None: model.embed(tokens, mask=mask))
    whole = embed(jnp.asarray(found.tokens), found.mask())
    alone = embed(jnp.asarray(ids_of(tokenizer, ["at"]).tokens))
    np.testing.assert_allclose(whole[1], alone[0], atol=1e-6)


@pytest.mark.parametrize("wrong", [{"batch": 1}, {"batch": 1500}, {"kept_back": 1}])
def test_batches_without_others_to_tell_apart_are_refused(wrong):
    with pytest.raises(ValueError, match="`kept_back` must be at least 2, and `batch` from 2"):
        ClockTimes(**wrong)
