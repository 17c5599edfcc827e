import contextlib
import io

import pytest

from eqxformer.cli.commands import run

SMALL = [
    "--steps=6",
    "--batch=2",
    *("--set", "model.dim=16"),
    *("--set", "model.blocks.*.feed_forward.hidden=16"),
    *("--set", "validate_every=3"),
]
TEXT = " ".join(f"{number} times" for number in range(300))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with a text to learn from beside it."""
    (tmp_path / "work").mkdir()
    (tmp_path / "text.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def command(capsys):
    """Runs `eqxformer` with arguments; gives the exit code and what was printed to both ends."""

    def call(*arguments):
        code = run([str(each) for each in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Two runs of a few steps, `text` and `rot13`, and beside each what it printed."""
    place = tmp_path_factory.mktemp("runs")
    (place / "text.txt").write_text(TEXT)
    more = ["--data", str(place / "text.txt"), "--set", "sample_every=3", "--set", "prompt=7 times"]
    for name, arguments in {"text": [*SMALL, *more], "rot13": ["--steps=40"]}.items():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert run(["train", name, "--out", str(place / name), *arguments]) == 0
        (place / f"{name}.out").write_text(printed.getvalue())
    return place
