"""`eqxformer bench`: what it shows and saves, how it ends early, and what it refuses."""

import json
import os
import re
import signal
import threading

import pytest

import eqxformer as ef
from eqxformer.bench import asking, harness
from eqxformer.bench.questions import QUESTIONS
from eqxformer.bench.sizes import SIZES
from eqxformer.cli import bench, main
from tests.cli.test_mistakes import refused
from tests.helpers.models import filled

TINY = ef.families.gpt(vocab=11, dim=8, layers=1, heads=2, context=16)
MACHINE = {"platform": "cpu", "device": "cpu", "processor": "a chip", "cores": 2}
FOUND = {
    "of": "step",
    "median": 0.1,
    "quartiles": [0.09, 0.12],
    "repetitions": 7,
    "tokens_per_second": 1280.0,
    "ceiling": 2e11,
    "share_of_ceiling": 0.5,
    "flops_per_second": 1e11,
    "peak_memory_bytes": 3_000_000,
}


@pytest.fixture
def answered(monkeypatch):
    """Questions are answered at once, with the same numbers; gives what was asked."""
    calls = []

    def ask(questions, setting, **options):
        calls.append((questions, setting, options))
        for question in questions:
            options["progress"](question, 0)
            options["progress"](question, 1)
            yield question, {**FOUND, "machine": MACHINE}

    monkeypatch.setattr(bench, "ask", ask)
    return calls


@pytest.fixture
def tiny(here):
    (here / "tiny.json").write_text(TINY.to_json())
    return "tiny.json"


def test_everything_is_asked_of_a_small_model_by_default(command, here, answered):
    code, out, err = command("bench")
    assert code == 0
    assert out.startswith("nano: 809,856 parameters in 4 blocks of width 128; 12 x 64 tokens")
    assert re.search(
        r"^train +100 ms a step +90.0-120 ms +1,280 +50% of 200 GFLOP/s +3.0 MB$", out, re.M
    )
    assert err.split(" ...\n")[:-1] == list(QUESTIONS)
    assert out.endswith("medians of 7 on cpu (a chip, 2 cores)\n")
    assert list(here.iterdir()) == []
    (questions, setting, options) = answered[0]
    assert questions == tuple(QUESTIONS)
    assert (setting["batch"], setting["seq"], setting["dtype"]) == (12, 64, "float32")
    assert (options["device"], options["compared"], options["repetitions"]) == (None, True, 7)


@pytest.mark.parametrize("name", SIZES)
def test_every_size_has_a_model_a_batch_and_a_length(command, answered, name):
    assert command("bench", name)[0] == 0
    assert answered[0][1]["batch"] >= 8


def test_what_is_asked_can_be_chosen(command, answered, tiny):
    arguments = ["--question", "decode", "--question", "train", "--question", "decode"]
    more = ["--batch", 2, "--seq", 8, "--dtype", "bfloat16", "--repetitions", 3]
    code, *_ = command("bench", tiny, *arguments, *more, "--device", "cpu", "--no-ceilings")
    assert code == 0
    (questions, setting, options) = answered[0]
    assert questions == ("decode", "train")
    assert setting == {"config": TINY.to_dict(), "batch": 2, "seq": 8, "dtype": "bfloat16"}
    assert (options["device"], options["compared"], options["repetitions"]) == ("cpu", False, 3)


def test_a_checkpoint_is_measured_by_its_settings(command, answered, here):
    ef.save(filled(TINY), here / "mine")
    assert command("bench", "mine")[0] == 0
    assert answered[0][1]["config"] == TINY.to_dict()
    assert answered[0][1]["seq"] == 16  # it has no more positions


def test_numbers_are_saved_with_the_machine_and_what_was_asked(command, answered, tiny, here):
    code, out, _ = command("bench", tiny, "--question", "train", "--out", "found.json")
    assert code == 0
    assert out.endswith("\nwritten to found.json\n")
    saved = json.loads((here / "found.json").read_text())
    assert saved["machine"]["processor"] == "a chip"
    assert saved["machine"]["eqxformer"] == ef.__version__
    assert saved["results"]["source"] == "tiny.json"
    assert saved["results"]["train"] == FOUND


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["huge"], "There is no directory huge. .* Sizes are vpj, nano, baby, gpt2, llama"),
        (["broken.json"], "broken.json: This is not JSON"),
        (["other.json"], "other.json is no config: there is neither a `type`"),
        ([".."], "There is no config.json in .*; is it a checkpoint's directory"),
        (["bert-base-uncased"], "Only a DecoderLM is measured; this is of type Encoder"),
        (["gpt2", "--seq", "2000"], "`seq` must be at most the model's 1024 positions; got 2000"),
        (["--seq", "2"], "`seq` must be at least 4; got 2"),
        (["--batch", "0"], "`batch` must be at least 1; got 0"),
        (["--repetitions", "1"], "1 is not in the range x>=2"),
        (["--question", "speed"], "'speed' is not one of 'train', 'forward', 'prefill'"),
        (["--device", "abacus"], "'abacus' is not one of 'cpu', 'gpu'"),
        (["--out", "nowhere/found.json"], "--out nowhere/found.json needs the directory nowhere"),
        (["--out", ".."], "--out .. is a directory; name a file"),
        (["uneven.json"], "`heads` must divide the model's width"),
        (["none.json"], "The model has no blocks; there is nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_one_line(command, here, arguments, message):
    (here / "broken.json").write_text("{")
    (here / "other.json").write_text("{}")
    (here / "uneven.json").write_text(TINY.edit("blocks.*.attention", heads=3).to_json())
    (here / "none.json").write_text(TINY.edit(blocks=()).to_json())
    assert re.search(message, refused(command, here, "bench", *arguments))


def test_the_command_leaves_a_gpu_to_the_processes_that_measure(
    command, answered, tiny, monkeypatch
):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    seen = []
    monkeypatch.setattr(bench, "setting_of", lambda *_: seen.append(dict(os.environ)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command("bench", tiny)
    assert seen[0]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_ctrl_c_leaves_what_has_been_measured(command, here, tiny, monkeypatch):
    def ask(questions, setting, **options):
        yield "train", {**FOUND, "machine": MACHINE}
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "ask", ask)
    code, out, err = command("bench", tiny, "--out", "found.json")
    assert code == 130
    assert err == "Error: interrupted.\n"
    assert re.search(r"^train +100 ms a step", out, re.MULTILINE)
    assert "train" in json.loads((here / "found.json").read_text())["results"]


def test_a_question_that_fails_leaves_those_before_it(command, here, tiny, monkeypatch):
    def ask(questions, setting, **options):
        yield "train", {**FOUND, "machine": MACHINE}
        raise harness.CandidateFailed("`forward` cannot be measured: the device is full.")

    monkeypatch.setattr(bench, "ask", ask)
    code, out, err = command("bench", tiny)
    assert code == 1
    assert err == "Error: `forward` cannot be measured: the device is full.\n"
    assert re.search(r"^train +100 ms a step", out, re.MULTILINE)


@pytest.fixture
def ctrl_c():
    """A signal that comes soon after `start()`.

    It counts also where the tests run in the background of a shell, which has it ignored.
    """
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    yield timer
    timer.cancel()
    signal.signal(signal.SIGINT, kept)


def test_processes_answer_until_ctrl_c_ends_them(capsys, here, tiny, ctrl_c, monkeypatch):
    """The whole way once: a question with numbers, and Ctrl-C while the next one is answered."""

    def ask(*asked, progress, **options):
        def told(question, done):
            progress(question, done)
            if (question, done) == ("decode", 0):
                ctrl_c.start()

        return asking.ask(*asked, progress=told, **options)

    monkeypatch.setenv("EQXFORMER_CHECKS", "0")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.setattr(bench, "ask", ask)
    arguments = ["bench", tiny, "--no-ceilings", "--question", "attention", "--question", "decode"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--repetitions", "20", "--out", "found.json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 130
    assert err == "attention ...\ndecode ...\nError: interrupted.\n"
    saved = json.loads((here / "found.json").read_text())["results"]
    assert saved["attention"]["repetitions"] == 20
    assert saved["attention"]["quartiles"][0] <= saved["attention"]["median"]
    assert re.search(r"^attention +\S+ [mu]s a call", out, re.MULTILINE)


def test_a_candidate_that_cannot_serve_says_why(monkeypatch):
    monkeypatch.setenv("EQXFORMER_CHECKS", "0")
    setting = {"config": TINY.to_dict(), "batch": 10**13, "seq": 16, "dtype": "float32"}
    with pytest.raises(harness.CandidateFailed, match="`train` cannot be measured: it needs at"):
        list(asking.ask(["train"], setting, repetitions=2, device="cpu"))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; sys.exit('no disk')", "ended with exit code 1: no disk"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9, probably for want of memory"),
        ("print('ready {}')", "ended with exit code 0: it says nothing"),
    ],
)
def test_a_candidate_that_dies_is_one_line(program, message):
    def seconds():
        with harness.Candidate("train", ["-c", program], quiet=True) as candidate:
            candidate.facts()
            candidate.seconds()

    with pytest.raises(harness.CandidateFailed, match=message):
        seconds()
