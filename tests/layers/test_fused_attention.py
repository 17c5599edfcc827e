"""The kernels of `jax.nn.dot_product_attention` against the plain formula.

`xla` runs everywhere; `cudnn` where there is a GPU (`JAX_PLATFORMS=cuda pytest tests/layers`).
"""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef

BATCH, HEADS, KV_HEADS, SEQ, SIZE = 2, 4, 2, 64, 16
PLACES = np.tile(np.arange(SEQ), (BATCH, 1))
VALID = np.array([[64], [37]]) > PLACES
RIGHT, LEFT = ef.Padding(jnp.asarray(VALID)), ef.Padding(jnp.asarray(VALID[:, ::-1]))
MASKS = {
    "full": None,
    "causal": ef.Causal(),
    "causal window": ef.Causal() & ef.Window(16, 0),
    "two windows": ef.Window(16, 3) & ef.Window(4, 30),
    "causal, right padding": ef.Causal() & RIGHT,
    "causal, left padding": ef.Causal() & LEFT,
    "prefix": ef.Prefix(jnp.array([10, 50])),
    "segments": ef.Causal() & ef.Segments(jnp.asarray(PLACES // 16)),
}
ON_GPU = jax.default_backend() == "gpu"
# A weight rounded to bfloat16 is off by up to 2^-9 of itself; a gradient sums some 100 of them.
PRECISION = {"xla": (jnp.float32, 1e-5), "cudnn": (jnp.bfloat16, 10 * 2**-9)}
BACKENDS = ["xla", pytest.param("cudnn", marks=pytest.mark.skipif(not ON_GPU, reason="no GPU"))]


def operands(dtype, kv_heads=KV_HEADS):
    random, heads = np.random.default_rng(0), (HEADS, kv_heads, kv_heads)
    return tuple(
        jax.device_put(np.asarray(random.standard_normal((BATCH, n, SEQ, SIZE)), dtype))
        for n in heads
    )


def value_and_gradients(backend, mask, arrays):
    def loss(arrays):
        out = ef.attend(*arrays, scoring=ef.Scoring(SIZE**-0.5), mask=mask, backend=backend)
        weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return (out.astype(jnp.float32) * weight).sum(), out

    with jax.numpy_dtype_promotion("standard"):  # the gradient of JAX's own kernel needs it
        (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return [np.asarray(x, np.float64) for x in (out, *gradients)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "kv_heads"),
    [*((name, KV_HEADS) for name in MASKS), ("full", HEADS), ("causal, left padding", HEADS)],
)
def test_a_fused_kernel_equals_the_plain_formula_in_value_and_gradient(backend, name, kv_heads):
    dtype, tolerance = PRECISION[backend]
    plain = value_and_gradients("plain", MASKS[name], operands(jnp.float32, kv_heads))
    fused = value_and_gradients(backend, MASKS[name], operands(dtype, kv_heads))
    for right, got in zip(plain, fused, strict=True):
        assert np.abs(got - right).max() < tolerance * np.abs(right).max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fused_kernel_under_vmap_equals_the_batch(backend):
    def run(*each):
        scoring = ef.Scoring(SIZE**-0.5)
        return ef.attend(*each, scoring=scoring, mask=ef.Causal(), backend=backend)

    dtype, tolerance = PRECISION[backend]
    arrays = operands(dtype)
    mapped, batch = jax.jit(lambda *each: (jax.vmap(run)(*each), run(*each)))(*arrays)
    assert np.abs(np.float32(mapped) - np.float32(batch)).max() < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
def test_queries_that_see_nothing_get_zeros_and_finite_gradients(backend):
    arrays = operands(PRECISION[backend][0])
    out, *gradients = value_and_gradients(backend, ef.Causal() & LEFT, arrays)
    assert not out[1, :, : SEQ - 37].any()
    assert out[1, :, SEQ - 37 :].any()
    assert all(np.isfinite(g).all() for g in gradients)


def test_auto_takes_cudnn_in_half_precision_on_a_gpu_and_says_why_not_elsewhere():
    with ef.backend_report() as report:
        for dtype in (jnp.bfloat16, jnp.float32):
            eqx.filter_eval_shape(
                lambda *each: ef.attend(*each, scoring=ef.Scoring(1.0)), *operands(dtype)
            )
    assert [choice.backend for choice in report] == ["cudnn" if ON_GPU else "plain", "plain"]
    assert ("float16 or bfloat16" if ON_GPU else "no GPU") in report[1].reason


@pytest.mark.parametrize(
    ("mask", "bias", "seq", "backend", "reason"),
    [
        (ef.Causal(), False, 7, "cudnn", "fused kernel"),
        (ef.Causal() & ef.Window(3, 0), False, 7, "cudnn", "fused kernel"),
        (ef.Window(3, 0), False, 7, "cudnn", "fused kernel"),
        (ef.Window(3, 2), False, 8, "cudnn", "fused kernel"),
        (ef.Window(3, 2), False, 7, "plain", "even lengths"),
        (ef.Causal() & ef.Padding(jnp.ones((1, 7), bool)), False, 7, "plain", r"not \(7, 7\)"),
        (ef.Causal(), True, 7, "plain", "even lengths"),
        (ef.Causal(), True, 8, "cudnn", "fused kernel"),
    ],
)
def test_cudnn_is_asked_only_for_what_its_gradient_can_do(
    mask, bias, seq, backend, reason, monkeypatch
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    asked = []

    def kernel(query, keys, values, **options):
        asked.append(options)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    arrays = [np.ones((1, 2, seq, 8), jnp.bfloat16)] * 3
    extra = np.zeros((1, 2, seq, seq), jnp.bfloat16) if bias else None
    with ef.backend_report() as report:
        eqx.filter_eval_shape(
            lambda *each: ef.attend(*each[:3], scoring=ef.Scoring(1.0), mask=mask, bias=each[3]),
            *arrays,
            extra,
        )
    (choice,) = report
    assert choice.backend == backend
    assert re.search(reason, choice.reason)
    for options in asked:  # a window to the left below a causal mask is all that cuDNN knows
        window = options["local_window_size"]
        assert window is None or (window[1] == 0 and options["is_causal"])
        left = options["mask"]
        assert (left is not None) == (mask == ef.Window(3, 2))


@pytest.mark.skipif(not ON_GPU, reason="no GPU")
def test_a_compiled_model_calls_cudnn():
    config = ef.families.gpt(vocab=64, dim=128, layers=2, heads=2, context=SEQ)
    model = config.build(key=jax.random.key(0))
    model = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_array(x) else x, model)
    arrays, static = eqx.partition(model, eqx.is_array)
    tokens = jnp.zeros((BATCH, SEQ), jnp.int32)
    run = jax.jit(lambda arrays: eqx.combine(arrays, static)(tokens))
    assert "fmha" in run.lower(arrays).compile().as_text().lower()
