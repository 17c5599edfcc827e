"""The choice of a backend: reported, and an error where one asked for by name cannot serve."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.compare import assert_close
from tests.helpers.hot import drawn, normal

QUERY, KEYS, VALUES = normal(0, 2, 4, 5, 3), normal(1, 2, 2, 5, 3), normal(2, 2, 2, 5, 3)
PADDING = ef.Padding(jnp.asarray(np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]], bool)))
REFUSED = {
    "it has no soft-cap of scores": {"softcap": 2.0},
    "it has no sinks": {"sinks": ef.Zeros()},
    "it has no dropout of weights": {"dropout": 0.5},
    "it needs value heads of the size of the query heads": {"value_dim": 2},
}


@pytest.mark.parametrize(
    ("mask", "bias"),
    [
        (None, True),
        (ef.Causal(), False),
        (ef.Window(1, 2) & ef.Window(2, 1), False),
        (ef.Causal() & PADDING, True),
        (ef.Explicit(jnp.asarray(np.tri(5, k=-1, dtype=bool))), False),
    ],
    ids=["bias", "causal", "windows", "causal, padding, bias", "explicit"],
)
def test_the_kernel_of_jax_equals_the_formula_in_value_and_gradient(mask, bias):
    numbers = normal(3, 4, 5, 5) if bias else None

    def run(arguments, backend):
        query, keys, values, numbers = arguments
        y = ef.attend(
            query, keys, values, scoring=ef.Scoring(0.7), mask=mask, bias=numbers, backend=backend
        )
        return jnp.sin(y).sum(), y

    arguments = (QUERY, KEYS, VALUES, numbers)
    with jax.numpy_dtype_promotion("standard"):  # the gradient of JAX's own kernel needs it
        plain, xla = (
            jax.jit(jax.value_and_grad(lambda a, b=b: run(a, b), has_aux=True))(arguments)
            for b in ("plain", "xla")
        )
    assert_close(xla, plain, 1e-5)


class Before(ef.Causal):
    """A query sees what came before it, but not itself."""

    def allows(self, queries, keys):
        return keys[..., None, None, :] < queries[..., None, :, None]


class EverySecond(ef.Window):
    """Every second key of a window."""

    def allows(self, queries, keys):
        distance = keys[..., None, None, :] - queries[..., None, :, None]
        return super().allows(queries, keys) & (distance % 2 == 0)


@pytest.mark.parametrize("mask", [Before(), EverySecond(3, 1)], ids=["Causal", "Window"])
def test_a_subclass_of_what_the_kernel_knows_is_asked_itself(mask):
    options = {"scoring": ef.Scoring(0.7), "backend": "xla"}

    @jax.jit
    def both(*given):
        allowed = ef.Explicit(mask.allows(jnp.arange(5), jnp.arange(5))[0])
        return [ef.attend(*given, mask=each, **options) for each in (mask, allowed)]

    assert_close(*both(QUERY, KEYS, VALUES), 1e-6)


@pytest.mark.parametrize("backend", ["xla", "cudnn"])
@pytest.mark.parametrize("reason", REFUSED)
def test_a_backend_asked_for_by_name_that_cannot_serve_is_an_error_that_says_why(backend, reason):
    config = ef.Attention.Config(heads=4, backend=backend, **REFUSED[reason])
    part = drawn(config, 12)
    message = (
        f"The attention backend `{backend}` cannot serve this call: {reason}. "
        "Use `auto`, or `plain`, which serves everything."
    )
    with pytest.raises(NotImplementedError) as error:
        part(normal(0, 5, 12), key=jax.random.key(0))
    assert str(error.value) == message


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what a CPU says")
def test_cudnn_on_a_cpu_is_an_error_that_says_so():
    part = drawn(ef.Attention.Config(heads=4, backend="cudnn"), 12)
    with pytest.raises(NotImplementedError, match="no GPU; this is a cpu"):
        part(normal(0, 5, 12))


def test_dropout_that_is_off_does_not_keep_a_backend_from_serving():
    part = drawn(ef.Attention.Config(heads=4, backend="xla", dropout=0.5), 12)
    with ef.backend_report() as report:
        jax.jit(part.__call__)(normal(0, 5, 12))
    assert [choice.backend for choice in report] == ["xla"]


def test_the_report_lists_every_traced_call_with_its_reason_and_shapes():
    part = drawn(ef.Attention.Config(heads=4, kv_heads=2), 12)
    with ef.backend_report() as report:
        eqx.filter_eval_shape(part, normal(0, 2, 5, 12))
        eqx.filter_eval_shape(part, normal(0, 5, 12), normal(1, 7, 12))
    assert [choice.query_shape for choice in report] == [(2, 4, 5, 3), (4, 5, 3)]
    assert [choice.keys_shape for choice in report] == [(2, 2, 5, 3), (2, 7, 3)]
    assert str(report[0]) == f"plain: {report[0].reason} (query (2, 4, 5, 3), keys (2, 2, 5, 3))"


def test_nothing_is_reported_outside_and_an_inner_report_keeps_its_own():
    part = drawn(ef.Attention.Config(heads=4, backend="plain"), 12)
    x = normal(0, 5, 12)
    eqx.filter_eval_shape(part, x)
    with ef.backend_report() as outer:
        with ef.backend_report() as inner:
            eqx.filter_eval_shape(part, x)
        eqx.filter_eval_shape(part, x)
    eqx.filter_eval_shape(part, x)
    assert len(inner) == len(outer) == 1
    assert outer[0].reason == "asked for by name"


def test_the_softmax_of_bfloat16_is_in_float32():
    """Scores near 100 are 0.5 apart in bfloat16: weights would be off by a third."""
    query, keys = 3 * np.asarray(normal(0, 1, 4, 64)), 3 * np.asarray(normal(1, 1, 8, 64))
    small = [a.astype(jnp.bfloat16) for a in (query, keys)]
    find = jax.jit(lambda *g: ef.attention_weights(*g, scoring=ef.Scoring(0.125)))
    weights, exact = find(*small), find(*[a.astype(np.float32) for a in small])
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(weights, exact, atol=1e-4)
