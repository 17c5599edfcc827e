"""The drawings of the tour and of the first page.

    python -m website.drawings

writes them into `docs/pictures`. What they show of masks, positions and sizes is what the library
computes, not a picture of it.
"""

import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import eqxformer as ef
from website.drawings_of_parts import PARTS
from website.svg import Drawing

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "docs" / "pictures"


def column(
    drawing: Drawing, x: float, y: float, labels: Sequence[tuple[str, str]], *, width: float = 150
) -> float:
    """Boxes from the bottom `y` upwards, with shapes beside the arrows; the height of the top."""
    for number, (label, shape) in enumerate(labels):
        if number:
            drawing.arrow((x + width / 2, y), (x + width / 2, y - 24))
            y -= 24
        drawing.box(x, y - 34, width, 34, label)
        y -= 34
        if shape:
            drawing.text(x + width / 2 + 10, y - 12, shape, size=11, anchor="start", mono=True)
    return y


def flow() -> Drawing:
    """How a token flows through a decoder."""
    d = Drawing(560, 290, "Token ids go through the embedding, the blocks, a norm and the head")
    top = column(
        d,
        60,
        250,
        [
            ("InputEmbedding", "[batch seq dim]"),
            ("blocks: a Stack", "[batch seq dim]"),
            ("norm", "[batch seq dim]"),
            ("head", "[batch seq vocab]"),
        ],
        width=170,
    )
    d.arrow((145, 276), (145, 250))
    d.text(155, 267, "tokens [batch seq]", size=11, anchor="start", mono=True)
    d.arrow((145, top), (145, top - 24))
    d.text(135, top - 12, "logits", size=12, anchor="end")
    d.arrow((230, 175), (330, 175), head=False, colour="faint")
    d.box(330, 46, 190, 228)
    d.text(350, 64, "one Block", size=12, colour="faint", anchor="start")
    for y, part in ((216, "attention"), (136, "feed_forward")):
        d.arrow((425, y + 50), (425, y + 30))
        d.box(350, y, 150, 30, part, "strong")
        d.arrow((425, y), (425, y - 14))
        d.circle(425, y - 22, 8, "+")
        d.arrow((425, y + 40), (340, y + 40), (340, y - 22), (417, y - 22))
    d.arrow((425, 106), (425, 84))
    return d


def families() -> Drawing:
    """Three kinds of models from one set of parts."""
    d = Drawing(720, 270, "An encoder, a decoder, and an encoder-decoder, made of the same parts")

    def tower(x: float, title: str, parts: list[tuple[str, str]], below: str, above: str) -> None:
        y = 222.0
        for label, kind in parts:
            d.box(x, y - 28, 130, 28, label, kind)
            y -= 34
        d.arrow((x + 65, 242), (x + 65, 224))
        d.text(x + 65, 252, below, size=11, colour="faint")
        if above:
            d.arrow((x + 65, y + 6), (x + 65, y - 12))
            d.text(x + 65, y - 22, above, size=11, colour="faint")
        d.text(x + 65, 14, title, size=13)

    reads = [("embedding", "fill"), ("attention", "strong"), ("feed-forward", "strong")]
    tower(10, "Encoder", [*reads, ("pooling, or a head", "fill")], "tokens", "vectors, labels")
    tower(180, "DecoderLM", [*reads, ("head", "fill")], "tokens", "the next token")
    tower(380, "EncoderDecoder", reads, "source", "")
    writes = [*reads[:2], ("cross-attention", "other"), reads[2], ("head", "fill")]
    tower(570, "", writes, "target", "the next token")
    d.arrow((445, 124), (445, 92), (540, 92), (540, 140), (570, 140), colour="other")
    return d


def transformer() -> Drawing:
    """The encoder-decoder of 2017."""
    d = Drawing(660, 450, "The encoder reads the source, the decoder writes the target")

    def tower(x: float, title: str, below: str, parts: Sequence[tuple[str, str]]) -> float:
        d.box(x - 14, 362 - 64 * len(parts), 236, 64 * len(parts) + 4)
        d.text(x - 22, 372 - 64 * len(parts), "N x", anchor="end", colour="faint")
        d.arrow((x + 90, 424), (x + 90, 406))
        d.text(x + 100, 416, below, size=12, anchor="start", colour="faint")
        d.text(x + 90, 438, title, size=14)
        d.box(x, 376, 180, 30, "embedding + positions")
        y = 376.0
        for label, kind in parts:
            d.arrow((x + 90, y), (x + 90, y - 16))
            d.box(x, y - 44, 180, 28, label, kind)
            d.arrow((x + 90, y - 6), (x + 204, y - 6), (x + 204, y - 56), (x + 180, y - 56))
            d.box(x, y - 66, 180, 20, "add & norm")
            y -= 64
        return y

    tower(50, "Encoder", "source", [("attention", "strong"), ("feed-forward", "strong")])
    top = tower(
        400,
        "Decoder",
        "target so far",
        [("causal attention", "strong"), ("cross-attention", "other"), ("feed-forward", "strong")],
    )
    d.arrow((140, 246), (140, 216), (340, 216), (340, 282), (400, 282), colour="other")
    d.text(240, 204, "what was read: keys and values", size=12, colour="faint")
    d.arrow((490, top - 2), (490, top - 30))
    d.box(400, top - 60, 180, 30, "linear")
    d.arrow((490, top - 60), (490, top - 80))
    d.box(400, top - 110, 180, 30, "softmax")
    d.arrow((490, top - 110), (490, top - 130))
    d.text(490, top - 140, "chances of the next token", size=12, colour="faint")
    return d


def attention() -> Drawing:
    """Queries, keys and values of one attention."""
    d = Drawing(660, 250, "Scores of queries and keys become weights, which average values")
    for row, name in enumerate(("query", "key", "value")):
        y = 40 + 62 * row
        d.arrow((60, 119), (90, 119), (90, y + 17), (120, y + 17))
        d.box(120, y, 84, 34, name)
    d.text(32, 119, "x", size=15)
    d.box(280, 70, 125, 34, "q kᵀ / √head_dim", "strong")
    d.arrow((204, 57), (250, 57), (250, 80), (280, 80))
    d.arrow((204, 119), (250, 119), (250, 94), (280, 94))
    d.box(430, 70, 80, 34, "softmax", "strong")
    d.arrow((405, 87), (430, 87))
    d.text(345, 40, "mask, bias", size=12, colour="faint")
    d.arrow((345, 48), (345, 70), colour="faint")
    d.box(430, 164, 80, 34, "weights v", "strong")
    d.arrow((470, 104), (470, 164))
    d.text(478, 134, "[heads seq keys]", size=11, anchor="start", mono=True)
    d.arrow((204, 181), (430, 181))
    d.text(262, 170, "[heads keys head_dim]", size=11, anchor="start", mono=True)
    d.box(560, 164, 60, 34, "out")
    d.arrow((510, 181), (560, 181))
    d.arrow((620, 181), (650, 181))
    d.text(32, 140, "[seq dim]", size=11, mono=True)
    return d


def masks() -> Drawing:
    """What six masks allow, as the library says it."""
    valid = jnp.array([True] * 5 + [False] * 2)
    packed = ef.Segments(jnp.array([0, 0, 0, 1, 1, 1, 1]))
    shown = {
        "Causal()": ef.Causal(),
        "Window(2, 0)": ef.Window(2, 0),
        "Prefix(3)": ef.Prefix(jnp.array(3)),
        "Padding(valid)": ef.Padding(valid),
        "Segments(ids)": packed,
        "Causal() & Segments(ids)": ef.Causal() & packed,
    }
    d = Drawing(560, 340, "Rows are queries, columns are keys; a full square is an allowed look")
    at = jnp.arange(7)
    for number, (label, mask) in enumerate(shown.items()):
        x, y = 30 + 180 * (number % 3), 40 + 170 * (number // 3)
        allowed = np.asarray(mask.allows(at, at)).reshape(7, 7)
        d.grid(x, y, allowed.astype(float), cell=17)
        d.text(x + 60, y - 14, label, size=11, mono=True)
    return d


def positions() -> Drawing:
    """Sinusoids by place and column."""
    d = Drawing(640, 260, "Waves of falling frequency: a row per position, a column per dimension")
    waves = np.asarray(ef.Sinusoids(32)(jnp.arange(24)))
    d.grid(60, 30, waves, cell=16, tall=8.5)
    d.text(324, 18, "dimension 0 to 31", size=11, colour="faint")
    d.text(52, 34, "0", size=11, anchor="end", mono=True)
    d.text(52, 229, "23", size=11, anchor="end", mono=True)
    d.text(52, 133, "place", size=11, anchor="end", colour="faint")
    d.text(324, 250, "full colour is 1, the other colour is -1", size=11, colour="faint")
    return d


def rotary() -> Drawing:
    """Scores of one query and one key that are turned by their places: only the distance counts."""
    d = Drawing(600, 230, "The score of a rotated query and key by their distance")
    x = jnp.broadcast_to(jnp.ones((1, 1, 1)), (1, 64, 64))
    turned = ef.Rotary()(x, jnp.arange(64))
    scores = np.asarray(turned[0] @ turned[0].T)
    for first, colour in ((0, "strong"), (16, "other")):
        line = scores[first, first : first + 48] / 64
        d.curve(60, 20, 500, 170, 0.5 + 0.5 * line, colour)
    d.arrow((60, 105), (560, 105), colour="faint", head=False)
    d.arrow((60, 20), (60, 190), colour="faint", head=False)
    d.text(52, 20, "1", size=11, anchor="end", mono=True)
    d.text(52, 105, "0", size=11, anchor="end", mono=True)
    d.text(310, 208, "distance of the key, 0 to 47; query at place 0 and at place 16", size=11)
    return d


def residual() -> Drawing:
    """Where norms may stand around a branch."""
    d = Drawing(640, 200, "Pre-norm, post-norm and sandwich-norm are the same wiring")
    wirings = {
        "pre-norm": ("norm", "f", ""),
        "post-norm": ("", "f", ""),
        "sandwich": ("norm", "f", "norm"),
    }
    for number, (label, names) in enumerate(wirings.items()):
        y = 36 + 62 * number
        d.text(14, y, label, size=12, anchor="start")
        d.arrow((100, y), (410, y))
        for place, name in enumerate(names):
            if name:
                kind = "strong" if name == "f" else "fill"
                d.box(160 + 80 * place, y - 15, 62, 30, name, kind)
        d.arrow((120, y), (120, y - 26), (420, y - 26), (420, y - 9))
        d.circle(420, y, 9, "+")
        d.arrow((429, y), (560, y))
        if label == "post-norm":
            d.box(460, y - 15, 62, 30, "norm")
        d.text(574, y, "x", size=13, anchor="start")
    return d


def feed_forward() -> Drawing:
    """The plain and the gated feed-forward."""
    d = Drawing(640, 190, "A feed-forward goes up and down again; a gate multiplies")
    d.text(14, 40, "MLP", size=12, anchor="start")
    for x, label in ((120, "up"), (240, "act"), (360, "down")):
        d.box(x, 24, 70, 32, label, "strong" if label != "act" else "fill")
        d.arrow((x - 50, 40), (x, 40))
    d.arrow((430, 40), (480, 40))
    d.text(275, 14, "[seq hidden]", size=11, mono=True)
    d.text(14, 130, "GatedMLP", size=12, anchor="start")
    d.arrow((80, 130), (100, 130), (100, 106), (120, 106))
    d.arrow((80, 130), (100, 130), (100, 154), (120, 154))
    d.box(120, 90, 70, 32, "gate", "strong")
    d.box(120, 138, 70, 32, "up", "strong")
    d.box(220, 90, 60, 32, "act")
    d.arrow((190, 106), (220, 106))
    d.arrow((280, 106), (320, 106), (320, 121))
    d.arrow((190, 154), (320, 154), (320, 139))
    d.circle(320, 130, 9, "×")
    d.box(360, 114, 70, 32, "down", "strong")
    d.arrow((329, 130), (360, 130))
    d.arrow((430, 130), (480, 130))
    return d


def cache() -> Drawing:
    """What a cache holds after a prompt, and after two more tokens."""
    d = Drawing(660, 170, "Eight slots after a prompt of four tokens, and after two more")
    for row, (label, written) in enumerate((("after the prompt", 4), ("two steps later", 6))):
        y = 40 + 62 * row
        d.text(140, y + 17, label, size=12, anchor="end")
        for slot in range(8):
            new = row == 1 and slot >= 4
            kind = "other" if new and slot < written else "strong" if slot < written else "fill"
            d.box(160 + 50 * slot, y, 44, 34, f"k v {slot}" if slot < written else "", kind)
        d.text(572, y + 17, f"length {written}", size=11, anchor="start", mono=True)
    d.text(356, 20, "slots", size=11, colour="faint")
    return d


def experts() -> Drawing:
    """A router that sends every token to two of four experts."""
    x = jax.random.normal(jax.random.key(0), (6, 16))
    mixture = ef.Experts(16, count=4, top=2, expert=ef.MLP.Config(hidden=8), key=jax.random.key(1))
    chances = np.asarray(jax.nn.softmax(mixture.router(x)))
    chosen = chances >= np.sort(chances, axis=1)[:, -2:-1]
    d = Drawing(520, 190, "Shares of four experts for six tokens; two of a row are taken")
    names = [f"e{i}" for i in range(4)]
    rows = [f"token {i}" for i in range(6)]
    d.grid(90, 40, chances / chances.max(), cell=34, tall=22, rows=rows, columns=names)
    d.grid(310, 40, (chances * chosen) / chances.max(), cell=34, tall=22, columns=names)
    d.arrow((240, 106), (296, 106))
    d.text(158, 14, "softmax of the router", size=11, colour="faint")
    d.text(378, 14, "the two that are asked", size=11, colour="faint")
    return d


def training() -> Drawing:
    """What one step of training does."""
    d = Drawing(660, 150, "A batch and the state give a loss, its gradient, and a new state")
    for x, label, kind in (
        (20, "batch", "fill"),
        (150, "model", "strong"),
        (280, "loss", "fill"),
        (410, "gradients", "fill"),
        (540, "optimizer", "strong"),
    ):
        d.box(x, 40, 100, 34, label, kind)
        if x > 20:
            d.arrow((x - 30, 57), (x, 57))
    d.arrow((590, 74), (590, 116), (200, 116), (200, 74), colour="other")
    d.text(395, 106, "new weights: the next state", size=11, colour="faint")
    return d


DRAWINGS: dict[str, Callable[[], Drawing]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        flow,
        families,
        transformer,
        attention,
        masks,
        positions,
        rotary,
        residual,
        feed_forward,
        cache,
        experts,
        training,
        *PARTS,
    )
}


def main() -> None:
    """Writes every drawing."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
