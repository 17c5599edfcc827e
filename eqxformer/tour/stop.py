"""A stop of the tour: what a component is, its formula, and the code that shows it.

Sizes are different primes, as far as they are sizes of axes: a shape says which axes it has.
"""

import dataclasses

SIZES = {
    "batch": 2,
    "heads": 3,
    "seq": 5,
    "head_dim": 7,
    "dim": 11,
    "hidden": 13,
    "keys": 17,
    "labels": 19,
    "slots": 23,
    "vocab": 29,
}

BEGIN = """\
import eqxformer as ef, jax, jax.numpy as jnp, numpy as np
np.set_printoptions(precision=2, suppress=True)
keys = iter(jax.random.split(jax.random.key(0), 32))  # a new key for everything that is drawn
"""


@dataclasses.dataclass(frozen=True)
class Stop:
    """One component.

    Arguments:
        title: its name.
        says: what it is, in a sentence or two.
        formula: what it computes.
        code: lines to type; what they print is shown below them.
        takes, gives: the axes of arrays that go in and come out, by their names in the code.
    """

    title: str
    says: str
    formula: str
    code: str
    takes: dict[str, str]
    gives: dict[str, str]


X = {"x": "batch seq dim"}
Y = {"y": "batch seq dim"}
