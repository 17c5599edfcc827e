"""A table of weights that forgets a tensor, an array or a part of one is refused."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

import eqxformer as ef
from tests.parity.weight_rules import From, Rules, fill, part, part_per_head, turned, turned_part


class Pair(eqx.Module):
    """Two linear maps, and nothing else."""

    class Config(ef.Config):
        def build(self, *, key: Any) -> "Pair":
            first, second = jax.random.split(key)
            return Pair(ef.Linear(3, 2, key=first), ef.Linear(3, 2, key=second))

    first: ef.Linear
    second: ef.Linear


TENSORS = {
    "a.weight": np.arange(6.0, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([6.0, 7.0], np.float32),
    "b.weight": np.arange(8.0, 14.0, dtype=np.float32).reshape(2, 3),
    "b.bias": np.array([14.0, 15.0], np.float32),
}
RULES = {"first": turned("a"), "second": turned("b")}


def test_weights_are_turned_and_biases_are_not():
    filled = fill(Pair.Config(), RULES, TENSORS)
    np.testing.assert_array_equal(filled.first.weight, TENSORS["a.weight"].T)
    np.testing.assert_array_equal(filled.second.bias, TENSORS["b.bias"])


@pytest.mark.parametrize(
    ("rules", "tensors", "message"),
    [
        ({"first": turned("a")}, TENSORS, "No rule says where `second.weight`"),
        ({**RULES, "third": turned("c")}, TENSORS, r"nothing uses: \['third'\]"),
        ({**RULES, "second": turned("a")}, TENSORS, "exactly once: .*'a.weight'.*'b.weight'"),
        (RULES, {**TENSORS, "c": np.zeros(1)}, r"exactly once: \['c'\]"),
        (
            {**RULES, "first": From("a", lambda tensor: tensor[..., :1].T)},
            TENSORS,
            r"exactly once: \['a.weight', 'a.bias'\]",
        ),
        ({**RULES, "first": From("a")}, TENSORS, r"first.weight is \(2, 3\)"),
    ],
    ids=["no rule", "idle rule", "twice", "left over", "half read", "shape"],
)
def test_what_does_not_fit_is_refused(rules: Rules, tensors: Any, message: str):
    with pytest.raises(ValueError, match=message):
        fill(Pair.Config(), rules, tensors)


def test_fused_projections_come_apart_and_together_make_the_whole():
    heads, size, width = 2, 3, 5
    separate = np.arange(3 * heads * size * width).reshape(3, heads * size, width)
    thirds = separate.reshape(-1, width)
    per_head = np.swapaxes(separate.reshape(3, heads, size, width), 0, 1).reshape(-1, width)
    for i in range(3):
        for rule, tensor in (
            (part("w", i, of=3), thirds.T),
            (turned_part("w", i, of=3), thirds),
            (part_per_head("w", i, heads=heads), per_head),
        ):
            np.testing.assert_array_equal(rule("weight", "", {"w": tensor}), separate[i].T)
