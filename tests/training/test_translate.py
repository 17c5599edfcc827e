import contextlib
import inspect
import io
import json
import shutil
from types import SimpleNamespace

import equinox as eqx
import jax
import pytest

import eqxformer as ef
from eqxformer.checkpoints.native import load
from eqxformer.cli.commands import run
from eqxformer.data.subwords import Subwords, WordBPE
from eqxformer.models import families
from eqxformer.training.bleu import bleu
from eqxformer.training.experiment import Request
from eqxformer.training.recipes import recipe, translate
from eqxformer.training.run_directory import RunDirectory
from eqxformer.training.start import Start
from tests.data.made import sentences, write_directory
from tests.helpers.compare import same_bits
from tests.helpers.models import filled

COUNTS = {"train": 60, "valid": 6, "test": 5}
SETTINGS = {
    "tokenizer.vocab": 90,
    "data.tokens": 128,
    "data.longest": 12,
    "data.buckets": 1,
    "validate_every": 4,
    "average_every": 2,
    "averaged": 2,
    "beams": 2,
    "optimizer.learning_rate.warmup": 1,
    "bleu_every": 4,
}


def smallest(vocab):
    """The recipe's model with one layer and less of everything."""
    model = families.transformer(
        vocab=vocab, dim=8, layers=1, heads=2, hidden=8, wiring=ef.pre_norm()
    )
    return model.edit("decoder", head=ef.TiedHead.Config()).edit(tokens="shared")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of `translate`, its exit code, and what it printed."""
    place = tmp_path_factory.mktemp("translate")
    # As many texts to validate as to test with: their search is one program.
    data = write_directory(place / "par", {**COUNTS, "valid": 5})
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    words = ["train", "translate", "--data", str(data), "--out", str(place / "run"), "--steps=6"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(translate, "tiny", smallest)
        code = run([*words, *settings])
    return place / "run", code, out.getvalue()


def test_a_run_learns_and_ends_with_bleu_of_the_averaged_model(trained):
    path, code, out = trained
    assert code == 0
    assert "par: en to de, 60 pairs to learn from, 5 to validate and 5 to test with" in out
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0]
    on_the_way = [record for record in records if "validation_bleu" in record]
    assert [record["step"] for record in on_the_way] == [4, 6]
    assert f"step      4  validation bleu {on_the_way[0]['validation_bleu']:.4f}" in out
    (score,) = (record["test_bleu"] for record in records if "test_bleu" in record)
    assert f"BLEU {score:.2f} on 5 texts" in out
    run = RunDirectory.open(path)
    mean = ef.average(load(path / "last" / f"step-{step}") for step in (4, 6))
    assert same_bits(mean, run.load())
    source, target = zip(*sentences(5, seed=2), strict=True)
    answers = ef.translate(run.load(), source, run.tokenizer(), beams=2)
    assert bleu(answers, target) == pytest.approx(score)


def test_the_tokenizer_of_a_run_is_one_of_the_package_tokenizers(trained):
    path, *_ = trained
    tokenizer = RunDirectory.open(path).tokenizer()
    assert isinstance(tokenizer, Subwords)
    assert load(path).config.encoder.vocab == tokenizer.vocab <= 90
    assert tokenizer.decode(tokenizer.encode("ein kater läuft .")) == "ein kater läuft ."


def test_a_run_translates_every_line_of_a_prompt(trained, capsys):
    path, *_ = trained
    lines = [source for source, _ in sentences(5, seed=2)]
    assert run(["generate", str(path), "--prompt", "\n".join(lines)]) == 0
    directory = RunDirectory.open(path)
    expected = ef.translate(directory.load(), lines, directory.tokenizer(), beams=2)
    assert capsys.readouterr().out == "\n".join(expected) + "\n"
    request = Request("a dog\n\na cat", ef.Greedy())
    with pytest.raises(ValueError, match="Every line of the prompt must have text"):
        list(recipe("translate").respond(None, None, None, request))


def test_a_run_goes_on_from_another_on_other_texts_with_its_tokens(trained, tmp_path, capsys):
    path, *_ = trained
    data = write_directory(tmp_path / "more", {"valid": 5, "test": 5, "train": 40})
    settings = {name: value for name, value in SETTINGS.items() if name != "tokenizer.vocab"}
    words = ["train", "translate", "--data", str(data), "--from", str(path), "--steps=2"]
    words += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    assert run([*words, "--out", str(tmp_path / "run")]) == 0
    made = RunDirectory.open(tmp_path / "run")
    assert made.tokenizer() == RunDirectory.open(path).tokenizer()
    assert same_bits(made.experiment().init(), load(path))
    rate = translate.suggested().optimizer.learning_rate
    assert made.experiment().optimizer.learning_rate.peak == pytest.approx(rate.peak / 10)
    capsys.readouterr()
    assert run([*words, "--set", "tokenizer.vocab=80", "--out", str(tmp_path / "no")]) == 2
    assert "leave `tokenizer` as it is" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_tokens_without_padding_and_ends_cannot_be_gone_on_with(trained, tmp_path):
    path, *_ = trained
    source = shutil.copytree(path, tmp_path / "source")
    (source / "tokenizer.json").write_text(ef.Characters.of("ab").to_json())
    task = translate.Translation(tmp_path)
    with pytest.raises(ValueError, match="must have ids for padding, start and end, named <pad>"):
        task.begin(Start(source))


@pytest.fixture(scope="module")
def written():
    """A model of random weights, and a tokenizer."""
    texts = [text for pair in sentences(30) for text in pair]
    tokenizer = WordBPE(vocab=64).train(texts)
    return filled(smallest(tokenizer.vocab), 3), tokenizer


def test_the_search_is_told_of_beams_length_and_end(written, monkeypatch):
    told = []

    def spied(*arguments, **options):
        given = inspect.signature(ef.beam_search).bind(*arguments, **options).arguments
        names = ("beams", "length_penalty", "early_stopping", "start", "stop")
        told.append([given[name] for name in names])
        return SimpleNamespace(tokens=[[tokenizer.encode("a cat").tolist()]])

    monkeypatch.setattr("eqxformer.training.translation.beam_search", spied)
    model, tokenizer = written
    options = {"beams": 3, "length_penalty": 0.6, "early_stopping": "never"}
    assert ef.translate(model, ["the dog"], tokenizer, **options) == ["a cat"]
    asked = translate.suggested().edit(beams=2, length_penalty=0.8, early_stopping=True)
    assert translate.translated(model, ["the dog"], tokenizer, asked) == ["a cat"]
    ends = [tokenizer.start, (tokenizer.end,)]
    assert told == [[3, 0.6, "never", *ends], [2, 0.8, True, *ends]]


def test_translations_are_those_of_each_text_alone_in_the_order_of_the_texts(written):
    model, tokenizer = written
    texts = [source for source, _ in sentences(5, longest=9, seed=4)]
    found = ef.translate(model, texts, tokenizer, beams=2, rows=2)
    sources = [[*tokenizer.encode(text).tolist(), tokenizer.end] for text in texts]
    order = sorted(range(len(texts)), key=lambda i: -len(sources[i]))  # two at a time
    for place, number in enumerate(order):
        ids, answer = sources[number], found[number]
        longest = len(sources[order[place - place % 2]])
        most = 2 * (16 if longest <= 16 else 32) + 10
        best = ef.beam_search(
            model,
            [ids] * 2,
            beams=2,
            max_new_tokens=most,
            start=tokenizer.start,
            stop=tokenizer.end,
        ).tokens[0][0]
        assert answer == tokenizer.decode([id for id in best if id < tokenizer.vocab])
    assert any(found)
    assert ef.translate(model, [], tokenizer) == []


def test_a_sampler_takes_the_place_of_the_search(written):
    model, tokenizer = written
    texts = [source for source, _ in sentences(5, longest=9, seed=4)]
    likeliest = ef.translate(model, texts, tokenizer, sampler=ef.Greedy(), rows=2)
    assert likeliest == ef.translate(model, texts, tokenizer, beams=1, rows=2)
    assert any(likeliest)


def test_what_is_drawn_follows_from_the_key_and_the_place_of_a_text_alone(written):
    model, tokenizer = written
    texts = [source for source, _ in sentences(5, longest=9, seed=4)]

    def drawn(number, rows, texts=texts):
        options = {"sampler": ef.Temperature(1.5), "key": jax.random.key(number), "rows": rows}
        return [text.split()[:4] for text in ef.translate(model, texts, tokenizer, **options)]

    assert drawn(0, rows=5) == drawn(0, rows=2) != drawn(1, rows=2)
    assert drawn(0, rows=2, texts=[texts[0], "the dog"])[0] == drawn(0, rows=2)[0]
    assert len({" ".join(words) for words in drawn(0, rows=5, texts=texts[:1] * 5)}) > 1


def test_a_key_and_a_sampler_that_draws_belong_together(written):
    with pytest.raises(ValueError, match="`key` is for a sampler"):
        ef.translate(*written[:1], ["the dog"], written[1], key=jax.random.key(0))
    with pytest.raises(ValueError, match="Temperature draws at random and needs a `key`"):
        ef.translate(*written[:1], ["the dog"], written[1], sampler=ef.Temperature(0.7))


def test_the_suggested_experiment_is_that_of_the_reference():
    made = translate.suggested()
    config = made.model
    assert ef.Config.from_json(made.to_json()) == made
    assert (config.encoder.dim, len(config.encoder.blocks), len(config.decoder.blocks)) == (
        128,
        4,
        4,
    )
    model = ef.shapes(config)
    assert 2.5e6 < ef.count(model) < 2.7e6
    assert model.decoder.embedding.tokens is None
    assert made.loss.label_smoothing == 0.1
    assert config.encoder.blocks[0].attention_residual.dropout == 0.3


def test_without_data_it_is_said_what_to_give():
    with pytest.raises(ValueError, match=r"needs parallel text: --data DIRECTORY with train\.en"):
        recipe("translate").prepare(None)


def test_the_loss_of_a_batch_can_be_differentiated(folder):
    task, experiment = fitted(folder)
    model, batch = ef.shapes(experiment.model), task.batches(experiment)(0)
    loss = eqx.filter_value_and_grad(lambda m, b: experiment.loss(m, b).mean)
    value, gradients = eqx.filter_eval_shape(loss, model, batch)
    assert value.shape == ()
    assert ef.count(gradients) == ef.count(model)


def fitted(folder, **changes):
    task = recipe("translate").prepare(folder)
    experiment = task.experiment.edit("tokenizer", vocab=64)
    for path, fields in changes.items():
        experiment = experiment.edit(path, **fields)
    return task, task.fitted(experiment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_directory(tmp_path_factory.mktemp("par") / "par", COUNTS)


def test_the_vocabulary_is_as_large_as_the_data_makes_it(folder):
    task, experiment = fitted(folder, tokenizer={"vocab": 5000})
    assert experiment.model.encoder.vocab == experiment.model.decoder.vocab == task.tokenizer.vocab
    assert task.tokenizer.vocab < 200
    assert task.fitted(experiment) == experiment
    with pytest.raises(ValueError, match=r"is that of the tokenizer; .*set tokenizer\.vocab"):
        fitted(folder, **{"model.*": {"vocab": 77}})


def test_the_first_text_to_validate_with_is_the_prompt_unless_one_is_set(folder):
    assert fitted(folder)[1].prompt == sentences(1, seed=1)[0][0]
    assert fitted(folder, **{"": {"prompt": "a dog"}})[1].prompt == "a dog"


def test_pairs_that_do_not_fit_are_refused_or_counted(tmp_path):
    folder = write_directory(tmp_path / "par", COUNTS)
    lines = (folder / "train.en").read_text().splitlines()
    lines[8] = "dog " * 200
    (folder / "train.en").write_text("\n".join(lines) + "\n")
    task, experiment = fitted(folder)
    message = r"In the texts of `train`: 1 pair is longer than 128 .* the first on line 9"
    with pytest.raises(ValueError, match=message):
        task.check(experiment)
    task, experiment = fitted(folder, data={"unfit": "drop"})
    task.check(experiment)
    assert "59 pairs to learn from, 6 to validate and 5 to test" in task.describe(experiment)
    assert "; 1 pairs longer or empty are left out" in task.describe(experiment)


def test_what_a_run_read_is_told_apart(tmp_path):
    about = []
    for change in ("", "x"):
        folder = write_directory(tmp_path / f"par{change}", COUNTS)
        with (folder / "test.de").open("a") as file:
            file.write(f"ein{change}\n")
        with (folder / "test.en").open("a") as file:
            file.write("a\n")
        about.append(fitted(folder)[0].about)
    one, two = about
    assert json.loads(json.dumps(one)) == one
    assert one["test pairs"] == 6
    assert one["tokenizer"] == two["tokenizer"]
    assert one["sha256"]["train"] == two["sha256"]["train"]
    assert one["sha256"]["test"] != two["sha256"]["test"]


@pytest.mark.parametrize("name", ["averaged", "average_every", "beams"])
def test_numbers_of_an_experiment_are_positive(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got 0"):
        translate.suggested().edit(**{name: 0})


def test_batches_are_of_the_seed_and_the_fitting_pairs(folder):
    task, experiment = fitted(folder)
    one, two = (task.batches(experiment.edit(seed=seed))(0) for seed in (0, 1))
    assert one.source.shape == two.source.shape
    assert (one.source != two.source).any()
    assert sum(int(batch.source_valid.any(1).sum()) for batch in task.validation(experiment)) == 6


def test_texts_to_learn_from_are_cut_in_several_ways_and_no_others(tmp_path):
    task = translate.prepare(write_directory(tmp_path / "par", COUNTS))
    suggested = task.experiment.edit("tokenizer", vocab=90).edit("data", longest=14)
    plain = task.fitted(suggested)
    several = task.fitted(suggested.edit(cuts=ef.BPEDropout(rate=0.5, ways=4)))
    task.check(several)
    of_plain, of_several = (task.batches(each) for each in (plain, several))
    assert of_plain.fingerprint != of_several.fingerprint
    assert of_several.fingerprint == task.batches(several).fingerprint
    assert plain.identity() != several.identity()
    lengths = [int(batch.source_valid.sum()) for batch in task.validation(several)]
    assert lengths == [int(batch.source_valid.sum()) for batch in task.validation(plain)]
    widest = max(of_several(step).source.shape[1] for step in range(8))
    assert widest <= several.data.longest


def test_no_step_follows_from_how_translations_are_made():
    made = translate.suggested()
    other = made.edit(beams=1, length_penalty=0.5, early_stopping=True, bleu_every=3, patience=2)
    assert other.identity() == made.identity() != made.edit(averaged=3).identity()


def test_cuts_are_a_setting_of_the_command_line(tmp_path, capsys):
    data = write_directory(tmp_path / "par", COUNTS)
    words = ["train", "translate", "--data", str(data), "--set", "tokenizer.vocab=90", "--dry-run"]
    assert run([*words, "--set", 'cuts={"type": "BPEDropout", "ways": 3}']) == 0
    assert "cuts=BPEDropout(rate=0.1, ways=3)" in capsys.readouterr().out


def test_a_tokenizer_that_cannot_be_cut_in_several_ways_is_refused_before_anything_is_made(
    tmp_path, capsys
):
    data, out = write_directory(tmp_path / "par", COUNTS), tmp_path / "run"
    kind = 'tokenizer={"type": "Unigram", "vocab": 280}'
    words = ["train", "translate", "--data", str(data), "--set", kind, "--out", str(out)]
    assert run([*words, "--set", 'cuts={"type": "BPEDropout"}']) == 2
    assert "`ByteLevelBPE` and `WordBPE` learn; got Unigram" in capsys.readouterr().err
    assert not out.exists()
