"""Values from inside of a model are what its parts compute, and taking them changes nothing."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.layers.taps import collecting
from eqxformer.traces import apart
from tests.helpers import models
from tests.helpers.compare import same_bits
from tests.helpers.hot import drawn, normal
from tests.helpers.models import close

CONFIG = ef.families.llama(vocab=11, dim=12, layers=3, heads=4, kv_heads=2, head_dim=6, hidden=7)
SMALL = CONFIG.edit(blocks=CONFIG.blocks[:1])
TOKENS = models.tokens(2, 5, vocab=11)
MASK = ef.Padding(jnp.array([[False, False, True, True, True], [True, True, True, True, False]]))
NAMES = ("blocks.*.residual", "blocks.2.attention.weights", "blocks.2.attention.heads[3]")


@pytest.fixture(scope="module")
def model():
    return models.filled(CONFIG)


@pytest.fixture(scope="module")
def small():
    return models.filled(SMALL)


@pytest.fixture(scope="module")
def scanned(model):
    return ef.rebuild(model, CONFIG.edit(layout=ef.Scanned(remat="nothing_saved")))


@eqx.filter_jit
def run(function, *args, **kwargs):
    return function(*args, **kwargs)


@pytest.fixture(scope="module")
def plain(model):
    return run(model, TOKENS, mask=MASK)


@pytest.fixture(scope="module")
def everything(model):
    names = ("**", "**.input", "**.queries", "**.keys", "**.values", "**.weights", "**.heads")
    return run(ef.capture(model, *names), TOKENS, mask=MASK)


def test_a_run_of_which_everything_is_captured_gives_what_a_plain_run_gives(plain, everything):
    np.testing.assert_array_equal(everything[0], plain)


def test_all_that_has_a_name_is_captured_in_order_of_execution(model, everything):
    names = list(everything[1])
    missing = set(ef.sites(model)).difference(names)
    assert {name.split(".")[-1] for name in missing} == {"residual", "scores"}  # not asked for
    order = [f"blocks.{i}{what}" for i in range(3) for what in (".input", ".attention", "")]
    assert [name for name in names if name in order] == order


def test_a_captured_value_is_what_the_part_computes_of_its_captured_input(model, everything):
    seen = everything[1]
    block, front = model.blocks[2], "blocks.2"
    places = jnp.array([[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]])  # counted over real tokens
    attention = run(
        block.attention,
        seen[f"{front}.attention.input"],
        mask=ef.Causal() & MASK,
        positions=places,
    )
    close(seen[f"{front}.attention"], attention)
    fed = run(block.feed_forward, seen[f"{front}.feed_forward.input"])
    close(seen[f"{front}.feed_forward"], fed)
    close(seen["norm"], model.norm(seen["blocks.2"]))
    np.testing.assert_array_equal(seen["blocks.1"], seen["blocks.2.input"])


def test_weights_and_heads_are_those_of_a_slow_twin(everything):
    one = {what: everything[1][f"blocks.1.attention.{what}"] for what in ("queries", "keys")}
    one |= {what: everything[1][f"blocks.1.attention.{what}"] for what in ("values", "weights")}
    one = {what: np.asarray(value, np.float64) for what, value in one.items()}
    heads, valid = everything[1]["blocks.1.attention.heads"], np.asarray(MASK.valid)
    for row, head, query in np.ndindex(2, 4, 5):
        allowed = valid[row] & (np.arange(5) <= query)
        scores = one["queries"][row, head, query] @ one["keys"][row, head // 2].T / 6**0.5
        powers = np.where(allowed, np.exp(scores), 0.0)
        weights = powers / max(powers.sum(), 1e-300)
        close(one["weights"][row, head, query], weights)
        close(heads[row, head, query], weights @ one["values"][row, head // 2])


def test_scanned_and_rematerialised_layers_give_what_layers_one_by_one_give(
    scanned, plain, everything
):
    look = ef.capture(scanned, *NAMES)
    assert look.model.blocks.sizes == (2, None)  # the named layer runs by itself
    logits, seen = run(look, TOKENS, mask=MASK)
    close(logits, plain, 1e-6)
    for name in [name for name in seen if "[" not in name and name not in everything[1]]:
        close(seen[name], everything[1][name.removesuffix(".residual")])
    close(seen["blocks.2.attention.weights"], everything[1]["blocks.2.attention.weights"])
    close(seen[NAMES[2]], everything[1]["blocks.2.attention.heads"][:, 3])
    assert seen["blocks.*.residual"].shape == (3, 2, 5, 12)


def test_layers_of_which_the_same_is_asked_stay_in_one_scan(scanned):
    assert ef.capture(scanned, "blocks.*.residual", "**.heads[1]").model.blocks.sizes == (3,)
    changes = (jnp.zeros_like, jnp.zeros_like, jnp.ones_like)
    some = {f"blocks.{i}.residual": change for i, change in enumerate(changes)}
    assert ef.patch(scanned, some).blocks.sizes == (2, None)


def test_a_value_under_vmap_is_that_of_the_batch(model, everything):
    look = ef.capture(model, "blocks.2.residual")
    _, seen = run(jax.vmap(look), TOKENS, mask=MASK)
    close(seen["blocks.2.residual"], everything[1]["blocks.2"])


def test_what_is_captured_can_be_differentiated(small):
    def squared(model):
        look = ef.capture(model, "blocks.0.residual", call=type(model).run, keep=jnp.square)
        return look(TOKENS)[1]["blocks.0.residual"].sum()

    def direct(model):
        return jnp.square(model.blocks[0](model.embedding(TOKENS), mask=ef.Causal())).sum()

    one, other = (run(eqx.filter_grad(f), small) for f in (squared, direct))
    jax.tree.map(lambda a, b: close(a, b, 1e-4), one, other)
    assert float(jnp.abs(one.blocks[0].attention.value.weight).max()) > 0.1


def test_with_a_cache_values_are_those_of_the_newest_tokens(model, everything):
    look = ef.capture(model, *NAMES[:2], call=ef.DecoderLM.extend)
    cache = model.init_cache((2,), slots=8)
    (_, cache), first = run(look, TOKENS[:, :3], cache, mask=ef.Padding(MASK.valid[:, :3]))
    (_, cache), rest = run(look, TOKENS[:, 3:], cache, mask=ef.Padding(MASK.valid[:, 3:]))
    assert rest["blocks.2.attention.weights"].shape == (2, 4, 2, 8)
    both = np.concatenate([first["blocks.2.residual"], rest["blocks.2.residual"]], axis=1)
    real, whole = np.asarray(MASK.valid), {k: np.asarray(v) for k, v in everything[1].items()}
    close(both[real], whole["blocks.2"][real])
    weights = np.asarray(rest["blocks.2.attention.weights"])
    close(weights[1, :, 0, :4], whole[NAMES[1]][1, :, 3, :4])


def test_a_cache_of_layers_in_other_groups_is_refused(scanned):
    look = ef.capture(scanned, "blocks.1.residual", call=ef.DecoderLM.extend)
    with pytest.raises(
        ValueError, match=r"groups of \(3,\).*\(None, None, None\).*own `init_cache`"
    ):
        look(TOKENS, scanned.init_cache((2,), slots=8))


def test_cross_attention_is_captured_and_looks_at_no_padding():
    seq2seq = models.model("transformer")
    source = ef.Padding(jnp.array([[True, True, False], [True, True, True]]))
    names = ("decoder.blocks.1.cross_attention.weights", "encoder.blocks.*.residual")
    look = ef.capture(seq2seq, *names)
    _, seen = run(look, models.tokens(2, 3), models.tokens(2, 4, vocab=11), source_mask=source)
    weights = seen[names[0]]
    assert weights.shape == (2, 3, 4, 3)
    assert seen[names[1]].shape == (2, 2, 3, 8)
    close(weights.sum(-1), jnp.ones((2, 3, 4)))
    assert float(jnp.abs(weights[0, ..., 2]).max()) == 0.0


@pytest.mark.parametrize("name", ["experts and sinks", "t5"])
def test_every_name_of_a_call_is_within_reach(name):
    model = models.model(name)
    given = (TOKENS,) if name in models.DECODERS else (TOKENS, TOKENS[:, :3])
    asked = [site for site in ef.sites(model) if not site.startswith("encoder.pooling")]
    _, seen = eqx.filter_eval_shape(ef.capture(model, *asked), *given)
    assert set(seen) == set(asked)
    if name == "t5":  # of the table that both sides share, what each of them reads
        assert [x.shape for x in seen["encoder.embedding.tokens"]] == [(2, 5, 10), (2, 3, 10)]


def test_a_router_tells_the_experts_with_the_largest_scores():
    experts = ef.Experts.Config(count=5, top=2, expert=ef.MLP.Config(hidden=3))
    part, x = drawn(experts, 4), normal(1, 2, 3, 4)
    _, seen = run(ef.capture(part, "router", "chosen_experts", "chosen_weights"), x)
    largest = np.argsort(-np.asarray(seen["router"]), axis=-1)[:, :2]
    np.testing.assert_array_equal(seen["chosen_experts"], largest.reshape(2, 3, 2))
    close(np.asarray(seen["chosen_weights"]).sum(-1), np.ones((2, 3)))
    other = ef.patch(part, {"chosen_experts": jnp.zeros_like, "chosen_weights": jnp.ones_like})
    first = jax.tree.map(lambda a: a[0], part.experts)
    close(run(other, x), 2.0 * run(first, x))


def test_the_losses_of_a_router_that_is_looked_at_leave_out_padding_as_ever():
    experts = ef.Experts.Config(count=3, top=2, expert=ef.MLP.Config(hidden=5))
    model = models.filled(models.decoder(models.block({}, feed_forward=experts)))
    name = "blocks.0.feed_forward"
    hidden, _, losses = run(ef.DecoderLM.run, model, TOKENS, mask=MASK)
    _, _, every = run(ef.DecoderLM.run, model, TOKENS)
    assert abs(float(losses.z - every.z)) > 0.01
    look = ef.capture(model, name, f"{name}.input", f"{name}.router", call=ef.DecoderLM.run)
    (hidden2, _, losses2), seen = run(look, TOKENS, mask=MASK)
    assert same_bits((hidden2, losses2), (hidden, losses))
    close(seen[name], run(model.blocks[0].feed_forward, seen[f"{name}.input"]))
    patched = ef.patch(model, {name: jnp.zeros_like, f"{name}.input": lambda x: x})
    hidden3, _, losses3 = run(ef.DecoderLM.run, patched, TOKENS, mask=MASK)
    close((losses3.load_balance, losses3.z), (losses.load_balance, losses.z))
    assert not np.allclose(hidden3, hidden, atol=1e-2)


def test_layers_that_run_several_times_give_a_value_each_time():
    part = ef.Repeated.Config(blocks=(CONFIG.blocks[0],), times=3)
    model = models.filled(ef.DecoderLM.Config(vocab=11, dim=12, blocks=(part,)))
    _, seen = run(ef.capture(model, "blocks.0.blocks.0.residual", "blocks.0.residual"), TOKENS)
    assert seen["blocks.0.blocks.0.residual"].shape == (3, 2, 5, 12)
    np.testing.assert_array_equal(seen["blocks.0.blocks.0.residual"][2], seen["blocks.0.residual"])


class Cubed(ef.FeedForward):
    """A part of somebody's own, with a site."""

    sites: ClassVar[tuple[str, ...]] = ("cubes",)

    linear: ef.Linear

    def run(self, x, *, key=None):
        return self.linear(ef.tap(self, "cubes", x**3)), None


def test_parts_of_ones_own_name_sites_of_their_own():
    part = Cubed(ef.Linear(3, 3, key=jax.random.key(0)))
    assert ef.sites(part) == ("cubes", "linear", "linear.input")
    y, seen = ef.capture(part, "cubes")(2.0 * jnp.ones((1, 3)))
    np.testing.assert_array_equal(seen["cubes"], 8.0 * jnp.ones((1, 3)))
    np.testing.assert_array_equal(y, part(2.0 * jnp.ones((1, 3))))


def test_a_plain_model_is_the_same_program_while_somebody_captures(model, scanned):
    for each in (model, scanned):
        with apart():
            alone = str(eqx.filter_make_jaxpr(each)(TOKENS, mask=MASK)[0])
        with collecting():
            assert str(eqx.filter_make_jaxpr(each)(TOKENS, mask=MASK)[0]) == alone
        looked_at = ef.capture(each, "blocks.1.residual")
        assert str(eqx.filter_make_jaxpr(looked_at)(TOKENS, mask=MASK)[0]) != alone


def test_names_that_nothing_has_are_answered_with_those_that_are_close(model):
    with pytest.raises(ValueError, match=r"Close are `blocks.1.attention.weights`.*sites\(model\)"):
        ef.capture(model, "blocks.1.attention.wieghts")
    with pytest.raises(ValueError, match="names nothing in the model.*`blocks.*.residual`"):
        ef.patch(model, {"block.*.residual": jnp.zeros_like})
    with pytest.raises(ValueError, match="Only values of attention have heads"):
        ef.capture(model, "blocks.0.feed_forward[1]")
    with pytest.raises(ValueError, match="at least one"):
        ef.capture(model)
    with pytest.raises(ValueError, match=r"`blocks.0.attention.keys\[2\]` does not .* 2 heads"):
        eqx.filter_eval_shape(ef.capture(model, "blocks.0.attention.keys[2]"), TOKENS)


def test_what_is_not_computed_or_cannot_be_brought_out_is_an_error_that_says_so(model):
    look = ef.capture(model, "embedding", "norm", call=lambda model: model.embedding(TOKENS))
    with pytest.raises(ValueError, match="`norm` is not computed by this call"):
        look()
    inside = ef.capture(model, "embedding", call=eqx.filter_jit(lambda m: m.embedding(TOKENS)))
    with pytest.raises(ValueError, match="`embedding` is computed under .* without `jit`"):
        jax.eval_shape(lambda: inside()[0])
    for _ in range(2):  # also when the program is there already
        with pytest.raises(ValueError, match="`embedding` is .*computed"):
            run(inside)
    _, seen = ef.capture(model, "embedding", call=lambda model: model.embedding(TOKENS))()
    with pytest.raises(KeyError, match=r"`embeding` was not captured. Did you mean `embedding`"):
        seen["embeding"]


@pytest.mark.parametrize("layout", [ef.Unrolled(), ef.Scanned()])
def test_norms_of_each_head_are_captured_and_replaced_with_all_heads_together(layout):
    config = CONFIG.edit(blocks=CONFIG.blocks[:2], layout=layout)
    norms = {"qk_norm": ef.LayerNorm.Config(), "qk_norm_over": "each_head"}
    model = models.filled(config.edit("blocks.*.attention", rotary=None, **norms))
    names = ("blocks.1.attention.query_norm.input", "blocks.1.attention.query_norm")
    expected = run(model, TOKENS)
    logits, seen = run(ef.capture(model, *names, "blocks.1.attention.queries"), TOKENS)
    np.testing.assert_array_equal(logits, expected)
    x, y = (seen[name] for name in names)
    assert x.shape == y.shape == (2, 4, 5, 6)
    norm = tuple(model.blocks)[1].attention.query_norm
    for head in range(4):
        one = np.asarray(x[:, head])
        centred = one - one.mean(-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(-1, keepdims=True) + norm.config.eps)
        weight, bias = (np.asarray(each[head]) for each in (norm.weight, norm.bias))
        close(y[:, head], centred / spread * weight + bias)
    close(seen["blocks.1.attention.queries"], y)
    vector = jnp.arange(6.0)
    patched = ef.patch(model, {names[1]: eqx.Partial(_add, vector)})
    _, again = run(ef.capture(patched, "blocks.1.attention.queries"), TOKENS)
    close(again["blocks.1.attention.queries"], _add(vector, y))


def _add(vector, x):
    return x + jnp.broadcast_to(vector, x.shape)
