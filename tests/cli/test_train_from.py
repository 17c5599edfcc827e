"""Runs that begin from a saved model: `eqxformer train --from`."""

import contextlib
import io
import json
import shutil
import signal

import equinox as eqx
import jax
import pytest

import eqxformer as ef
from eqxformer.checkpoints.native import load
from eqxformer.cli.commands import run
from eqxformer.data.subwords import Subwords
from eqxformer.training.experiment import Experiment
from eqxformer.training.recipes import recipe
from eqxformer.training.run_directory import RunDirectory
from eqxformer.training.start import Start
from tests.cli.conftest import MODEL, TEXT
from tests.cli.test_mistakes import refused
from tests.cli.test_resume import end_at_the_second_save, log
from tests.helpers.compare import same_bits
from tests.helpers.models import filled

FEW = ["--steps=4", "--batch=2", "--set", "validate_every=2", "--set", "prompt=7 times"]
BYTES = ["--set", 'tokenizer={"type": "ByteLevelBPE", "vocab": 270}']


def experiment_of(path):
    return Experiment.from_dict(json.loads((path / "run.json").read_text())["experiment"])


@pytest.fixture(scope="module")
def tuned(trained, checkpoint, tmp_path_factory):
    """Runs over another text, from a run over characters and from a checkpoint over bytes."""
    place = tmp_path_factory.mktemp("tuned")
    (place / "more.txt").write_text(TEXT[::-1] + TEXT)
    for name, source in {"run": trained / "text", "checkpoint": checkpoint}.items():
        words = ["train", "--from", str(source), "--data", str(place / "more.txt")]
        words += ["--out", str(place / name), *FEW]
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert run(words) == 0
        (place / f"{name}.out").write_text(printed.getvalue())
    return place


@pytest.mark.parametrize("name", ["run", "checkpoint"])
def test_the_first_weights_are_those_of_the_model(tuned, trained, checkpoint, name):
    source = {"run": trained / "text", "checkpoint": checkpoint}[name]
    model = load(source) if name == "run" else ef.from_pretrained(source)
    assert same_bits(experiment_of(tuned / name).init(), model)
    assert not same_bits(load(tuned / name), model)
    assert f"  from       {source}\n" in (tuned / f"{name}.out").read_text()


@pytest.mark.parametrize("name", ["run", "checkpoint"])
def test_the_tokens_are_those_of_the_model(tuned, trained, checkpoint, name):
    source = {"run": trained / "text", "checkpoint": checkpoint}[name]
    kept = json.loads((source / "tokenizer.json").read_text())
    assert json.loads((tuned / name / "tokenizer.json").read_text()) == kept
    unit = {"run": "character", "checkpoint": "token"}[name]
    assert f"nats per {unit}, over the whole last tenth" in (tuned / f"{name}.out").read_text()


@pytest.mark.parametrize("name", ["run", "checkpoint"])
def test_the_first_loss_is_that_of_the_model(tuned, trained, checkpoint, name):
    source = {"run": trained / "text", "checkpoint": checkpoint}[name]
    model = load(source) if name == "run" else ef.from_pretrained(source)
    task = recipe("text").prepare(tuned / "more.txt")
    task.begin(Start(source))
    experiment = experiment_of(tuned / name)
    expected = eqx.filter_jit(experiment.loss)(model, task.batches(experiment)(0)).mean
    first = next(line["loss"] for line in log(tuned / name) if "loss" in line)
    assert first == pytest.approx(float(expected), rel=1e-5)


def test_a_tenth_of_the_learning_rate_is_suggested_and_may_be_set(command, tuned, trained):
    rate = experiment_of(tuned / "run").optimizer.learning_rate
    assert rate == experiment_of(trained / "text").optimizer.learning_rate.scaled(0.1)
    more = ["--data", tuned / "more.txt", "--set", "optimizer.learning_rate.peak=0.03"]
    code, out, _ = command("train", "--from", trained / "text", *more, "--dry-run")
    assert (code, "peak=0.03" in out) == (0, True)


def test_a_run_from_a_checkpoint_writes_and_scores_text(command, tuned):
    asked = ("--prompt", "7 times", "--max-new-tokens", 16)
    code, out, err = command("generate", tuned / "checkpoint", *asked)
    assert (code, err, out.startswith("7 times")) == (0, "", True)
    assert len(out) > len("7 times") + 1
    code, out, _ = command("score", tuned / "checkpoint", "--text", "17 times 18 times")
    count = len(RunDirectory.open(tuned / "checkpoint").tokenizer().encode("17 times 18 times"))
    assert code == 0
    assert f"tokens            {count - 1:,} of {count:,}, behind the first\n" in out


def test_what_lies_beside_the_weights_of_a_checkpoint_goes_with_them(command, here, tuned):
    assert command("convert", tuned / "checkpoint", here / "theirs")[0] == 0
    assert command("convert", tuned / "checkpoint/best", here / "best")[0] == 0
    assert command("convert", tuned / "checkpoint/best", here / "own", "--to", "native")[0] == 0
    for folder in (tuned / "checkpoint", here / "theirs", here / "best", here / "own"):
        talk = [{"role": "user", "content": "a"}]
        assert ef.ChatTemplate.read(folder).render(talk) == "user: a\nassistant:"
        assert (folder / "generation_config.json").is_file()
        kept = json.loads((folder / "tokenizer.json").read_text())
        assert kept == json.loads((tuned / "checkpoint/tokenizer.json").read_text())
    model = load(tuned / "checkpoint")
    assert same_bits(ef.rebuild(ef.from_pretrained(here / "theirs"), model.config), model)


def test_where_a_checkpoint_lies_is_no_part_of_what_a_run_is(tuned, checkpoint, here):
    moved = shutil.copytree(checkpoint, here / "moved")
    experiment = experiment_of(tuned / "checkpoint")
    other = experiment.edit(model=ef.from_pretrained(moved).config, checkpoint=str(moved))
    assert other.identity() == experiment.identity()
    again = experiment.edit(checkpoint=str(moved)).init()
    assert again.config.origin.directory == str(moved)


@pytest.mark.parametrize("part", ["best", "checkpoints/../best"])
def test_a_model_within_a_run_has_the_tokens_of_the_run(command, here, trained, part):
    options = ["--data", trained / "text.txt", "--out", here / "new", *FEW]
    assert command("train", "--from", trained / "text" / part, *options)[0] == 0
    assert same_bits(experiment_of(here / "new").init(), load(trained / "text/best"))


def test_the_model_may_be_laid_out_otherwise(command, here, trained):
    config = load(trained / "text").config
    saved = filled(config.edit(blocks=2 * config.blocks))
    ef.save(saved, here / "saved")
    shutil.copy(trained / "text/tokenizer.json", here / "saved")
    options = ["--data", trained / "text.txt", "--out", here / "new", *FEW, "--steps=1"]
    scanned = ["--set", 'model.layout={"type": "Scanned"}']
    assert command("train", "--from", here / "saved", *options, *scanned)[0] == 0
    model = experiment_of(here / "new").init()
    assert model.config.layout == ef.Scanned()
    assert same_bits(ef.rebuild(model, saved.config), saved)


def test_a_killed_run_goes_on_from_the_same_model(command, here, trained, tuned, monkeypatch):
    source = shutil.copytree(trained / "text", here / "source")
    options = ["--from", source, "--data", tuned / "more.txt", *FEW]
    with monkeypatch.context() as patch:
        end_at_the_second_save(patch)
        code, *_ = command("train", *options, "--out", here / "parts")
    assert code == 128 + signal.SIGTERM
    parts = ["train", "--out", here / "parts", "--resume"]
    shutil.copy(trained / "rot13/tokenizer.json", source)
    assert "outside the alphabet" in refused(command, here, *parts)
    shutil.copy(trained / "text/tokenizer.json", source)
    shutil.move(source, here / "moved")
    line = refused(command, here, *parts)
    assert f"There is no directory {source}, which the run began from; say where" in line
    assert "--from DIRECTORY" in line
    other = refused(command, here, *parts, "--from", tuned / "run")
    assert "then -> now: data.from: " in other
    assert command(*parts, "--from", here / "moved")[0] == 0
    assert log(here / "parts") == log(tuned / "run")
    for name in ("model.safetensors", "best/model.safetensors"):
        assert (here / "parts" / name).read_bytes() == (tuned / "run" / name).read_bytes()


def test_pieces_of_words_are_learned_from_the_text(command, here, trained):
    options = ["--data", trained / "text.txt", *FEW, *MODEL, *BYTES, "--set", "data.length=16"]
    code, out, err = command("train", *options, "--out", here / "new")
    assert (code, err) == (0, "")
    tokenizer = RunDirectory.open(here / "new").tokenizer()
    assert isinstance(tokenizer, Subwords)
    whole = len(tokenizer.encode(TEXT))
    assert whole < len(TEXT)
    assert "text.txt: 2,889 characters as " in out
    assert f"{tokenizer.vocab:,} different" in out
    assert load(here / "new").config.vocab == tokenizer.vocab
    assert command("train", "--out", here / "new", "--resume")[0] == 0
    assert command("generate", here / "new", "--prompt", "7 times", "--max-new-tokens=8")[0] == 0


@pytest.fixture(scope="module")
def others(tmp_path_factory, checkpoint):
    """Models that no recipe over a text can go on from."""
    place = tmp_path_factory.mktemp("others")
    config = ef.families.gpt(vocab=300, dim=8, layers=1, heads=2, context=16)
    ef.save(filled(config), place / "plain")
    encoder = ef.families.bert(vocab=300, dim=8, layers=1, heads=2, hidden=8, context=16)
    ef.save(filled(encoder), place / "encoder")
    shutil.copy(checkpoint / "tokenizer.json", place / "encoder")
    shutil.copytree(checkpoint, place / "broken")
    (place / "broken/tokenizer.json").write_text("[]")
    return place


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("{others}/missing", [], "There is no directory"),
        ("{others}", [], "There is no config.json in"),
        ("{others}/plain", [], "There is no tokenizer.json in"),
        ("{others}/broken", [], "must hold a JSON object; got list"),
        ("{others}/encoder", [], "expected DecoderLM.Config, got Encoder.Config"),
        ("{trained}/rot13", [], "expected DecoderLM.Config, got EncoderDecoder.Config"),
        ("{trained}/text", ["--data", "{other}"], "outside the alphabet: 'é'"),
        ("{trained}/text", BYTES, "leave `tokenizer` away"),
        ("{trained}/text", ["--set", "model.dim=32"], "do not fit this experiment: "),
        ("{trained}/text", ["rot13"], "expected EncoderDecoder.Config, got DecoderLM.Config"),
        ("{trained}/text", ["mlm"], "expected EncoderWithHead.Config, got DecoderLM.Config"),
        ("{checkpoint}", ["--set", "data.length=65"], "at most the model's 64 positions"),
    ],
)
def test_what_cannot_be_gone_on_from(
    command, here, trained, checkpoint, others, source, arguments, message
):
    (here / "other.txt").write_text("é" + TEXT)
    places = {"trained": trained, "checkpoint": checkpoint, "others": others}
    places["other"] = here / "other.txt"
    words = ["--data", trained / "text.txt"] if not {"rot13", "--data"} & set(arguments) else []
    words += [str(word).replace("{other}", str(places["other"])) for word in arguments]
    assert message in refused(command, here, "train", "--from", source.format(**places), *words)


def test_a_recipe_with_data_of_its_own_goes_on_with_the_same_tokens(command, here, trained):
    options = ["--out", here / "new", "--steps=2", "--batch=8"]
    assert command("train", "rot13", "--from", trained / "rot13", *options)[0] == 0
    assert same_bits(experiment_of(here / "new").init(), load(trained / "rot13"))
    source = shutil.copytree(trained / "rot13", here / "source")
    shutil.copy(trained / "text/tokenizer.json", source)
    line = refused(command, here, "train", "rot13", "--from", source)
    assert "was made for other tokens than those of this task" in line


def test_first_weights_lie_on_a_mesh_as_random_ones_do(trained):
    experiment = experiment_of(trained / "text").edit(checkpoint=str(trained / "text"))
    placement = ef.Placement(ef.make_mesh("fsdp=4,tensor=2"), ef.Rules(uneven="whole"))
    read = experiment.init(placement)
    drawn = experiment.edit(checkpoint="").init(placement)
    shardings = [
        [leaf.sharding for leaf in jax.tree.leaves(model) if isinstance(leaf, jax.Array)]
        for model in (read, drawn)
    ]
    assert shardings[0] == shardings[1]
    assert same_bits(read, load(trained / "text"))
