"""The product under every projection: the plain one in value and derivatives, in a better form."""

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import eqxformer as ef
from eqxformer.layers import linear
from eqxformer.layers.product import product
from tests.helpers.compare import assert_close
from tests.helpers.hot import normal
from tests.helpers.models import filled

SHAPES = [(8,), (1, 8), (1, 1, 8), (1, 1, 7), (5, 8), (2, 3, 8), (2, 1, 3, 7), (0, 8), (2, 0, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_equals_the_plain_product_in_value_and_all_derivatives(shape):
    x, weight, g = normal(0, *shape), normal(1, shape[-1], 4), normal(2, *shape[:-1], 4)
    tangents = normal(3, *shape), normal(4, shape[-1], 4)

    def everything(multiply):
        def bent(x, weight):
            return (jnp.sin(multiply(x, weight)) * g).sum()

        gradients = jax.grad(bent, (0, 1))
        forward = jax.jvp(multiply, (x, weight), tangents)
        second = jax.jvp(gradients, (x, weight), tangents)[1]
        again = jax.grad(lambda w: jnp.square(gradients(x, w)[0]).sum())(weight)
        return forward, gradients(x, weight), second, again

    found, expected = (jax.jit(lambda m=m: everything(m))() for m in (product, jnp.matmul))
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 8)], ids=str)
def test_it_may_be_mapped_over_rows_and_over_weights(axes, shape):
    x = normal(0, *((2,) if axes[0] == 0 else ()), *shape)
    weight = normal(1, *((2,) if axes[1] == 0 else ()), 8, 4)

    def everything(multiply):
        def bent(x, weight):
            return jnp.sin(multiply(x, weight)).sum()

        return jax.vmap(multiply, axes)(x, weight), jax.vmap(jax.grad(bent, (0, 1)), axes)(
            x, weight
        )

    found, expected = (jax.jit(lambda m=m: everything(m))() for m in (product, jnp.matmul))
    assert_close(found, expected, 1e-5)


def test_numbers_of_a_small_type_stay_small_and_types_are_not_mixed():
    small = product(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16))
    assert small.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="promotion"):
        product(jnp.ones((2, 3)), jnp.ones((3, 4), jnp.bfloat16))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_single_row_of_a_small_type_is_rounded_once_and_has_its_gradient(dtype):
    x, weight = normal(0, 1, 512).astype(dtype), normal(1, 512, 64).astype(dtype)

    def sides(x, weight):
        slopes = jax.grad(lambda x, w: product(x, w).astype(jnp.float32).sum(), (0, 1))
        return product(x, weight), *slopes(x, weight)

    found, exact = (jax.jit(sides)(*(a.astype(t) for a in (x, weight))) for t in (dtype, "float32"))
    assert all(part.dtype == dtype for part in found)
    for got, wide in zip(found, exact, strict=True):
        unit = np.abs(np.asarray(wide)) * float(jnp.finfo(dtype).eps) / 2
        assert (np.abs(np.asarray(got, np.float32) - wide) <= 1.01 * unit + 1e-4).all()


def lowered(function, *arguments, platform="cpu"):
    """The program for a platform as it is handed to the compiler."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("rows", [1, 6])
def test_programs_for_other_devices_hold_the_plain_product_alone(platform, rows):
    x, weight = normal(0, 1, rows, 8), normal(1, 8, 4)
    text = lowered(jax.grad(lambda x, w: product(x, w).sum(), (0, 1)), x, weight, platform=platform)
    assert text.count("stablehlo.dot_general") == 2
    assert "optimization_barrier" not in text
    assert "reshape" not in text


def test_on_a_cpu_the_gradient_is_held_and_its_products_sum_over_one_axis():
    """With two, XLA would first copy both operands into another order."""
    x, weight = normal(0, 2, 3, 8), normal(1, 8, 4)
    text = lowered(jax.grad(lambda x, w: jnp.sin(product(x, w)).sum(), (0, 1)), x, weight)
    summed = re.findall(r"contracting_dims = \[([\d, ]*)\]", text)
    assert len(summed) == 3
    assert all("," not in axes for axes in summed)
    assert text.count("optimization_barrier") == 2  # forwards and backwards


def test_on_a_cpu_an_activation_is_no_part_of_a_product(monkeypatch):
    """XLA's library of products would read its constants from whole arrays."""
    config = ef.families.gpt(vocab=65, dim=128, layers=1, heads=8, context=32)
    model = filled(config)

    def fused():
        tokens = jnp.zeros((128, 32), jnp.int32)
        text = jax.jit(lambda tokens: model(tokens)).lower(tokens).compile().as_text()
        (part,) = (part for part in text.split("\n\n") if " tanh(" in part)
        return " dot(" in part

    assert not fused()
    monkeypatch.setattr(linear, "product", jnp.matmul)
    assert fused()  # else this test asks for nothing


def test_a_single_row_is_cut_in_pieces_without_copying_the_weight():
    x, weight = normal(0, 1, 1, 256), normal(1, 256, 128)
    program = jax.jit(product).lower(x, weight).compile()
    dots = re.findall(r"= f32\[(\S+?)\]\S* dot\(", program.as_text())
    assert [math.prod(map(int, dot.split(","))) for dot in dots] == [8 * 128]
    assert program.memory_analysis().temp_size_in_bytes < weight.nbytes / 8


def test_a_single_row_of_a_small_type_meets_a_wide_weight_as_several_do():
    weight, rows = normal(1, 16, 8), normal(0, 2, 1, 16).astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        one, several = jax.jit(lambda x, w: (product(x[:1], w), product(x, w)))(rows, weight)
    assert one.dtype == several.dtype == jnp.float32
    np.testing.assert_allclose(one[0], several[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("weights", "reductions"),
    [
        ((PartitionSpec(), PartitionSpec()), 1),
        ((PartitionSpec(None, "model"), PartitionSpec("model")), 3),
    ],
    ids=["data", "data and tensor"],
)
def test_it_asks_for_no_more_communication_than_the_plain_product(weights, reductions):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"))
    rules = (PartitionSpec("data"), *weights)
    arrays = (normal(0, 4, 6, 8), normal(1, 8, 16), normal(2, 16, 8))
    arrays = [
        jax.device_put(a, NamedSharding(mesh, rule)) for a, rule in zip(arrays, rules, strict=True)
    ]

    def communication(multiply):
        def bent(x, up, down):
            return jnp.square(multiply(jnp.tanh(multiply(x, up)), down)).sum()

        text = jax.jit(jax.grad(bent, (0, 1, 2))).lower(*arrays).compile().as_text()
        return sorted(re.findall(r" (all-\w+|reduce-scatter|collective-permute)\(", text))

    found = communication(product)
    assert found == communication(jnp.matmul) == ["all-reduce"] * reductions


def test_every_projection_of_a_model_goes_through_it():
    """Also those of a block of one's own: it is what `Linear` does, with nothing to switch on."""
    part = ef.Linear(8, 4, key=jax.random.key(0))
    text = lowered(lambda x: part(x), normal(0, 2, 3, 8))
    assert "optimization_barrier" in text
    assert eqx.filter_eval_shape(part, normal(0, 2, 3, 8)).shape == (2, 3, 4)
