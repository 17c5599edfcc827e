"""The drawings of the tour's smaller parts; `website.drawings` writes them with the others.

Numbers in them are what the library computes.
"""

import jax
import jax.numpy as jnp
import numpy as np

import eqxformer as ef
from eqxformer.losses.cross_entropy import cross_entropies
from website.svg import Drawing


def embedding() -> Drawing:
    """Three ids, the table, and the rows that they take from it."""
    d = Drawing(560, 220, "Each id takes its row of the table")
    table = ef.Embedding(8, 6, key=jax.random.key(0))
    ids = np.array([5, 2, 5])
    scale = float(jnp.abs(table.weight).max())
    rows = [str(each) for each in range(8)]
    d.grid(210, 30, np.asarray(table.weight) / scale, cell=18, rows=rows)
    d.grid(420, 75, np.asarray(table(jnp.asarray(ids))) / scale, cell=18)
    d.text(264, 14, "table [vocab dim]", size=11, mono=True)
    d.text(474, 59, "x [seq dim]", size=11, mono=True)
    d.text(76, 59, "tokens [seq]", size=11, mono=True)
    for number, each in enumerate(ids):
        y, row = 84 + 18 * number, 39 + 18 * int(each)
        d.text(76, y, str(each), mono=True)
        colour = "other" if each == ids[0] else "strong"
        d.arrow((90, y), (184, row), colour=colour)
        d.arrow((320, row), (414, y), colour=colour)
    return d


def linear() -> Drawing:
    """A product with its shapes."""
    d = Drawing(560, 170, "Rows of x times columns of the weight are the rows of y")
    x = jax.random.normal(jax.random.key(0), (3, 6))
    layer = ef.Linear(6, 4, key=jax.random.key(1))
    arrays = np.asarray(x), np.asarray(layer.weight), np.asarray(layer(x))
    places = (40, 60, "x [seq in_dim]"), (210, 40, "weight [in_dim out_dim]"), (400, 60, "y")
    for (left, top, label), each in zip(places, arrays, strict=True):
        d.grid(left, top, each / np.abs(each).max(), cell=16)
        d.text(left + 8 * each.shape[1], top - 16, label, size=11, mono=True)
    d.text(172, 84, "×", size=16)
    d.text(330, 84, "+ b  =", size=14)
    return d


def norm() -> Drawing:
    """A token whose numbers are large, one whose are small, and what a norm makes of both."""
    d = Drawing(560, 190, "Every token's numbers are brought to one size, each token by itself")
    x = jax.random.normal(jax.random.key(3), (4, 8)) * jnp.array([[1.0], [0.25], [0.6], [0.1]])
    y = ef.RMSNorm(8)(x)
    scale = float(jnp.abs(y).max())
    rows = [f"token {number}" for number in range(4)]
    d.grid(80, 40, np.asarray(x) / scale, cell=20, rows=rows)
    d.grid(360, 40, np.asarray(y) / scale, cell=20)
    d.arrow((256, 80), (344, 80))
    d.text(300, 66, "norm", size=12)
    for left, array in ((80, x), (360, y)):
        sizes = np.sqrt(np.mean(np.asarray(array) ** 2, axis=-1))
        said = " ".join(f"{each:.2f}" for each in sizes)
        d.text(left + 80, 140, "root of the mean square:", size=11, colour="faint")
        d.text(left + 80, 158, said, size=11, mono=True)
    return d


def block() -> Drawing:
    """The three branches of a block."""
    d = Drawing(680, 150, "Attention, cross-attention and feed-forward, each added to what came in")
    branches = (
        ("attention", "strong", "cache"),
        ("cross-attention", "other", "source"),
        ("feed-forward", "strong", "losses of a router"),
    )
    d.text(14, 100, "x", size=14)
    for number, (label, kind, beside) in enumerate(branches):
        x = 40 + 210 * number
        d.arrow((x - 14, 100), (x + 170, 100))
        d.arrow((x, 100), (x, 62), (x + 20, 62))
        d.box(x + 20, 46, 124, 32, label, kind)
        d.arrow((x + 144, 62), (x + 178, 62), (x + 178, 92))
        d.circle(x + 178, 100, 8, "+")
        d.text(x + 82, 16, beside, size=11, colour="faint")
        ends = (x + 82, 24), (x + 82, 46)
        d.arrow(*(ends[::-1] if number == 2 else ends), colour="faint")
    d.arrow((646, 100), (670, 100))
    d.text(240, 130, "[batch seq dim] all the way", size=11, mono=True)
    return d


def stack() -> Drawing:
    """Blocks one by one, and equal neighbours in a scan."""
    d = Drawing(640, 150, "Six blocks unrolled, and the same six as two groups that are scanned")
    kinds = ["strong"] * 2 + ["other"] * 4
    d.text(14, 44, "Unrolled()", size=12, anchor="start", mono=True)
    for number, kind in enumerate(kinds):
        x = 130 + 82 * number
        d.box(x, 28, 62, 32, f"block {number}", kind)
        d.arrow((x - 20, 44), (x, 44))
    d.text(14, 112, "Scanned()", size=12, anchor="start", mono=True)
    for x, label, kind in ((130, "blocks 0..1: 2 x", "strong"), (330, "blocks 2..5: 4 x", "other")):
        d.box(x, 96, 150, 32, label, kind)
        d.arrow((x - 20, 112), (x, 112))
        d.arrow((x + 75, 96), (x + 75, 82), (x + 130, 82), (x + 130, 96))
    d.arrow((280, 112), (330, 112), head=False)
    d.arrow((480, 112), (530, 112))
    return d


def head() -> Drawing:
    """One table, used on the way in and on the way out."""
    d = Drawing(600, 150, "A tied head uses the token table once more, transposed")
    d.text(40, 50, "tokens", size=12)
    d.arrow((66, 50), (110, 50))
    d.box(110, 34, 96, 32, "embedding")
    d.arrow((206, 50), (250, 50))
    d.box(250, 34, 96, 32, "blocks")
    d.arrow((346, 50), (390, 50))
    d.box(390, 34, 96, 32, "TiedHead")
    d.arrow((486, 50), (530, 50))
    d.text(560, 50, "logits", size=12)
    d.box(250, 104, 96, 32, "table E", "strong")
    d.arrow((250, 120), (158, 120), (158, 66), colour="strong")
    d.arrow((346, 120), (438, 120), (438, 66), colour="strong")
    d.text(392, 134, "transposed", size=11, anchor="start", colour="faint")
    return d


def loss() -> Drawing:
    """Logits of four places, their softmax, and what each place costs."""
    d = Drawing(620, 170, "The loss of a place is minus the logarithm of the right token's share")
    logits = jax.random.normal(jax.random.key(5), (4, 6))
    targets = np.array([1, 4, 0, 3])
    shares = np.asarray(jax.nn.softmax(logits))
    signs = np.where(np.arange(6) == targets[:, None], -1.0, 1.0)
    rows = [f"place {number}" for number in range(4)]
    d.grid(80, 50, np.asarray(logits) / float(jnp.abs(logits).max()), cell=22, rows=rows)
    d.grid(270, 50, shares * signs, cell=22)
    d.arrow((220, 94), (260, 94))
    d.text(146, 32, "logits [seq vocab]", size=11, mono=True)
    d.text(336, 32, "softmax", size=11, mono=True)
    d.text(484, 32, "loss [seq]", size=11, mono=True)
    costs = cross_entropies(logits, jnp.asarray(targets), jnp.ones(4))
    for row, value in enumerate(np.asarray(costs)):
        d.arrow((410, 61 + 22 * row), (450, 61 + 22 * row))
        d.text(484, 61 + 22 * row, f"{value:.2f}", size=12, mono=True)
    d.text(336, 154, "the other colour: the right token", size=11, colour="faint")
    return d


def generation() -> Drawing:
    """Prefill once, then a loop."""
    d = Drawing(660, 160, "A prompt is read in one pass; every new token goes round the loop")
    d.text(40, 60, "prompts", size=12)
    d.arrow((70, 60), (100, 60))
    d.box(100, 44, 84, 32, "prefill", "strong")
    d.arrow((184, 60), (240, 60))
    d.text(212, 44, "state", size=11, colour="faint")
    for x, label, kind in (
        (240, "logits", "fill"),
        (370, "process", "fill"),
        (500, "choose", "strong"),
    ):
        d.box(x, 44, 90, 32, label, kind)
    d.arrow((330, 60), (370, 60))
    d.arrow((460, 60), (500, 60))
    d.arrow((590, 60), (640, 60))
    d.text(616, 46, "token", size=11, colour="faint")
    d.arrow((610, 60), (610, 122), (360, 122))
    d.box(220, 106, 140, 32, "model, one token", "strong")
    d.arrow((285, 106), (285, 76))
    d.text(485, 136, "as long as a row goes on", size=11, colour="faint")
    return d


PARTS = (embedding, linear, norm, block, stack, head, loss, generation)
