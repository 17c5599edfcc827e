"""The page of benchmarks is what the script makes of the results, and has room for a GPU."""

import copy
import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "page.py"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the scripts are not in the sdist")

MACHINE = {
    "device": "cpu",
    "platform": "cpu",
    "processor": "a chip",
    "cores": 2,
    "python": "3.11.7",
    "versions": {"jax": "0.10.2", "torch": "2.13.0"},
    "flags": {"XLA_FLAGS": "none"},
    "command": ["/somewhere/benchmarks/training_step.py", "--sizes", "two words"],
}
STEP = {"median": 0.0271, "quartiles": [0.025, 0.031], "tokens_per_second": 28345.6}
CANDIDATES = {
    "eqxformer": {**STEP, "time_relative_to": {"torch": 1.5}, "model_flops_utilisation": 0.714},
    "torch": {**STEP, "time_relative_to": {"torch": 1.0}},
}
RESULT = {
    "machine": MACHINE,
    "results": {"nano": {"size": {"dim": 1}, "ceilings": {"median": 1}, "candidates": CANDIDATES}},
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("benchmarks_page", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(script, name, **platforms):
    return script.section(name, name, platforms)


def test_the_page_in_the_repository_is_what_the_script_makes_of_the_results(script):
    made = script.page(script.read(SCRIPT.parent / "results"), script.questions(SCRIPT.parent))
    page = ROOT / "docs" / "benchmarks.md"
    assert page.read_text(encoding="utf-8") == made, "run: python benchmarks/page.py"
    shown = {page.parent / picture for picture in re.findall(r"!\[.*?\]\((.*?)\)", made)}
    assert shown == set(page.parent.glob("benchmarks/*.svg")), "run: python benchmarks/page.py"


def test_every_script_is_a_question_on_the_page(script):
    asked = script.questions(SCRIPT.parent)
    files = {path.stem for path in SCRIPT.parent.glob("*.py")} - {"page"}
    assert set(asked) == files
    assert next(iter(asked)) == "training_step"
    assert all(asked.values())


def test_scripts_that_choose_the_cpu_are_questions_of_the_cpu_alone(script):
    chosen = 'os.environ.setdefault("JAX_PLATFORMS", "cpu")'
    choosing = {path.stem for path in SCRIPT.parent.glob("*.py") if chosen in path.read_text()}
    assert choosing == set(script.ON_CPU) == {"loading", "pretraining", "speculative"}
    assert "- GPU: a question of the CPU alone." in section(script, "pretraining", cpu=RESULT)


def test_a_platform_without_results_is_not_measured(script):
    text = section(script, "training_step", cpu=RESULT)
    head, _, ours, theirs = text.splitlines()[:4]
    assert head == (
        "|  |  | CPU: time | CPU: tokens/s | CPU: of the product | CPU: x torch's time | GPU |"
    )
    assert ours == (
        "| nano | eqxformer | 27.1 ms (25.0 - 31.0 ms) | 28,346 | 71% | 1.50 | not measured |"
    )
    assert theirs == "| nano | torch | 27.1 ms (25.0 - 31.0 ms) | 28,346 |  | 1.00 | not measured |"
    assert "- GPU: not measured; `python benchmarks/training_step.py` on such a machine" in text
    empty = section(script, "forward")
    assert empty.count("not measured") == 2


def test_hardware_versions_flags_and_the_command_are_told(script):
    text = section(script, "training_step", cpu=RESULT)
    assert (
        "- CPU: a chip, 2 cores; Python 3.11.7, jax 0.10.2, torch 2.13.0, `XLA_FLAGS=none`; "
        "`python benchmarks/training_step.py --sizes 'two words'`."
    ) in text
    assert "/somewhere" not in text


def test_cpu_and_gpu_stand_side_by_side(script):
    gpu = copy.deepcopy(RESULT)
    gpu["machine"] |= {"platform": "gpu", "device": "Fast One"}
    gpu["results"]["gpt2"] = {"candidates": {"eqxformer": {"median": 2.0, "quartiles": None}}}
    text = section(script, "training_step", cpu=RESULT, gpu=gpu)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    titles, _, ours, _, new = rows
    assert titles[2].startswith("CPU: time")
    assert "GPU: time" in titles
    assert ours[2] == ours[titles.index("GPU: time")] == "27.1 ms (25.0 - 31.0 ms)"
    assert new[2] == "not measured"
    assert new[titles.index("GPU: time")] == "2.00 s"
    assert "- GPU: Fast One beside a chip, 2 cores; " in text


def test_results_are_found_by_name_and_platform(script, tmp_path):
    for name in ("training_step-cpu", "training_step-bfloat16-gpu", "notes"):
        (tmp_path / f"{name}.json").write_text(json.dumps(RESULT))
    found = script.read(tmp_path)
    assert {name: list(platforms) for name, platforms in found.items()} == {
        "training_step": ["cpu"],
        "training_step-bfloat16": ["gpu"],
    }
    text = script.page(found, {"training_step": "How fast?"})
    assert "\n## Training step\n\nHow fast?\n" in text
    assert text.index("### bfloat16") > text.index("- GPU: not measured")


def test_results_in_a_list_are_named_after_their_sizes(script):
    part = {"vocab": 50257, "tokens": 2048, "candidates": CANDIDATES}
    assert list(script.named([part])) == ["vocab 50,257, tokens 2,048"]


def test_growth_is_a_table_of_exponents(script):
    exponents = {"time": 1.42, "time_of_the_last_two": 1.8, "operations": 1.3}
    axis = {"range": [64, 1024], "exponents": exponents, "candidates": {"64": STEP}}
    text = section(script, "growth", cpu={**RESULT, "results": {"sizes": {}, "length": axis}})
    assert "| length | 64 - 1,024 | n^1.42 | n^1.80 | n^1.30 | not measured |" in text


def test_plots_are_drawn_the_same_every_time(script, tmp_path):
    pytest.importorskip("matplotlib")
    lines = {f"{length}, forward": {"candidates": CANDIDATES} for length in (128, 256)}
    growth = {"length": {"candidates": {"64": STEP, "128": STEP}}}
    questions = {"training_step": RESULT["results"], "attention": lines, "growth": growth}
    for name, results in questions.items():
        paths = [tmp_path / f"{name}-{number}.svg" for number in range(2)]
        for path in paths:
            script.draw(name, results, path)
        first, second = (path.read_bytes() for path in paths)
        assert first == second
        assert first.startswith(b"<?xml")
