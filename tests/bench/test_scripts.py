"""The scripts in `benchmarks/` on the smallest sizes, their candidates in this very process."""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import sys
from pathlib import Path
from unittest import mock

import jax
import pytest

from eqxformer.bench import harness, sizes

FOLDER = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the scripts are not in the sdist")


def loaded(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Runs a script with arguments; gives what it saves, and has put everything back afterwards."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    before, strict = set(sys.modules), jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # what JAX's own attention needs

    def run(name, *arguments):
        module = loaded(name)
        if run.measure:
            module.measure = run.measure
        run.saved = saved = {}

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
    run.measure = None  # what measures a part, instead of the script
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


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("attention", ["--lengths", "8", "16"]),
        ("growth", ["--axes", "length", "batch"]),
        ("generation", ["--batches", "1", "2"]),
        ("compile_time", ["--depths", "1", "2", "--layouts", "scanned"]),
    ],
)
def test_what_has_been_measured_is_saved_though_a_later_part_ends_the_script(
    script, monkeypatch, name, arguments
):
    parts = iter([{"median": 1.25}])

    def measure(*asked):
        for part in parts:
            return part
        raise SystemExit("the numbers differ")

    script.measure = measure
    monkeypatch.setattr("os.environ", {**os.environ})  # which compile_time changes
    monkeypatch.setattr("subprocess.run", lambda *command, **how: None)  # generation's model
    with pytest.raises(SystemExit, match="the numbers differ"):
        script(name, *arguments)
    assert '{"median": 1.25}' in json.dumps(script.saved[name])


def test_starts_share_the_device_with_the_process_that_asks_for_them(script, monkeypatch):
    monkeypatch.setattr("os.environ", {**os.environ})
    os.environ.pop("XLA_PYTHON_CLIENT_PREALLOCATE", None)
    seen = []
    script.measure = lambda *asked: seen.append(os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"])
    script("compile_time", "--depths", "1", "2", "--layouts", "scanned")
    assert seen == ["false", "false"]


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


@pytest.mark.parametrize(("platform", "alone"), [("cpu", True), ("gpu", False)])
def test_calls_of_attention_queue_up_on_a_gpu_and_are_waited_for_one_by_one_on_a_cpu(
    monkeypatch, platform, alone
):
    module, done, told = loaded("attention"), [], {}
    made = (lambda: done.append("call") or [], lambda out: done.append("wait") or out, lambda: None)
    monkeypatch.setitem(module.MAKE, "eqxformer", lambda *given: made)
    monkeypatch.setattr(harness, "serve", lambda repeat, **facts: told.update(facts, repeat=repeat))
    monkeypatch.setenv(harness.PLATFORM, platform)
    arguments = ["", "--lengths", "4", "--tokens", "4", "--candidate", "eqxformer", "forward"]
    monkeypatch.setattr(sys, "argv", arguments)
    module.main()
    del done[:]
    told["repeat"]()
    assert done.count("call") == told["calls"] > 1
    assert done[-1] == "wait"
    assert (done.count("wait") >= told["calls"]) == alone


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
    growth = loaded("growth")
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


def test_generation_is_bounded_by_the_ceiling_of_reading(monkeypatch):
    asked = {}
    times = {"quartiles": [1.0, 3.0], "first_seconds": 9.0, "weight_bytes": 1e9}
    found = {
        f"{who}, {new}": {**times, "median": median}
        for who in ("eqxformer", "transformers")
        for new, median in ((1, 1.0), (4, 2.5))
    }
    found["ceiling: read"] = {"median": 0.5, "work": 2e9}
    monkeypatch.setattr(harness, "compare", lambda commands, **how: asked.update(commands) or found)
    options = argparse.Namespace(prompt=4, new=4, repetitions=1)
    result = loaded("generation").measure("folder", 1, options)
    assert "ceiling: read" in asked
    assert result["bytes_per_second"] == 4e9
    for who in ("eqxformer", "transformers"):
        assert result[who]["step_seconds"] == 0.5
        assert result[who]["share_of_bandwidth_bound"] == 0.25 / 0.5


def test_both_generate_in_full_float32_on_a_gpu(monkeypatch):
    generation, torch = loaded("generation"), mock.MagicMock()
    monkeypatch.setenv(harness.PLATFORM, "gpu")
    monkeypatch.setattr("eqxformer.from_pretrained", lambda folder: None, raising=False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "transformers", mock.MagicMock())
    before = jax.config.jax_default_matmul_precision
    try:
        generation.ours("folder", [], 1)
        assert jax.config.jax_default_matmul_precision == "highest"
    finally:
        jax.config.update("jax_default_matmul_precision", before)
    generation.theirs("folder", [], 1)
    torch.set_float32_matmul_precision.assert_called_with("highest")


@pytest.mark.parametrize(("platform", "agree"), [("cpu", False), ("gpu", True)])
@pytest.mark.parametrize("name", ["cross_entropy", "call_overhead"])
def test_tensorfloat_32_is_no_disagreement_on_a_gpu(monkeypatch, name, platform, agree):
    monkeypatch.setattr(harness, "jax_platform", lambda: platform)
    found = {who: {"loss": loss, "computed": [loss]} for who, loss in (("a", 1.0), ("b", 1.0005))}
    more = {"dtype": "float32"} if name == "cross_entropy" else {}
    with contextlib.nullcontext() if agree else pytest.raises(SystemExit, match="Different loss"):
        loaded(name).check(found, **more)


def test_transformers_turns_by_angles_in_float32_though_weights_are_bfloat16(
    script, monkeypatch, tmp_path
):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from peers import task, torch_step, transformers_models

    models, training = [], torch_step.training
    record = lambda model, *given: models.append(model) or training(model, *given)  # noqa: E731
    monkeypatch.setattr(torch_step, "training", record)
    size = task.Size("llama", 11, dim=32, layers=1, heads=2, hidden=32, seq=8, batch=2)
    task.write(size, tmp_path / "start.npz")
    step = transformers_models.step(task.read(size, "bfloat16", tmp_path / "start.npz"))
    assert step() > 0
    assert models[0].lm_head.weight.dtype == torch.bfloat16
    rates = models[0].model.rotary_emb.inv_freq
    expected = 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(rates, expected, rtol=1e-6, atol=0.0)  # bfloat16 is off by 4e-3
