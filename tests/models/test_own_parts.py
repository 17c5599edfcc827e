"""A researcher's parts, written outside the library, keep caching, scanning, saving, generation."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int, PRNGKeyArray

import eqxformer as ef
from tests.helpers.compare import same_bits
from tests.helpers.models import close, decoder, extend, filled, logits, tokens
from tests.helpers.programs import primitives


class Centre(ef.Norm):
    """A norm of one's own: `(x - mean) * weight`."""

    class Config(ef.Norm.Config):
        """No hyperparameters."""

        def build(self, dim: int) -> "Centre":
            return Centre(jnp.ones(dim))

    weight: Float[Array, " dim"]

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return (x - x.mean(-1, keepdims=True)) * jnp.broadcast_to(self.weight, x.shape)


class Bilinear(ef.FeedForward):
    """A feed-forward of one's own: `out((left x) * (right x))`."""

    class Config(ef.FeedForward.Config):
        """The inner width."""

        hidden: int

        def build(self, dim: int, *, key: PRNGKeyArray) -> "Bilinear":
            left, right, out = jax.random.split(key, 3)
            up = ef.Linear.Config(bias=False)
            return Bilinear(
                up.build(dim, self.hidden, key=left),
                up.build(dim, self.hidden, key=right),
                up.build(self.hidden, dim, key=out),
            )

    left: ef.Linear
    right: ef.Linear
    out: ef.Linear

    def run(self, x: Float[Array, "*batch dim"], *, key: PRNGKeyArray | None = None):
        return self.out(self.left(x) * self.right(x)), None


class Nearby(ef.PositionBias):
    """A bias of one's own: a learned number for the token before, for each head."""

    class Config(ef.PositionBias.Config):
        """No hyperparameters."""

        def build(self, heads: int, *, key: PRNGKeyArray) -> "Nearby":
            return Nearby(jax.random.normal(key, (heads,)))

    weight: Float[Array, " heads"]

    def __call__(
        self, queries: Int[Array, "*#batch seq"], keys: Int[Array, "*#batch keys"]
    ) -> Float[Array, "*#batch heads seq keys"]:
        shape = jnp.broadcast_shapes(queries.shape[:-1], keys.shape[:-1])
        shape = (*shape, 1, queries.shape[-1], keys.shape[-1])
        before = jnp.broadcast_to(queries[..., None, :, None], shape) == jnp.broadcast_to(
            keys[..., None, None, :] + 1, shape
        )
        return jnp.where(before, self.weight[:, None, None], 0.0)


class RunningMean(eqx.Module):
    """What a `MeanBlock` remembers: the sum of all tokens so far, and how many they were."""

    total: Float[Array, "*batch dim"]
    count: Float[Array, "*batch"]


class MeanBlock(ef.AbstractBlock):
    """A block without attention: `x + mix(mean of all real tokens up to here)`."""

    class Config(ef.AbstractBlock.Config):
        """The projection of the mean."""

        mix: ef.Linear.Config = ef.Linear.Config()

        def build(self, dim: int, *, source_dim: int | None = None, key: PRNGKeyArray):
            return MeanBlock(self.mix.build(dim, dim, key=key))

    mix: ef.Linear

    def run(
        self,
        x: Float[Array, "*batch seq dim"],
        context: ef.Context,
        *,
        cache: RunningMean | None = None,
        key: PRNGKeyArray | None = None,
    ):
        past = self.init_cache(x.shape[:-2], 0, dim=x.shape[-1]) if cache is None else cache
        valid = ef.valid_keys(context.mask)
        one = jnp.ones(x.shape[:-1], x.dtype)
        real = one if valid is None else jnp.broadcast_to(valid, one.shape).astype(x.dtype)
        total = past.total[..., None, :] + jnp.cumsum(x * real[..., None], axis=-2)
        count = past.count[..., None] + jnp.cumsum(real, axis=-1)
        y = x + self.mix(total / jnp.maximum(count, 1.0)[..., None])
        new = RunningMean(total[..., -1, :], count[..., -1])
        return y, None if cache is None else new, None

    def init_cache(self, batch, slots, *, source=None, dtype=jnp.float32, dim: int | None = None):
        dim = self.mix.weight.shape[-2] if dim is None else dim
        return RunningMean(jnp.zeros((*batch, dim), dtype), jnp.zeros(batch, dtype))


class Couples(ef.Layout):
    """A layout of one's own: pairs of equal neighbours stacked, the rest alone."""

    def groups(self, runs):
        found = []
        for config, count in runs:
            found += [(config, 2)] * (count // 2) + [(config, None)] * (count % 2)
        return found


ATTENDING = ef.Block.Config(
    ef.Attention.Config(heads=2, bias=Nearby.Config()),
    Bilinear.Config(hidden=5),
    attention_residual=ef.pre_norm(Centre.Config()),
    feed_forward_residual=ef.pre_norm(Centre.Config()),
)
CONFIG = decoder(*[ATTENDING] * 2, *[MeanBlock.Config()] * 3, dim=6, norm=Centre.Config())
LAYOUTS = [ef.Unrolled(), ef.Scanned(remat="nothing_saved"), Couples()]


@pytest.fixture(scope="module", params=LAYOUTS, ids=str)
def model(request):
    return ef.rebuild(filled(CONFIG), CONFIG.edit(layout=request.param))


def test_they_run_and_are_cached_alike_in_every_layout(model):
    ids = tokens(2, 5)
    expected = logits(ef.rebuild(model, CONFIG), ids)
    close(logits(model, ids), expected)
    cache, steps = model.init_cache((2,), 5), []
    for chunk in (ids[:, :3], ids[:, 3:4], ids[:, 4:]):
        out, cache = extend(model, chunk, cache)
        steps.append(out)
    close(np.concatenate(steps, axis=1), expected)


def test_generation_with_them_is_the_argmax_of_their_logits(model):
    ids = tokens(2, 3)
    made = np.asarray(ef.generate(model, ids, max_new_tokens=2))
    out = np.asarray(logits(model, jax.device_put(np.concatenate([ids, made], axis=1))))
    np.testing.assert_array_equal(made, np.argmax(out[:, 2:4], axis=-1))
    close(ef.prefill(model, ids, slots=8).logits, out[:, 2])


def test_each_of_them_gets_a_gradient(model):
    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(m):
        return jnp.square(m(tokens(2, 5)) - 1.0).sum()

    for path, found in ef.named_arrays(gradient(model)).items():
        if not path.endswith("key.bias"):
            assert np.abs(found).max() > 1e-6, path


def test_they_are_saved_loaded_printed_and_counted(model, tmp_path):
    ef.save(model, tmp_path)
    assert same_bits(ef.load(tmp_path), model)
    assert ef.Config.from_json(model.config.to_json()) == model.config
    assert "MeanBlock()" in str(model.config)
    assert re.search(r"^blocks\.2\.\.4 .*\n  mix\.weight ", ef.table(model), re.MULTILINE)


def test_their_layout_groups_as_it_says():
    assert ef.shapes(CONFIG.edit(layout=Couples())).blocks.sizes == (2, 2, None)


def test_a_layout_that_loses_a_block_is_refused():
    class Lossy(ef.Layout):
        def groups(self, runs):
            return [(config, None) for config, _ in runs]

    with pytest.raises(ValueError, match="`groups` of Lossy must hold the 5 blocks"):
        ef.shapes(CONFIG.edit(layout=Lossy()))


@pytest.mark.parametrize(
    ("base", "sizes"),
    [
        (ef.FeedForward, (3,)),
        (ef.PositionBias, (3,)),
        (ef.Positions, (3,)),
        (ef.AbstractBlock, (3,)),
        (ef.TokenHead, (3, 5)),
    ],
)
def test_a_part_without_a_build_says_what_is_missing(base, sizes):
    with pytest.raises(NotImplementedError, match="must define `build`"):
        base.Config().build(*sizes, key=jax.random.key(0))
    with pytest.raises(NotImplementedError, match="Norm must define `build`"):
        ef.Norm.Config().build(3)


def test_remat_of_a_users_blocks_is_in_the_program():
    config = CONFIG.edit(layout=ef.Scanned(remat="dots_saved"))
    found = primitives(
        lambda m, ids: eqx.filter_grad(lambda m: m(ids).sum())(m), ef.shapes(config), tokens(1, 3)
    )
    assert found["checkpoint"] + found["remat2"] > 0
