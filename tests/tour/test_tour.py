"""The tour: every component is there, what it prints is run, and the shapes are the real ones."""

import re

import jax
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.tour import tour, walk
from eqxformer.tour.stops import BEGIN, SIZES, STOPS, Stop

# What JAXformers' demo shows, and what came since, by a word of the stop's title.
COMPONENTS = [
    "Scaled dot-product attention",
    "Positions",
    "Token embedding",
    "Input embedding",
    "Multi-head attention",
    "Layer norm",
    "Feed-forward",
    "Residual",
    "Encoder block",
    "Encoder",
    "causal mask",
    "Cross-attention",
    "Decoder block",
    "Decoder",
    "Output layer",
    "Encoder-decoder",
    "Language model",
    "Other masks",
    "experts",
    "cache",
    "Generation",
    "Rotary positions",
    "Position biases",
    "Grouped heads and windows",
    "Latent attention",
    "Parallel block",
    "Stack",
    "Looking inside",
    "Training step",
]


@pytest.fixture(scope="module")
def told():
    """All that the tour writes, a text per stop."""
    options, parts, pauses = np.get_printoptions(), [], []
    tour(parts.append, lambda: pauses.append(len(parts)))
    assert pauses == list(range(1, len(STOPS) + 1))  # before every stop, none after the last
    assert np.get_printoptions() == options
    return parts


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_has_a_stop(told, component):
    assert any(component in part.splitlines()[1] for part in told[1:-1])


def test_stops_are_numbered_and_have_a_sentence_a_formula_code_and_shapes(told):
    assert len(told) == len(STOPS) + 2
    for number, (part, stop) in enumerate(zip(told[1:], STOPS, strict=False), 1):
        assert f"{number:>2} of {len(STOPS)}   {stop.title}" in part
        assert stop.says.split(".")[0].split()[-1] in part
        assert f"    {stop.formula.splitlines()[0]}\n" in part
        assert "  >>> " in part
        assert "  takes  " in part
        assert "  gives  " in part


def test_every_axis_shown_has_the_size_of_its_word(told):
    text = "\n".join(told[1:])
    shown = re.findall(r"^  (?:takes|gives)  .*$", text, re.MULTILINE)
    assert len(shown) == sum(len(stop.takes) + len(stop.gives) for stop in STOPS)
    found = {(axis, int(size)) for line in shown for axis, size in re.findall(r"(\w+)=(\d+)", line)}
    assert found == {*SIZES.items(), ("new", 7)}


def test_sizes_are_different_primes():
    sizes = list(SIZES.values())
    assert len(set(sizes)) == len(sizes)
    for size in sizes:
        assert all(size % divisor for divisor in range(2, size))


def test_no_line_is_wider_than_a_terminal(told):
    for line in "\n".join(told).splitlines():
        assert len(line) <= 100, line


def test_what_is_claimed_about_numbers_is_there(told):
    pages = {stop.title: page for stop, page in zip(STOPS, told[1:], strict=False)}
    assert "[1. 1. 1. 1. 1.]" in pages["Scaled dot-product attention"]
    assert pages["Output layer"].count("[1. 1. 1. 1. 1.]") == 2
    assert "[5 5] True" in pages["The cache"]  # cached and uncached logits agree
    for row in ef.Causal().draw(5).splitlines():
        assert f"  {row}\n" in pages["The causal mask"]
    assert "0..1: Block(" in pages["Language model"]
    assert "  ██\n" in pages["The causal mask"]  # the first query takes all of the first key
    losses = [float(loss) for loss in re.findall(r"loss (\d\.\d+),", pages["Training step"])]
    assert losses[0] > losses[1] > losses[2]
    assert re.search(r"6 numbers of a token are remembered, not 36", pages["Latent attention"])
    assert "(11, 21) (11, 7)" in pages["Grouped heads and windows"]
    assert pages["Stack"].count("(11, 21)") == 1
    assert "(2, 11, 21)" in pages["Stack"]
    assert "\n  True\n" in pages["Stack"]


def test_a_rotary_score_is_the_same_along_every_diagonal(told):
    (page,) = (page for page in told if "   Rotary positions\n" in page)
    rows = re.findall(r"^  \[*((?:\d\.\d* *){5})\]+$", page, re.MULTILINE)
    scores = np.array([[float(number) for number in row.split()] for row in rows[-5:]])
    for distance in range(5):
        assert len(set(np.diagonal(scores, distance))) == 1


def test_shades_are_darker_for_larger_numbers():
    picture = ef.inspect.shades(jax.numpy.array([[0.0, 1.0, 2.0, 3.0, 4.0], [-1.0, 4, 4, 4, 4]]))
    first = ef.inspect.shades(jax.numpy.arange(5.0)[None])
    assert first == "  ░░▒▒▓▓██"
    assert picture.splitlines()[1] == "  ████████"
    assert ef.inspect.shades(jax.numpy.array([[np.nan, 1.0]])) == "??██"
    with pytest.raises((ValueError, ef.ShapeError), match="two axes|2 axes"):
        ef.inspect.shades(jax.numpy.ones(3))


def test_the_code_shown_is_the_code_run(told):
    code = "".join(stop.code for stop in STOPS)
    shown = [
        line[6:] for part in told for line in part.splitlines() if line[:6] in ("  >>> ", "  ... ")
    ]
    assert "\n".join(shown) + "\n" == BEGIN + code


def test_a_shape_that_is_said_wrong_is_an_error():
    stop = Stop("t", "s", "f", "y = 1", {"x": "batch seq"}, {})
    names = {"x": jax.numpy.ones((2, 3, 4))}
    with pytest.raises(ValueError, match="zip"):
        walk.page(1, stop, names)


def test_printing_shows_what_a_prompt_shows():
    lines = walk.run("a = 3\nprint(a,\n      'two\\nlines')\n", {})
    assert lines == [
        "  >>> a = 3",
        "  >>> print(a,",
        "  ...       'two\\nlines')",
        "  3 two",
        "  lines",
    ]
