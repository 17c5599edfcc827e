"""Training on eight devices is training on one: losses, gradients, parameters, and the traffic."""

import re
from collections import Counter

import equinox as eqx
import jax
import numpy as np
import pytest

import eqxformer as ef
from tests.sharding.meshes import placed, share, where

LLAMA = ef.families.llama(vocab=16, dim=8, layers=3, heads=4, kv_heads=2, hidden=24).edit(
    layout=ef.Scanned(remat="nothing_saved")
)
MIXTURE = LLAMA.edit(
    "blocks.*",
    feed_forward=ef.Experts.Config(count=4, top=2, expert=ef.GatedMLP.Config(hidden=8)),
)
MODELS = {"llama": LLAMA, "mixture": MIXTURE.edit(blocks=MIXTURE.blocks[:1])}
BATCH = ef.TokenBatch(np.random.default_rng(0).integers(0, 16, (8, 9)).astype(np.int32))
# With Adam's usual epsilon, what is zero but for rounding would move as far as everything else.
OPTIMIZER = ef.AdamW(3e-2, epsilon=1e-2, clip=ef.ClipByNorm(1.0)).build(steps=5)


class Run:
    """Five steps, and the program that they were."""

    def __init__(self, config, placement=None):
        made = config.build(key=jax.random.key(0))
        model = jax.tree.map(lambda x: 3.0 * x if eqx.is_array(x) and x.ndim > 1 else x, made)
        batch, step = BATCH, ef.make_step(ef.NextToken(), OPTIMIZER)
        if placement is not None:
            model, batch = placement.put(model), placement.batch(batch)
        given = [np.array(x) for x in numbers(model)]
        state = ef.TrainState.create(model, OPTIMIZER, key=jax.random.key(1))
        self.before, self.share = where(state), share(state)[0]
        self.losses, self.states = [], []
        for number in range(5):
            state, metrics = step(state, batch)
            self.losses.append(float(metrics["loss"]))
            if number in (0, 4):  # after the first, Adam's mean is a tenth of the gradient
                self.states.append([np.asarray(x) for x in trained(state)])
        self.kept = all(map(np.array_equal, given, numbers(model)))
        self.after = where(state)
        self.program = step.lower(state, batch).compile().as_text()


def trained(state):
    return numbers((state.model, state.optimizer))


def numbers(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_array))


ALONE = {}


def alone(name):
    if name not in ALONE:
        ALONE[name] = Run(MODELS[name])
    return ALONE[name]


CASES = {
    "data=8": ("llama", 1.0),
    "fsdp=8": ("llama", 1 / 8),
    "data=4,tensor=2": ("llama", 1 / 2),
    "data=2,expert=4": ("mixture", 1 / 2),
}
RUNS = {}


@pytest.fixture(params=CASES)
def case(request):
    """A run on a mesh, and the same on one device."""
    name, _ = CASES[request.param]
    if request.param not in RUNS:
        RUNS[request.param] = Run(MODELS[name], placed(request.param))
    return request.param, RUNS[request.param], alone(name)


def test_losses_gradients_and_five_steps_are_those_of_one_device(case):
    _, spread, single = case
    np.testing.assert_allclose(spread.losses, single.losses, rtol=1e-5)
    assert single.losses[4] < single.losses[0] - 0.02
    for found, wanted in zip(spread.states, single.states, strict=True):
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_a_state_stays_where_it_lies(case):
    _, spread, _ = case
    assert spread.after == spread.before


def test_the_model_that_was_given_keeps_its_numbers(case):
    _, spread, single = case
    assert spread.kept
    assert single.kept


def test_each_device_holds_its_share_of_the_state(case):
    name, spread, _ = case
    assert spread.share <= 1.2 * CASES[name][1]


def collectives(program):
    """Each collective of a program: its kind, the computation that it is in, and what it gives."""
    found, inside = [], None
    for line in program.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head:
            inside = "ENTRY" if head[1] else head[2]
        kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
        call = re.search(rf" = (.*?) ({kinds})(-start)?\(", line)
        if call:
            shapes = re.findall(r"\w+\[([\d,]*)\]", call[1])
            found += [
                (call[2], inside, tuple(int(n) for n in shape.split(",") if n)) for shape in shapes
            ]
    return found


def test_data_parallel_training_sums_gradients_and_sends_nothing_else():
    found = collectives(run("data=8").program)
    assert {kind for kind, _, _ in found} == {"all-reduce"}


def test_fully_sharded_training_gathers_one_layer_at_a_time():
    """Gathered are matrices of one layer, within the loop over layers, and tables outside it."""
    found = collectives(run("fsdp=8").program)
    gathered = Counter(shape for kind, _, shape in found if kind == "all-gather")
    matrices = {(8, 8), (8, 4), (8, 24), (24, 8)}  # query and out, key and value, gate and up, down
    tables = {(16, 8), (8, 16)}
    assert matrices <= set(gathered) <= matrices | tables
    outside = {shape for kind, inside, shape in found if inside == "ENTRY"}
    assert not {shape for shape in outside if shape[:1] == (3,) and len(shape) == 3}
    assert not {shape for shape in outside if kind_of_layer(shape)} & matrices
    assert not [kind for kind, _, _ in found if kind in ("all-to-all", "collective-permute")]


def kind_of_layer(shape):
    return len(shape) == 2 and shape not in {(16, 8), (8, 16)}


def test_activations_are_not_summed_over_the_axis_that_shares_rows():
    """8 rows of 8 tokens: an array of all of them would be what XLA does when left alone."""
    found = collectives(run("fsdp=8").program)
    assert not [shape for _, _, shape in found if 64 in shape or (len(shape) > 2 and 8 in shape)]


def run(name):
    if name not in RUNS:
        RUNS[name] = Run(MODELS[CASES[name][0]], placed(name))
    return RUNS[name]


def test_tensor_parallel_training_sums_products_of_every_block():
    """Two products of each block, of the two rows of 8 tokens that a device has."""
    found = collectives(run("data=4,tensor=2").program)
    assert [shape for kind, _, shape in found if kind == "all-reduce" and shape == (16, 8)]
    assert not [shape for kind, _, shape in found if kind == "all-gather"]


def test_experts_exchange_tokens_and_not_weights():
    found = collectives(run("data=2,expert=4").program)
    kinds = {kind for kind, _, _ in found}
    assert {"all-gather", "reduce-scatter"} <= kinds
    gathered = {shape for kind, _, shape in found if kind == "all-gather"}
    assert gathered <= {(32, 8), (32, 2)}  # tokens of four devices, their weights and experts
