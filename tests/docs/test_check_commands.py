"""The release check: the commands of the pages, and what stands in for what they name."""

import os
import pathlib
import re
import sys
import tomllib

import pytest

shell = pytest.importorskip("website.shell", reason="the site's sources are not in the sdist")
from website import check_commands, given, srun, stand_ins, workshop  # noqa: E402

PAGE = """
```sh
pip install '.[train]' && eqxformer train   # two commands
eqxformer train --set \\
    a=1
export A=1
first &
second "# no comment"
```

```console
$ eqxformer info gpt2
124 million parameters
```

```text
no command, but what one prints
```

```text
neither
```

`eqxformer train` is a name, `eqxformer train
--help` a command, as is `pytest -n0`, and `eqxformer info gpt2` stands above.
"""


def texts(page):
    return [(each.line, each.text) for each in shell.commands({"page.md": page})]


def test_commands_are_what_a_shell_runs_at_once():
    assert texts(PAGE) == [
        (3, "pip install '.[train]'"),
        (3, "eqxformer train"),
        (4, "eqxformer train --set a=1"),
        (6, 'export A=1\nfirst &\nsecond "# no comment"'),
        (12, "eqxformer info gpt2"),
        (24, "eqxformer train --help"),
        (25, "pytest -n0"),
    ]


def test_a_fence_behind_that_of_a_command_is_what_it_prints():
    said = {each.text: each.said for each in shell.commands({"page.md": PAGE})}
    assert said.pop("eqxformer info gpt2") == "no command, but what one prints\n"
    assert not any(said.values())


def test_a_command_must_print_what_the_page_says(shop, capsys):
    assert check_commands.tried(shell.Command("page", 1, "echo one; echo two", "one\n"), shop)
    assert not check_commands.tried(shell.Command("page", 1, "echo two", "one\n"), shop)
    assert "The page says that it prints:\n          | one" in capsys.readouterr().out
    assert not check_commands.tried(shell.Command("page", 1, "echo one; false", "one\n"), shop)


def test_the_examples_of_every_help_text_are_commands():
    pages = shell.pages()
    names = {each.partition(" --help")[0].removeprefix("eqxformer ") for each in pages}
    assert {"train", "generate", "score", "info", "inspect", "draw", "convert", "bench"} <= names
    found = [each for each in shell.commands(pages) if each.page == "eqxformer tour --help"]
    assert [each.text for each in found] == ["eqxformer tour", "eqxformer tour --all | less"]


def test_every_stand_in_serves_a_command():
    assert stand_ins.idle(shell.commands()) == []


def test_a_stand_in_that_serves_no_command_is_said():
    idle = stand_ins.idle(
        [
            shell.Command("page", 1, "pytest"),
            shell.Command("page", 2, "srun a --mesh fsdp=8,tensor=4"),
        ]
    )
    assert r"^pytest\b" not in idle
    assert not any("srun" in each for each in idle)
    assert r"^pip install\b" in idle
    assert len(idle) == len(stand_ins.NOT_RUN) + len(stand_ins.CHANGED) + len(given.GIVEN) - 2


def test_no_command_holds_a_pattern_that_some_shells_refuse():
    for each in shell.commands():
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", each.text)
        assert not re.search(r"[*?\[\]]", bare), each


def test_extras_that_pages_ask_for_are_there():
    project = tomllib.loads((shell.ROOT / "pyproject.toml").read_text())["project"]
    there, seen = set(project["optional-dependencies"]), 0
    for each in shell.commands():
        for extras in re.findall(r"(?:\.|eqxformer)\[([\w,]+)\]", each.text):
            assert set(extras.split(",")) <= there, each
            seen += 1
    assert seen > 4


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("eqxformer info gpt2", "eqxformer info gpt2"),
        ("pip install .", "pip install --dry-run ."),
        ("eqxformer train rot13", "eqxformer train --steps 4 --set checkpoint_every=2 rot13"),
        ("eqxformer train --out a --resume", "eqxformer train --out a --resume"),
        ("eqxformer train --dry-run", "eqxformer train --dry-run"),
        ("eqxformer train --help", "eqxformer train --help"),
        (
            "eqxformer train --out a --resume --mesh fsdp=8",
            "XLA_FLAGS=--xla_force_host_platform_device_count=8 "
            "eqxformer train --out a --resume --mesh fsdp=8",
        ),
        (
            "eqxformer train translate --data a --steps 9",
            "eqxformer train translate --data a --steps 9 --steps 4 --set averaged=2"
            " --set average_every=2 --set optimizer.learning_rate.warmup=1"
            " --set optimizer.learning_rate.cooldown=1",
        ),
        ("first &\nsecond", "first &\nsecond && wait $!"),
        ("python benchmarks/loading.py", "python benchmarks/loading.py --repetitions 1"),
    ],
)
def test_a_command_is_made_short_and_possible(text, run):
    assert stand_ins.changed(text) == run


def test_what_is_not_run_has_a_reason():
    assert "tests" in stand_ins.reason_not_to_run("pytest tests/cli")
    assert stand_ins.reason_not_to_run("eqxformer info gpt2") is None


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A workshop whose checkout is one file."""
    for name in ("PATH", "XLA_FLAGS", "EQXFORMER_CHECKS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back afterwards
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setattr(workshop, "CHECKOUT", ("LICENSE",))
    return workshop.Workshop(tmp_path)


def test_a_command_finds_what_it_presupposes(shop):
    place = shop.place("docs/page.md")
    shop.prepare("eqxformer score path/or/hub-id --file book.txt", place)
    assert (place / "book.txt").read_text(encoding="utf-8") == given.TEXT
    assert (place / "path/or/hub-id/model.safetensors").is_file()
    assert (place / "LICENSE").is_file()


def test_what_a_command_makes_itself_is_not_there_before_it(shop):
    place = shop.place("page")
    shop.prepare("eqxformer train --out runs/book", place)
    assert not (place / "runs/book").exists()


def test_a_name_with_a_date_is_the_newest_run_of_the_page(shop):
    place = shop.place("page")
    (place / "runs/text-20300101-000000").mkdir(parents=True)
    (place / "runs/rot13-20300101-000001").mkdir()
    shop.prepare("eqxformer score runs/text-20261121-120000", place)
    linked = place / "runs/text-20261121-120000"
    assert linked.resolve() == (place / "runs/text-20300101-000000").resolve()


def test_a_run_to_go_on_with_has_lost_its_newest_checkpoint(shop):
    place = shop.place("page")
    for step in ("2", "4", "10"):
        (place / "runs/mine/checkpoints" / step).mkdir(parents=True)
    shop.prepare("eqxformer train --out runs/mine --resume", place)
    left = {each.name for each in (place / "runs/mine/checkpoints").iterdir()}
    assert left == {"2", "4"}


def test_parallel_texts_have_equally_many_lines(tmp_path):
    given.parallel("fr", "en", "news", "dev", "newstest")(tmp_path / "corpus")
    lines = {each.name: each.read_text().count("\n") for each in (tmp_path / "corpus").iterdir()}
    assert lines["news.fr"] == lines["news.en"] == 300
    assert lines["newstest.fr"] == lines["newstest.en"] == 4


def test_a_task_of_slurm_is_told_who_it_is(monkeypatch):
    from jax._src.clusters.slurm_cluster import SlurmCluster

    for name, value in srun.told(1).items():
        monkeypatch.setenv(name, value)
    assert SlurmCluster.is_env_present()
    assert SlurmCluster.get_process_count() == srun.TASKS
    assert SlurmCluster.get_process_id() == 1
    assert SlurmCluster.get_coordinator_address(5, "1234") == "localhost:1234"


def test_commands_that_fail_are_told_from_those_that_end_well(tmp_path):
    well = workshop.run("cat", tmp_path)
    assert well.well
    assert well.printed == workshop.TYPED
    assert not workshop.run("exit 3", tmp_path).well
    assert not workshop.run("echo it does not provide the extra 'x'", tmp_path).well
    late = workshop.run("sleep 60", tmp_path, longest=0.2)
    assert not late.well
    assert "Not done after 0.2 seconds." in late.printed


def test_the_list_says_what_is_run_instead_and_why_something_is_not(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check_commands", "--list", "--only", "README"])
    assert check_commands.main() == 0
    printed = capsys.readouterr().out
    assert "as: pip install --dry-run '.[train]'" in printed
    assert "pytest  [the tests; `.ci/run` runs all of them]" in printed
    monkeypatch.setattr(sys, "argv", ["check_commands", "--list", "--only", "nowhere"])
    assert check_commands.main() == 1
    assert "No page has a name like nowhere" in capsys.readouterr().out
    assert not pathlib.Path("nowhere").exists()
