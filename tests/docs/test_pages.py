"""The pages of the site: their code runs, their pictures are drawn, every public name is on one."""

import contextlib
import dataclasses
import inspect
import itertools
import pathlib
import re
import shlex

import click
import jax
import pytest

import eqxformer as ef
from eqxformer.cli.commands import eqxformer

pages = pytest.importorskip("website.pages", reason="the site's sources are not in the sdist")
from website import api, check_site, configs, drawings, pictures, shell, sources  # noqa: E402
from website import commands as command_line  # noqa: E402

DOCS = pathlib.Path(__file__).parents[2] / "docs"
RUN = ("index.md", "annotated.md", "reference/errors.md")
WRITTEN = sorted(DOCS.rglob("*.md"))


@contextlib.contextmanager
def as_a_reader_has_it():
    """JAX without the strictness of these tests: a page may add a vector to a matrix."""
    strict = (jax.debug_key_reuse, False), (jax.numpy_rank_promotion, "allow")
    with contextlib.ExitStack() as stack:
        for setting, value in (*strict, (jax.numpy_dtype_promotion, "standard")):
            stack.enter_context(setting(value))
        yield


@pytest.mark.parametrize("name", RUN)
def test_the_code_of_a_page_prints_what_the_page_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with as_a_reader_has_it():
        for ran in pages.run(DOCS / name):
            assert ran.right, ran.printed


def test_a_page_that_says_something_else_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text('```python\nprint("one")\n```\n\n```output\ntwo\n```\n', encoding="utf-8")
    (ran,) = pages.run(page)
    assert not ran.right
    assert pages.written(page) == page.read_text(encoding="utf-8").replace("two", "one")


def test_an_error_that_a_page_does_not_announce_is_raised(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nraise ValueError('here')\n```\n", encoding="utf-8")
    with pytest.raises(ValueError, match="here"):
        list(pages.run(page))


def test_numbers_that_are_about_right_pass_and_others_do_not():
    assert pages.about("loss 3.9 of 10\n", "loss 4.0 of 10\n")
    assert not pages.about("loss 3.9 of 10\n", "loss 8.0 of 10\n")
    assert not pages.about("loss 3.9\n", "gain 3.9\n")


def test_every_public_name_is_on_exactly_one_page_of_the_api():
    text = "\n".join(api.pages().values())
    shown = re.findall(r"^::: ([\w.]+)$", text, flags=re.MULTILINE)
    assert len(shown) == len(set(shown))
    names = {place.rpartition(".")[2] for place in shown}
    offered = {n for n in dir(ef) if not n.startswith("_")} - {"Any", "TYPE_CHECKING"}
    modules = {n for n in offered if inspect.ismodule(getattr(ef, n))} - {"families"}
    assert offered - modules <= names


def test_a_name_that_a_room_offers_is_on_the_page_of_that_room(monkeypatch):
    monkeypatch.setattr(ef.inspect, "__all__", ["count"])
    assert "::: eqxformer.inspect.table.table" not in api.pages()["reference/api/inspect.md"]
    monkeypatch.undo()
    assert "::: eqxformer.inspect.table.table" in api.pages()["reference/api/inspect.md"]


def test_every_room_with_public_names_has_a_page_in_the_navigation():
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    packages = {
        file.parent.name
        for file in pathlib.Path(ef.__file__).parent.glob("*/__init__.py")
        if "__all__" in file.read_text(encoding="utf-8")
    }
    rooms = set(api.rooms())
    outside = {place.split(".")[1] for place in api.OUTSIDE}
    assert packages <= rooms | outside
    assert all(f"reference/api/{room}.md" in navigation for room in rooms)


@pytest.mark.parametrize("page", WRITTEN, ids=[str(p.relative_to(DOCS)) for p in WRITTEN])
def test_the_sources_and_pictures_of_a_page_are_there(page):
    text = page.read_text(encoding="utf-8")
    assert ' "source")' not in sources.included(text, page)
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        assert (page.parent / picture).is_file(), picture


def test_every_stop_of_the_tour_has_a_formula_a_drawing_shapes_and_lines_of_the_source():
    page = (DOCS / "tour" / "index.md").read_text(encoding="utf-8")
    stops = page.split("\n## ")[1:-1]  # the last one is a function that returns a tree
    assert len(stops) > 15
    for stop in stops:
        for part in ("$$", "![", "| | shape |", ' "source")'):
            assert part in stop, (stop.partition("\n")[0], part)


def test_a_source_is_the_lines_of_the_file_without_its_docstring():
    file = pathlib.Path(ef.__file__).parent / "blocks" / "residual.py"
    shown = sources.piece(file, "Residual.__call__")
    assert shown.startswith("def __call__(")
    assert shown.endswith("return self.run(x, lambda h: (branch(h), None), key=key)[0]")
    assert '"""' not in shown
    with pytest.raises(LookupError, match="Residual.walk"):
        sources.piece(file, "Residual.walk")


BUILT = """<html><head><link rel="stylesheet" href="look.css">
<script src="{script}"></script></head><body><h1 id="top">Page</h1><a href="#{place}">there</a><a href="https://example.org">out</a>
<img src="{picture}"></body></html>"""


@pytest.mark.parametrize(
    ("script", "place", "picture", "said"),
    [
        ("own.js", "top", "own.svg", []),
        ("https://example.org/a.js", "top", "own.svg", ["from another host"]),
        ("//example.org/a.js", "top", "own.svg", ["from another host"]),
        ("own.js", "bottom", "own.svg", ["no such place"]),
        ("own.js", "top", "lost.svg", ["not there"]),
        ("own.js", "top", 'own.svg"><p class="arithmatex', ["not MathML"]),
    ],
)
def test_what_is_wrong_with_a_built_site_is_said(
    tmp_path, monkeypatch, script, place, picture, said
):
    monkeypatch.setattr(api, "rooms", dict)
    for name in ("own.js", "own.svg", "look.css"):
        (tmp_path / name).write_text("")
    page = BUILT.format(script=script, place=place, picture=picture)
    (tmp_path / "index.html").write_text(page)
    found = list(check_site.mistakes(tmp_path))
    assert [any(part in each for each in found) for part in said] == [True] * len(found)


def test_a_font_of_another_host_and_a_name_without_a_page_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "rooms", lambda: {"layers": ["eqxformer.layers.norms.RMSNorm"]})
    (tmp_path / "look.css").write_text("@font-face { src: url('https://example.org/a.woff2') }")
    font, name = check_site.mistakes(tmp_path)
    assert "https://example.org/a.woff2" in font
    assert "`eqxformer.layers.norms.RMSNorm` is not on the page of layers" in name


def test_every_drawing_of_the_repository_is_made_by_its_code():
    made = {name: draw().svg() for name, draw in drawings.DRAWINGS.items()}
    for name, svg in made.items():
        stored = (drawings.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
        assert pages.about(stored, svg), f"{name}: run python -m website.drawings"
    trained = {"rot13-loss", "rot13-attention"}  # by python -m website.annotated
    assert {file.stem for file in drawings.FOLDER.glob("*.svg")} == {*made, *trained}


def test_the_page_of_the_command_line_has_every_command_and_option():
    page = command_line.pages()["reference/commands.md"]
    group = click.Context(eqxformer)
    for name in eqxformer.list_commands(group):
        (part,) = re.findall(rf"\n## {name}\n(.*?)(?:\n## |\Z)", page, flags=re.DOTALL)
        command = eqxformer.get_command(group, name)
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        assert all(f"<code>{option.opts[0]}" in part for option in options), name
        assert part.count("<code>") >= len(options)


def test_the_pages_of_configs_and_axes_have_every_field_and_word():
    made = configs.pages()
    assert all(f"| `{word}` |" in made["reference/axes.md"] for word in ef.GLOSSARY)
    page = made["reference/configs.md"]
    assert all(str(config) in page for config in configs.FAMILIES.values())
    (part,) = re.findall(r"\*\*`Attention`\*\*(.*?)\n\*\*", page, flags=re.DOTALL)
    fields = dataclasses.fields(ef.Attention.Config)
    assert all(f"| `{field.name}` |" in part for field in fields)


def test_a_drawing_is_put_into_a_page_without_colours_of_its_own(tmp_path):
    (tmp_path / "pictures").mkdir()
    drawing = drawings.cache().svg()
    (tmp_path / "pictures" / "cache.svg").write_text(drawing, encoding="utf-8")
    page = "Before.\n\n![Slots](pictures/cache.svg)\n\nAfter."
    shown = pictures.inlined(page, tmp_path / "page.md")
    assert "<style>" in drawing
    assert "<style>" not in shown
    assert shown.count("<svg") == 1
    assert "\n" not in shown.removeprefix("Before.\n\n").removesuffix("\n\nAfter.")


def test_every_command_of_the_docs_is_one_that_there_is():
    group, seen = click.Context(eqxformer), 0
    for each in shell.commands():
        words = shlex.split(each.text.splitlines()[-1])
        while words and "=" in words[0]:  # settings of the environment
            words.pop(0)
        if words[:1] == ["python"]:
            script = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
            there = (DOCS.parent / script).is_file() or words[2:3] == ["mkdocs"]
            assert there or script == "train.py", each
        if words[:1] != ["eqxformer"] or {"SOURCE", "COMMAND", "--help"} & set(words):
            continue
        command, seen = eqxformer.get_command(group, words[1]), seen + 1
        assert command is not None, each
        words = list(itertools.takewhile(lambda word: word not in ("|", ">"), words[2:]))
        try:
            context = click.Context(command, **command.context_settings)
            command.make_parser(context).parse_args(words)
        except click.UsageError as error:
            pytest.fail(f"{each}: {error.format_message()}")
    assert seen > 80


def test_the_first_page_shows_the_measured_times():
    table = re.compile(r"^\| `(\w+)`[^|]*\|(.*)\|$", flags=re.MULTILINE)
    rows = table.findall((DOCS / "index.md").read_text(encoding="utf-8"))
    measured = (DOCS / "benchmarks.md").read_text(encoding="utf-8").partition("\n## Forward")[0]
    assert len(rows) == 3
    for size, cells in rows:
        found = re.findall(rf"^\| {size} \| ([\w. ]+) \|(.*)\|$", measured, flags=re.MULTILINE)
        ratios = {name: line.split("|")[4].strip() for name, line in found}
        order = ("eqxformer", "torch", "torch.compile", "transformers")
        order += ("flax nnx", "haiku", "plain equinox", "levanter")
        assert [cell.strip() for cell in cells.split("|")] == [ratios[name] for name in order]
