"""Values inside of a model replaced: by themselves, by nothing, by others, wherever it runs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

import eqxformer as ef
from tests.helpers import models
from tests.helpers.hot import drawn, normal
from tests.helpers.models import close
from tests.inspect.test_capture import CONFIG, MASK, SMALL, TOKENS, run

FRONT = "blocks.2.attention"


@pytest.fixture(scope="module")
def model():
    return models.filled(CONFIG)


@pytest.fixture(scope="module")
def scanned(model):
    return ef.rebuild(model, CONFIG.edit(layout=ef.Scanned(remat="dots_saved")))


@pytest.fixture(scope="module")
def small():
    return models.filled(SMALL)


def same(x):
    return x


def twice(x):
    return 2.0 * x


def test_values_that_take_their_own_place_change_nothing(small):
    names = [name for name in ef.sites(small) if not name.endswith("tokens.input")]
    changed = ef.patch(small, dict.fromkeys([*names, "blocks.*.attention.weights[1]"], same))
    assert type(changed).__name__ == "DecoderLM"
    close(run(changed, TOKENS, mask=MASK), run(small, TOKENS, mask=MASK), 1e-5)


def test_a_head_without_a_result_is_that_of_a_twin_whose_output_projection_ignores_it(
    model, scanned
):
    def blind(weight):
        return weight.at[18:24].set(0.0)  # where the fourth of heads of six numbers enters

    twin = eqx.tree_at(lambda m: m.blocks[2].attention.out.weight, model, replace_fn=blind)
    without = ef.patch(scanned, {f"{FRONT}.heads[3]": jnp.zeros_like})
    close(run(without, TOKENS, mask=MASK), run(twin, TOKENS, mask=MASK), 1e-5)


def test_heads_of_changed_weights_are_those_of_a_slow_twin(model):
    part = model.blocks[0].attention
    x = normal(0, 5, 12)

    def backwards(weights):
        return weights[..., ::-1]

    changed = ef.patch(part, {"weights[2]": backwards})
    look = ef.capture(changed, "weights", "values", "heads")
    y, seen = run(look, x, mask=ef.Causal())
    weights, values = (np.asarray(seen[name], np.float64) for name in ("weights", "values"))
    close(weights[2], np.asarray(run(part.weights, x, mask=ef.Causal()))[2, :, ::-1])
    heads = np.stack([weights[h] @ values[h // 2] for h in range(4)])
    close(seen["heads"], heads)
    close(y, heads.transpose(1, 0, 2).reshape(5, 24) @ np.asarray(part.out.weight))


def test_the_gradient_of_a_patched_value_is_that_of_the_rest_of_the_model(model, scanned):
    weight = normal(0, 2, 5, 11)

    first, second, last = model.blocks

    def rest(x):
        x = model.norm(last(x, mask=ef.Causal()))
        return (model.logits(x) * weight).sum()

    def of(change):
        changed = ef.patch(scanned, {"blocks.1.residual": lambda x: x + change})
        return (changed(TOKENS) * weight).sum()

    def directly(x):
        x = second(first(x, mask=ef.Causal()), mask=ef.Causal())
        return jax.grad(rest)(x)

    expected = run(directly, model.embedding(TOKENS))
    close(run(jax.grad(of), jnp.zeros((2, 5, 12))), expected)
    assert np.abs(expected).max() > 0.1


def test_layers_of_one_scan_are_patched_each_with_its_own(model, scanned):
    random = np.random.default_rng(0)
    added = [jnp.asarray(random.standard_normal(12), jnp.float32) for _ in range(3)]
    changes = {f"blocks.{i}.residual": eqx.Partial(_add, x) for i, x in enumerate(added)}
    together = ef.patch(scanned, changes)
    assert together.blocks.sizes == (3,)
    one, other = (run(each, TOKENS, mask=MASK) for each in (together, ef.patch(model, changes)))
    close(one, other, 1e-5)


def test_single_layers_of_several_scanned_models_are_named_within_the_vmap(scanned):
    several = jax.tree.map(
        lambda a, b: jnp.stack([a, b]), scanned, models.filled(scanned.config, 1)
    )
    changes = {"blocks.1.residual": jnp.zeros_like}
    message = (
        "`blocks.groups.0.attention.query.weight` must have the axes `layers dim heads*head_dim` "
        "where single layers are named; got the shape (2, 3, 12, 24), as of several models in one. "
        "Put the vmap around `patch` or `capture`."
    )
    for make in (lambda: ef.patch(several, changes), lambda: ef.capture(several, *changes)):
        with pytest.raises(ValueError) as error:
            make()
        assert str(error.value) == message
    mapped = eqx.filter_vmap(lambda model: ef.patch(model, changes)(TOKENS))
    both = run(mapped, several)
    close(both[0], run(ef.patch(scanned, changes), TOKENS), 1e-5)
    together = ef.patch(several, {"blocks.*.residual": jnp.zeros_like})  # of all layers alike
    one = eqx.filter_vmap(lambda model: model(TOKENS))
    assert not np.allclose(run(one, together), run(one, several), atol=1e-2)


def _add(vector, x):
    return x + jnp.broadcast_to(vector, x.shape)


def test_what_was_captured_elsewhere_takes_the_place_of_a_value(small):
    clean, corrupted = TOKENS, (TOKENS + 1) % 11
    expected, seen = run(ef.capture(small, "blocks.0.residual"), clean)
    patched = ef.patch(small, seen)
    close(run(patched, corrupted), expected)


def test_a_generation_is_steered_at_each_of_its_steps(small):
    vector = 3.0 * normal(1, 12)
    steered = ef.patch(small, {"blocks.0.residual": eqx.Partial(_add, vector)})
    made = ef.generate(steered, [[1, 2, 3]], max_new_tokens=3)
    tokens, step = [1, 2, 3, 0, 0, 0], eqx.filter_jit(steered)
    for i in range(3, 6):
        tokens[i] = int(np.asarray(step(jnp.array([tokens])))[0, i - 1].argmax())
    assert made == [tokens[3:]]
    plain = run(small, jnp.array([[1, 2, 3, 0, 0, 0]]))
    assert float(jnp.abs(step(jnp.array([[1, 2, 3, 0, 0, 0]])) - plain).max()) > 0.1


def test_other_numbers_in_a_patch_compile_nothing_anew(model):
    traces = []

    @eqx.filter_jit
    def hidden(model):
        traces.append(1)
        return model.embedding(TOKENS)

    for seed in range(2):
        vector = jnp.full(12, float(seed))
        y = hidden(ef.patch(model, {"embedding": eqx.Partial(_add, vector)}))
        close(y - model.embedding(TOKENS), jnp.full((2, 5, 12), float(seed)))
    assert len(traces) == 1


def test_changes_of_one_value_follow_one_another_and_are_captured_after(model):
    part = model.blocks[0].feed_forward
    x = jnp.ones((3, 12))
    changed = ef.patch(ef.patch(part, {"up": twice}), {"up": lambda x: x + 1.0, "up.input": twice})
    _, seen = ef.capture(changed, "up", "up.input")(x)
    close(seen["up"], 4.0 * part.up(x) + 1.0)
    close(seen["up.input"], 2.0 * x)


def test_dropped_weights_are_the_same_where_they_are_looked_at_or_replaced():
    part, x = drawn(ef.Attention.Config(heads=2, dropout=0.5), 12), normal(1, 5, 12)
    expected = run(part, x, key=jax.random.key(2))
    close(run(ef.capture(part, "weights"), x, key=jax.random.key(2))[0], expected)
    close(run(ef.patch(part, {"weights": same}), x, key=jax.random.key(2)), expected)


def test_a_value_of_another_shape_or_type_is_refused_by_name(model):
    part = model.blocks[0].feed_forward
    for change, got in {
        (lambda x: x[..., :2]): r"float32\[3, 2\]",
        (lambda x: x.astype(jnp.bfloat16)): r"bfloat16\[3, 7\]",
        (lambda x: 1.0): "float",
    }.items():
        with pytest.raises(ValueError, match=rf"place of `up` must be float32\[3, 7\].*got {got}"):
            ef.patch(part, {"up": change})(jnp.ones((3, 12)))
    with pytest.raises(ValueError, match="`up` must be replaced by a function of it, or by an arr"):
        ef.patch(part, {"up": 0.0})


def test_a_patched_model_is_not_saved_as_if_it_were_plain(scanned, tmp_path):
    patched = ef.patch(scanned, {"blocks.1.attention.heads[0]": twice, "blocks.1.residual": twice})
    for save in (ef.save, ef.save_pretrained):
        with pytest.raises(ValueError, match="`blocks.1` is patched, .*`without_patches`"):
            save(patched, tmp_path / "model")
    ef.save(ef.without_patches(patched), tmp_path / "model")
    assert eqx.tree_equal(ef.load(tmp_path / "model"), scanned)


def _calls(name):
    """A feed-forward of one's own by `run` and `run_valid`, of which one of that name calls one."""

    class Own(ef.FeedForward):
        class Config(ef.FeedForward.Config):
            def build(self, dim, *, key):
                return Own(ef.Linear(dim, dim, key=key))

        map: ef.Linear

        def run(self, x, *, key=None):
            if name == "run":
                return self.run_valid(x, None, key=key)
            return self.map(x), None

        def run_valid(self, x, valid, *, key=None):
            if name == "run_valid, rematerialised":
                return eqx.filter_checkpoint(Own.run)(self, x)
            return self.run(x) if name == "run_valid" else (self.map(x), None)

    return Own


@pytest.mark.parametrize("caller", ["run", "run_valid", "run_valid, rematerialised", "neither"])
def test_a_feed_forward_of_ones_own_is_tapped_once_by_whichever_method_it_is_called(caller):
    own = _calls(caller)
    config = models.decoder(models.block({}, feed_forward=own.Config()))
    plain, path = models.filled(config), "blocks.0.feed_forward"
    ids = models.tokens(1, 3)
    _, seen = run(ef.capture(plain, path, f"{path}.input"), ids)
    close(seen[path], plain.blocks[0].feed_forward.map(seen[f"{path}.input"]))
    maps = plain.blocks[0].feed_forward.map
    doubled = eqx.tree_at(lambda m: m.blocks[0].feed_forward.map, plain, jax.tree.map(twice, maps))
    close(run(ef.patch(plain, {path: twice}), ids), run(doubled, ids))
    part, x = ef.patch(plain, {f"{path}.input": twice}).blocks[0].feed_forward, jnp.ones((3, 12))
    for each in (part(x), part.run(x)[0], part.run_valid(x, None)[0]):
        close(each, maps(2.0 * x))


class Gain(ef.FeedForward):
    """A feed-forward of one's own whose arrays may have any number of axes."""

    class Config(ef.FeedForward.Config):
        def build(self, dim, *, key):
            return Gain(jnp.ones((dim, dim)), jnp.ones((2, 1, dim)))

    map: Float[Array, "..."]
    gains: Float[Array, "*any dim"]

    def run(self, x, *, key=None):
        return (x * jnp.broadcast_to(self.gains.sum((0, 1)), x.shape)) @ self.map, None


def test_single_layers_of_a_scan_may_have_arrays_of_any_number_of_axes():
    layers = [models.block({}, feed_forward=Gain.Config())] * 3
    scanned = models.filled(models.decoder(*layers, layout=ef.Scanned()))
    patched = ef.patch(scanned, {"blocks.1.feed_forward": twice})
    alone = ef.rebuild(scanned, scanned.config.edit(layout=ef.Unrolled()))
    ids = models.tokens(1, 3)
    close(run(patched, ids), run(ef.patch(alone, {"blocks.1.feed_forward": twice}), ids), 1e-5)
