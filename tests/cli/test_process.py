"""What only a process of its own can show: exit codes, signals, pipes, what is imported."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from eqxformer.cli import main
from eqxformer.training.run_directory import RunDirectory
from tests.cli.conftest import SMALL, TEXT

COMMAND = [sys.executable, "-m", "eqxformer.cli"]
QUICK = {**os.environ, "EQXFORMER_CHECKS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def python(source):
    """A fresh Python that runs `source`."""
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, env=QUICK)


def test_without_the_extra_one_line_says_what_to_install():
    done = python(
        "import sys; sys.modules['rich'] = None\n"
        "import importlib.util as util; real = util.find_spec\n"
        "util.find_spec = lambda name: None if name in ('rich', 'click') else real(name)\n"
        "from eqxformer.cli import main; main(['train'])"
    )
    assert done.returncode == 2
    assert done.stderr == (
        "Error: the command line needs click and rich; run: pip install 'eqxformer[train]'\n"
    )


def test_help_is_there_before_anything_heavy_is_imported():
    done = python(
        "import sys\n"
        "from eqxformer.cli.commands import run; run(['--help'])\n"
        "print([name for name in ('jax', 'numpy', 'rich') if name in sys.modules])"
    )
    assert "train" in done.stdout
    assert "generate" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_help_is_no_error():
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, env=QUICK)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: eqxformer")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--help"], r"Usage: eqxformer .*"),
        ([], r"Usage: eqxformer .*"),
        (["train", "--help"], r"Usage: eqxformer train .*"),
        (["train", "-h"], r"Usage: eqxformer train .*"),
        (["generate", "--help"], r"Usage: eqxformer generate .*"),
        (["--version"], r"eqxformer, version \S+\n"),
    ],
)
def test_help_and_the_version_end_without_an_error(capsys, arguments, told):
    """As in the process above, in this one, which is there already."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert (ended.value.code, err) == (0, "")
    assert re.fullmatch(told, out, re.DOTALL)


def interrupted(here, wait_for):
    """A long run that gets Ctrl-C a moment after it printed what `wait_for` matches."""
    (here / "text.txt").write_text(TEXT)
    arguments = ["train", "--data", str(here / "text.txt"), "--out", str(here / "run"), *SMALL]
    arguments += ["--steps=100000", "--set", "validate_every=50000", "--set", "prompt=7 times"]
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**QUICK, "PYTHONUNBUFFERED": "1"},
    ) as process:
        out = ""
        for line in process.stdout:
            out += line
            if re.search(wait_for, line):
                break
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        try:
            rest, err = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, out + rest, err


def test_ctrl_c_leaves_a_usable_run_and_says_how_to_use_it(command, tmp_path):
    code, out, err = interrupted(tmp_path, r"step +1 of")
    assert (code, err) == (130, "")
    run = RunDirectory.open(tmp_path / "run")
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert f"Interrupted; the model of step {lines[-1]['step']:,} is saved." in out
    assert f"Next: eqxformer generate {run.path} --prompt '7 times'" in out
    assert (run.path / "loss.png").exists()
    asked = ("--prompt", "7 times", "--max-new-tokens", 16)
    assert command("generate", run.path, *asked)[0] == 0


def test_a_reader_that_goes_away_ends_the_command_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, "train", "--dry-run"], stdout=writer, stderr=subprocess.PIPE, env=QUICK
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_reader_that_is_gone_before_a_word_is_no_mistake():
    done = python(
        "import sys, click\n"
        "from eqxformer.cli.errors import explained\n"
        "try:\n"
        "    with explained(): raise BrokenPipeError(32, 'Broken pipe')\n"
        "except BrokenPipeError: print('as it was')"
    )
    assert done.stdout == "as it was\n", done.stderr
