"""What runs under a jit or a loop of the called function is sent from there: a generation, say."""

import threading

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers import models
from tests.helpers.models import close

CONFIG = ef.families.llama(vocab=11, dim=12, layers=2, heads=4, kv_heads=2, head_dim=6, hidden=7)
PROMPTS = [[1, 2, 3], [4, 5, 6]]  # as long as each other, so that a single pass can read what came
NAMES = ("blocks.*.residual", "blocks.1.attention.weights", "norm")


@pytest.fixture(scope="module")
def model():
    return models.filled(CONFIG.edit(layout=ef.Scanned()))


@pytest.fixture(scope="module")
def generation(model):
    made = ef.generate(model, PROMPTS, max_new_tokens=4)
    again, seen = ef.capture(model, *NAMES, call=ef.generate)(PROMPTS, max_new_tokens=4)
    assert again == made  # nothing is changed by it
    return made, seen


def _joined(values, prompt=3):
    """The values of all tokens in turn, without the padding of the prompts' pass."""
    first, *others = map(np.asarray, values)
    return np.concatenate([first[..., :prompt, :], *others], axis=-2)


def test_each_step_of_a_generation_gives_what_one_pass_over_all_its_tokens_gives(model, generation):
    made, seen = generation
    read = [[*prompt, *new[:-1]] for prompt, new in zip(PROMPTS, made, strict=True)]
    _, expected = eqx.filter_jit(ef.capture(model, *NAMES))(jnp.array(read))
    assert [x.shape[1] for x in seen["norm"][1:]] == [1, 1, 1]
    for name in ("blocks.0.residual", "blocks.1.residual", "norm"):
        close(_joined(seen[name]), expected[name])
    weights = _joined(seen["blocks.1.attention.weights"])
    close(weights[..., :6], expected["blocks.1.attention.weights"])
    assert np.abs(weights[..., 6:]).max() == 0.0  # slots that nothing is in
    assert _joined(seen["blocks.*.residual"]).shape == (2, 2, 6, 12)  # layers in front


def test_names_of_values_that_are_sent_stand_in_order_of_execution(generation):
    assert list(generation[1]) == [
        "blocks.0.residual",
        "blocks.1.attention.weights",
        "blocks.1.residual",
        "norm",
    ]


def test_a_model_that_generated_before_it_was_captured_is_compiled_for_it(model):
    look = ef.capture(model, "norm", keep=jnp.shape, call=ef.generate)
    ef.generate(look.model, PROMPTS, max_new_tokens=2)  # a program that sends nothing
    for _ in range(2):
        _, seen = look(PROMPTS, max_new_tokens=2)
        assert len(seen["norm"]) == 2


def test_what_is_kept_of_a_sent_value_is_all_that_is_sent(model):
    look = ef.capture(model, "norm", keep=jnp.linalg.norm, call=ef.generate)
    _, seen = look([[1]], max_new_tokens=3)
    assert [x.shape for x in seen["norm"]] == [(), (), ()]


def test_what_a_jit_computes_stands_between_what_is_computed_before_and_after_it(model):
    @eqx.filter_jit
    def blocks(model, x):
        return model.blocks[1](model.blocks[0](x))

    def call(model, tokens):
        return model.norm(blocks(model, model.embedding(tokens)))

    tokens = jnp.array([[1, 2, 3]])
    look = ef.capture(model, "norm", "blocks.*", "embedding", call=call)
    y, seen = look(tokens)
    assert list(seen) == ["embedding", "blocks.0", "blocks.1", "norm"]
    close(seen["norm"], y)
    (sent,) = seen["blocks.1"]  # under a jit: once for each time, here one
    close(model.norm(sent), y)


def test_captures_of_two_threads_take_what_is_theirs(model):
    look = ef.capture(model, "embedding", call=ef.generate)
    found = {}

    def generate(name, prompt):
        found[name] = look(prompt, max_new_tokens=6)[1]["embedding"]

    for prompt in ([[1, 2]], [[3, 4, 5]]):
        threads = [threading.Thread(target=generate, args=(i, prompt)) for i in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        for i in range(2):
            assert len(found[i]) == 6
            np.testing.assert_array_equal(found[i][0], found[1 - i][0])


def test_several_devices_are_refused_with_what_to_do_instead(model):
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.device_put(jnp.ones((2, 3, 12)), place)
    look = ef.capture(model, "norm", call=eqx.filter_jit(lambda model, x: model.norm(x)))
    with pytest.raises(ValueError, match="on one device.*around the capture"):
        look(x)
