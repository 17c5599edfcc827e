"""The scripts in `benchmarks/` on the smallest sizes, their candidates in this very process."""

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path

import jax
import pytest

from eqxformer.bench import harness, sizes

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the scripts are not in the sdist")


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs a script with arguments; gives what it saves, and has put everything back afterwards."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    before, strict = set(sys.modules), jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # what JAX's own attention needs

    def run(name, *arguments):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        saved = {}

        def compare(candidates, *, repetitions, check=lambda facts: None, may_fail=()):
            assert run.dying <= set(may_fail)
            there = {who: how for who, how in candidates.items() if who not in run.dying}
            found = {each: answer(module, command) for each, command in there.items()}
            found = {each: facts for each, facts in found.items() if facts is not None}
            check(found)
            return found

        def write(path, name, results):
            saved[name] = json.loads(json.dumps(results))
            return tmp_path / name

        monkeypatch.setattr(harness, "compare", compare)
        monkeypatch.setattr(harness, "write", write)
        monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), *arguments])
        module.main()
        return saved

    run.dying = set()  # candidates that end before they are ready
    yield run
    jax.config.update("jax_numpy_dtype_promotion", strict)
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "peers":
            del sys.modules[name]


def answer(module, command):
    """What a candidate says of itself and one repetition; None where it is not installed."""
    times = {"median": 0.5, "quartiles": [0.4, 0.7], "repetitions": 1, "first_seconds": 1.0}
    if command[0] == "-m":
        return {"work": 1e9, "way": "none", **times}
    facts = {}

    def serve(repeat, **given):
        repeat()
        facts.update(given)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(harness, "serve", serve)
        patch.setattr(sys, "argv", list(command))
        try:
            module.main()
        except SystemExit as error:
            if error.code:
                raise
            return None
    return {**json.loads(json.dumps(facts)), **times}


def tiny_pretraining(name):
    """A recipe of pre-training with the smallest model, on a text of numbers."""
    from eqxformer.data.corpus import Corpus
    from eqxformer.training.experiment import Recipe
    from eqxformer.training.recipes import denoise, mlm, pretraining

    module = {"mlm": mlm, "denoise": denoise}[name]
    corpus = Corpus("numbers", " ".join(map(str, range(2000))))
    task = pretraining.Pretraining(corpus, module.experiment, module.SPECIAL, module.fill)
    model = task.experiment.model
    vocab = model.encoder.vocab
    small = module.model(vocab, dim=8, layers=2, heads=2, hidden=8)
    task.experiment = task.experiment.edit(model=small).edit("data", batch=4)
    return Recipe(name, "", lambda data: task, lambda *asked: iter(()))


def test_forward_passes_agree_and_are_compared(script, monkeypatch):
    from peers import task

    tiny = task.Size("gpt", 11, dim=8, layers=1, heads=2, hidden=8, seq=8, batch=2)
    monkeypatch.setitem(task.SIZES, "vpj", tiny)
    arguments = ["--sizes", "vpj", "--batch", "1", "--candidates", "eqxformer", "plain equinox"]
    (found,) = script("forward", *arguments)["forward-batch1"].values()
    assert list(found["candidates"]) == ["eqxformer", "plain equinox"]
    assert found["size"]["batch"] == 1
    for facts in found["candidates"].values():
        assert facts["tokens_per_second"] == 8 / 0.5
        assert facts["time_relative_to"] == {"plain equinox": 1.0}
        assert 0 < facts["model_flops_utilisation"] < 1


@pytest.mark.parametrize("name", ["training_step", "forward"])
def test_what_a_model_takes_here_is_told_though_a_peer_dies(script, monkeypatch, name):
    from peers import task

    tiny = task.Size("gpt", 11, dim=8, layers=1, heads=2, hidden=8, seq=8, batch=2)
    monkeypatch.setitem(task.SIZES, "vpj", tiny)
    script.dying = {"plain equinox"}
    arguments = ["--sizes", "vpj", "--candidates", "eqxformer", "plain equinox"]
    found = script(name, *arguments)[name]["vpj"]["candidates"]
    assert list(found) == ["eqxformer"]
    assert found["eqxformer"]["tokens_per_second"] == 16 / 0.5
    assert found["eqxformer"]["time_relative_to"] == {}


@pytest.mark.parametrize(
    ("name", "dying", "arguments"),
    [
        ("attention", "jax.nn", ["--lengths", "8", "--tokens", "8", "--heads", "2"]),
        ("cross_entropy", "plain", ["--vocab", "65", "--tokens", "8", "--dim", "8"]),
    ],
)
def test_what_a_part_takes_here_is_told_though_another_form_dies(script, name, dying, arguments):
    script.dying = {dying}
    found = script(name, *arguments, "--candidates", "eqxformer", dying)[name]
    parts = found.values() if isinstance(found, dict) else found
    tables = [part["candidates"] for part in parts if "candidates" in part]
    assert tables
    assert all(list(table) == ["eqxformer"] for table in tables)


@pytest.mark.parametrize("name", ["mlm", "denoise"])
def test_losses_of_pretraining_are_those_of_torch(script, monkeypatch, name):
    pytest.importorskip("torch")
    made = tiny_pretraining(name)
    monkeypatch.setattr("eqxformer.training.recipes.recipe", lambda _: made)
    found = script("pretraining", "--recipes", name, "--steps", "4")["pretraining"][name]
    assert found["early_difference"] < 1e-5
    assert len(set(found["losses"]["torch"])) == found["steps"] == 4


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ([], "attention"),
        (["--window", "3", "--kv-heads", "1", "--dtype", "bfloat16"], "attention-window_3-kv_1-"),
    ],
)
def test_attention_agrees_and_is_compared(script, more, name):
    sizes = ["--lengths", "8", "--tokens", "16", "--heads", "2", "--head-dim", "8", *more]
    ((saved, found),) = script("attention", *sizes).items()
    assert saved.startswith(name)
    assert found["sizes"]["heads"] == 2
    pairs = sum(min(place + 1, 3 if more else 8) for place in range(8))
    for title, factor in {"forward": 1, "forward and backward": 3}.items():
        part = found[f"8, {title}"]
        assert part["batch"] == 2
        assert {"eqxformer", "jax.nn"} <= part["candidates"].keys()
        for facts in part["candidates"].values():
            assert facts["flops"] == factor * 4 * 2 * 2 * 8 * pairs
            assert facts["flops_per_second"] == facts["flops"] / facts["median"]
            assert "numbers" not in facts


def test_attention_refuses_candidates_that_do_not_agree(script, monkeypatch):
    import eqxformer as ef

    attend = ef.layers.attend
    monkeypatch.setattr(ef.layers, "attend", lambda *args, **how: 1.01 * attend(*args, **how))
    sizes = ["--lengths", "8", "--tokens", "8", "--heads", "2", "--head-dim", "8"]
    with pytest.raises(SystemExit, match="numbers of .* and eqxformer differ by"):
        script("attention", *sizes)


def test_growth_is_measured_along_an_axis(script):
    sizes = ["--axes", "length", "--lengths", "4", "8", "--base", "4", "32", "1", "1"]
    found = script("growth", "--question", "forward", *sizes)["growth-forward"]
    assert found["length"]["range"] == [4, 8]
    assert list(found["length"]["candidates"]) == ["4", "8"]
    exponents = found["length"]["exponents"]
    assert 1.0 < exponents["operations"] < 2.0  # attention's grow with the square
    assert exponents["time"] == exponents["time_of_the_last_two"]


def test_the_exponent_of_a_power_is_found(script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    spec = importlib.util.spec_from_file_location("growth", FOLDER / "growth.py")
    growth = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(growth)
    assert growth.slope([1, 2, 4, 8], [3 * x**1.7 for x in (1, 2, 4, 8)]) == pytest.approx(1.7)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("growth", ["--axes", "width", "--widths", "64"], "--widths must be at least two positive"),
        ("growth", ["--widths", "64", "65"], "must be a multiple of the heads' 32; got 65"),
        ("attention", ["--heads", "4", "--kv-heads", "3"], "--kv-heads 3 must divide --heads 4"),
    ],
)
def test_impossible_sizes_are_refused_before_anything_runs(
    script, name, arguments, message, capsys
):
    with pytest.raises(SystemExit):
        script(name, *arguments)
    assert message in capsys.readouterr().err


def test_sizes_of_one_name_are_the_same_for_the_command_and_the_scripts(script):
    from peers import task

    for name in sizes.SIZES:
        ours, theirs = sizes.size(name), task.SIZES[name]
        assert task.config(theirs) == ours.config
        assert (theirs.batch, theirs.seq) == (ours.batch, ours.seq)
