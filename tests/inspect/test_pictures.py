"""Pictures: what is drawn is what was given, and nothing of it is cut off."""

import xml.etree.ElementTree as ET
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import eqxformer as ef
from eqxformer.inspect import pictures
from tests.helpers.models import DECODERS, SEQ2SEQ, block, decoder

TOKENS = ["The", " quick", "\n", "$5 and $6", "extraordinarily"]


def _shown(image):
    return np.asarray(image.get_array())


def _weights(heads=3, seq=5, keys=5):
    return jnp.asarray(np.random.default_rng(0).random((heads, seq, keys)), jnp.float32)


def _drawn_inside(figure):
    """Whether all text of a figure lies on it, once it is laid out."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    whole, renderer = figure.bbox, canvas.get_renderer()
    boxes = [
        label.get_window_extent(renderer)
        for axes in figure.axes
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title)
        if label.get_text()
    ]
    slack = 2.0
    return all(
        box.x0 >= whole.x0 - slack
        and box.y0 >= whole.y0 - slack
        and box.x1 <= whole.x1 + slack
        and box.y1 <= whole.y1 + slack
        for box in boxes
    )


def test_every_head_is_drawn_on_one_scale_with_its_tokens():
    weights = _weights()
    figure = pictures.attention(weights, TOKENS, heads=[2, 0], title="blocks.0.attention")
    panels = figure.axes[:2]
    for axes, head in zip(panels, (2, 0), strict=True):
        (image,) = axes.get_images()
        np.testing.assert_array_equal(_shown(image), weights[head])
        assert image.get_clim() == (0.0, pytest.approx(float(weights[jnp.array([2, 0])].max())))
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == ["The", "␣quick", "⏎", r"\$5␣and␣\$6", "extraordina…"]
    assert _drawn_inside(figure)


def test_keys_have_their_own_labels_in_cross_attention_and_many_are_thinned_out():
    source = [f"word{i}" for i in range(100)]
    figure = pictures.attention(_weights(1, 5, 100), TOKENS, source)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(labels) <= 40
    assert labels[:2] == ["word0 0", "word3 3"]
    assert _drawn_inside(figure)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tokens": TOKENS[:2]}, "`tokens` must be 5 labels, one for each place; got 2"),
        ({"source": TOKENS[:2]}, "`source` must be 5 labels, one for each place; got 2"),
        ({"heads": [3]}, "`heads` must be among 0 to 2; got"),
    ],
)
def test_labels_and_heads_that_do_not_fit_are_refused(more, message):
    with pytest.raises(ValueError, match=message):
        pictures.attention(_weights(), **more)


@pytest.mark.parametrize(
    "mask",
    [
        ef.Causal(),
        ef.Window(1, 2),
        ef.Prefix(2) & ef.Padding(jnp.array([True] * 4 + [False])),
        ef.Segments(jnp.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 2]])),
        ef.PerHead(jnp.asarray(np.random.default_rng(1).random((2, 5, 5)) > 0.5)),
    ],
)
def test_a_mask_is_drawn_as_it_allows(mask):
    figure = pictures.mask(mask, 5, tokens=TOKENS)
    allowed = np.asarray(mask.allows(jnp.arange(5), jnp.arange(5)))
    panels = allowed.reshape(-1, 5, 5)
    assert len(figure.axes) == len(panels)
    for axes, expected in zip(figure.axes, panels, strict=True):
        (squares,) = axes.collections
        np.testing.assert_array_equal(_shown(squares).reshape(5, 5), expected)
        assert axes.yaxis_inverted()  # the first query on top
    assert _drawn_inside(figure)


def test_a_learned_table_of_positions_is_drawn_as_it_is():
    table = ef.LearnedPositions(6, length=9, offset=2, key=jax.random.key(0))
    (image,) = pictures.position_table(table, 9).axes[0].get_images()
    np.testing.assert_array_equal(_shown(image), table.weight[2:])
    with pytest.raises(ValueError, match="position"):
        pictures.position_table(table, 10)


def test_rotations_are_cosines_and_scores_depend_on_distance():
    rotary = ef.Rotary(base=100.0, fraction=0.5)
    left, right = pictures.rotary(rotary, 16, 10).axes[:2]
    frequencies = 100.0 ** -(np.arange(0, 8, 2) / 8)
    angles = np.arange(10)[:, None] * frequencies
    np.testing.assert_allclose(_shown(left.get_images()[0]), np.cos(angles), atol=1e-5)
    curve = right.get_lines()[0].get_ydata()
    np.testing.assert_allclose(curve, (2 * np.cos(angles).sum(1) + 8) / 16, atol=1e-5)


@pytest.mark.parametrize(
    "bias", [ef.ALiBi(3), ef.RelativeBias(3, key=jax.random.key(0), buckets=8, max_distance=6)]
)
def test_biases_are_drawn_by_distance_on_both_sides(bias):
    axes = pictures.position_bias(bias, 6).axes[0]
    added = np.asarray(bias(jnp.arange(11), jnp.arange(11)))[..., :, 5, :]
    for head, line in enumerate(axes.get_lines()[:3]):
        np.testing.assert_allclose(line.get_xdata(), np.arange(-5, 6))
        np.testing.assert_allclose(line.get_ydata(), added[head], atol=1e-6)


def test_a_bias_of_places_is_drawn_behind_by_what_it_differs_from_the_querys_own():
    bias = ef.ALiBi(2, rounding="bfloat16")
    lines = pictures.position_bias(bias, 6).axes[0].get_lines()[:2]
    plain = np.asarray(ef.ALiBi(2)(jnp.arange(6), jnp.arange(6)))
    for head, line in enumerate(lines):
        np.testing.assert_allclose(line.get_xdata(), np.arange(-5, 1))
        np.testing.assert_allclose(line.get_ydata(), plain[head, 5], rtol=0.02)


def test_losses_are_drawn_with_a_mean_that_begins_where_they_do():
    curves = {"loss": [(0, 4.0), (1, 2.0), (2, 2.0)], "validation_loss": [(2, 2.5)]}
    raw, smooth, held_out = pictures.losses(curves).axes[0].get_lines()
    assert raw.get_ydata().tolist() == [4.0, 2.0, 2.0]
    assert smooth.get_ydata()[0] == pytest.approx(4.0)
    assert 2.0 < smooth.get_ydata()[2] < smooth.get_ydata()[1] < 4.0
    assert held_out.get_ydata().tolist() == [2.5]
    with pytest.raises(ValueError, match="no loss to draw"):
        pictures.losses({"loss": []})


def _texts(svg):
    return [each.text for each in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("name", [*DECODERS, *SEQ2SEQ])
def test_a_diagram_names_every_part_and_keeps_within_its_edges(name):
    config = {**DECODERS, **SEQ2SEQ}[name]
    root = ET.fromstring(pictures.diagram(config))
    width, height = float(root.get("width")), float(root.get("height"))
    rectangles = [r for r in root.iter("{http://www.w3.org/2000/svg}rect") if "x" in r.attrib]
    edges = [
        (float(r.get("x")), float(r.get("y")), float(r.get("width")), float(r.get("height")))
        for r in rectangles
    ]
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in edges)
    texts = _texts(pictures.diagram(config))
    for side in (getattr(config, "encoder", None), getattr(config, "decoder", config)):
        for each in () if side is None else side.blocks:
            assert each.feed_forward.type_name in texts
            assert each.attention.type_name in texts


def test_the_diagram_in_the_docs_is_the_one_that_is_drawn():
    shown = Path(__file__).parents[2] / "docs" / "how-to" / "look" / "blocks.svg"
    assert shown.read_text(encoding="utf-8") == pictures.diagram(ef.preset("bart-base"))


def test_blocks_that_share_weights_are_drawn_inside_of_what_repeats_them():
    shared = ef.Repeated.Config(blocks=(block({}), block({"window": 2})), times=3)
    texts = _texts(pictures.diagram(decoder(shared)))
    assert "3 times, with the same weights" in texts
    assert texts.count("Attention") == 2


def test_text_in_a_diagram_stays_within_its_box():
    root = ET.fromstring(pictures.diagram(ef.preset("deepseek-v3")))
    lines = [
        t for t in root.iter("{http://www.w3.org/2000/svg}text") if t.get("font-size") == "9.5"
    ]
    assert lines
    assert max(len(line.text) for line in lines) <= 36  # at 5 units a letter, of a box of 190


def test_equal_blocks_and_patterns_of_blocks_are_drawn_once():
    narrow, wide = block({"window": 2}), block({})
    once = _texts(pictures.diagram(decoder(narrow, narrow, wide)))
    thrice = _texts(pictures.diagram(decoder(*(narrow, narrow, wide) * 3)))
    assert {"2 x Block", "Block"} <= set(once)
    assert sorted([*once, "3 times"]) == sorted(thrice)
    uneven = _texts(pictures.diagram(decoder(narrow, narrow, wide, narrow)))
    assert "2 times" not in uneven
    assert uneven.count("Block") == 2


def test_a_part_of_ones_own_is_a_box_with_its_settings():
    class Wave(ef.FeedForward):
        class Config(ef.FeedForward.Config):
            crests: int = 3

    texts = _texts(pictures.diagram(decoder(block({}, feed_forward=Wave.Config(crests=5)))))
    assert any("Wave" in text for text in texts)
    assert "crests=5" in texts
