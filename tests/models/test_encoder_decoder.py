"""Encoder-decoders: equal to their twins, blind to padding of the source, the same with a cache."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers import twins
from tests.helpers.models import (
    SEQ2SEQ,
    VOCAB,
    block,
    close,
    decoder,
    extend,
    filled,
    logits,
    model,
    tokens,
)

ROWS, KEYS, SEQ = 3, 5, 6
EVERY = pytest.mark.parametrize("name", SEQ2SEQ)


def _target(name):
    return tokens(ROWS, SEQ, seed=1, vocab=SEQ2SEQ[name].decoder.vocab)


def _run(name, source, target, valid=None):
    """The logits; all tests of a family share this one compiled program."""
    valid = np.ones((ROWS, KEYS), bool) if valid is None else valid
    mask = ef.Padding(jnp.asarray(valid))
    return np.asarray(logits(model(name), jnp.asarray(source), target=target, source_mask=mask))


@EVERY
def test_a_family_equals_its_twin(name):
    source, target = tokens(ROWS, KEYS), _target(name)
    plain = twins.plain(model(name))
    expected = twins.encoder_decoder(plain, np.asarray(source[0]), np.asarray(target[0]))
    close(_run(name, source, target)[0], expected, 1e-4)


@EVERY
def test_the_target_is_causal_and_sees_the_whole_source(name):
    source, target = np.array(tokens(ROWS, KEYS)), np.array(_target(name))
    before = _run(name, source, jnp.asarray(target))
    target[:, 3] = (target[:, 3] + 1) % SEQ2SEQ[name].decoder.vocab
    after = _run(name, source, jnp.asarray(target))
    np.testing.assert_array_equal(after[:, :3], before[:, :3])
    assert (after[:, 3] != before[:, 3]).any(-1).all()
    source[:, -1] = (source[:, -1] + 1) % SEQ2SEQ[name].encoder.vocab
    assert (_run(name, source, _target(name))[:, 0] != before[:, 0]).any(-1).all()


@EVERY
def test_padding_of_the_source_on_either_side_gives_the_logits_of_the_text_alone(name):
    text, length = np.asarray(tokens(3)), 3
    source, valid = np.full((ROWS, KEYS), -1), np.zeros((ROWS, KEYS), bool)
    source[0, :length], valid[0, :length] = text, True
    source[1, -length:], valid[1, -length:] = text, True
    source[2], valid[2] = np.asarray(tokens(KEYS)), True
    target = jnp.broadcast_to(_target(name)[:1], (ROWS, SEQ))
    out = _run(name, source, target, valid)
    plain = twins.plain(model(name))
    close(out[0], twins.encoder_decoder(plain, text, np.asarray(target[0])), 1e-4)
    close(out[1], out[0])


@pytest.mark.parametrize(
    ("name", "layout"), [("transformer", None), ("t5", ef.Scanned()), ("widths", None)]
)
def test_a_source_remembered_once_gives_the_logits_of_every_chunking(name, layout):
    valid = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]], bool)
    source, target = np.where(valid, tokens(ROWS, KEYS), -1), _target(name)
    built, mask = model(name, layout), ef.Padding(jnp.asarray(valid))
    init = eqx.filter_jit(lambda m, source, mask: m.init_cache(source, SEQ, source_mask=mask))
    cache, steps = init(built, jnp.asarray(source), mask), []
    for ids in (target[:, :4], target[:, 4:5], target[:, 5:]):
        out, cache = extend(built, ids, cache, source_mask=mask)
        steps.append(out)
    close(jnp.concatenate(steps, axis=1), _run(name, source, target, valid))


init = eqx.filter_jit(lambda model, source: model.init_cache(source, SEQ))


@pytest.mark.parametrize("layout", [None, ef.Scanned()], ids=["unrolled", "scanned"])
@pytest.mark.parametrize(
    "mask", [ef.Causal() & ef.Window(1, 0), ef.Prefix(2)], ids=["window", "prefix"]
)
def test_a_cross_mask_by_places_gives_the_logits_of_every_chunking(mask, layout):
    source, target = tokens(ROWS, KEYS), _target("transformer")
    built, steps = model("transformer", layout), []
    cache = init(built, source)
    for begin, end in ((0, 2), (2, 4), (4, 5), (5, 6)):
        out, cache = extend(built, target[:, begin:end], cache, cross_mask=mask)
        steps.append(out)
    whole = logits(built, source, target=target, cross_mask=mask)
    close(jnp.concatenate(steps, axis=1), whole)
    assert not np.allclose(whole, _run("transformer", source, target), atol=1e-3)


def test_a_cross_mask_by_places_counts_the_real_tokens_of_a_cache():
    source, target, mask = tokens(ROWS, KEYS), _target("transformer"), ef.Causal()
    built, valid = model("transformer"), np.ones((ROWS, 4), bool)
    valid[0, :3] = False
    first, cache = extend(
        built,
        target[:, :4],
        init(built, source),
        mask=ef.Padding(jnp.asarray(valid)),
        cross_mask=mask,
    )
    last, _ = extend(built, target[:, 4:], cache, cross_mask=mask)
    alone = logits(built, source[:1], target=target[:1, 3:], cross_mask=mask)
    close(jnp.concatenate([first[:1, 3:], last[:1]], axis=1), alone)


def test_a_decoder_has_the_width_of_its_source_in_its_own_config(tmp_path):
    built = model("widths")
    assert built.config == SEQ2SEQ["widths"]  # which is what is saved
    assert built.config.decoder.source_dim is None
    assert built.decoder.config == built.config.decoder.edit(source_dim=6)
    ef.save(built.decoder, tmp_path / "decoder")
    assert eqx.tree_equal(ef.load(tmp_path / "decoder"), built.decoder)
    scanned = built.decoder.config.edit(layout=ef.Scanned())
    assert ef.rebuild(built.decoder, scanned).config == scanned


@EVERY
def test_gradients_are_finite_and_reach_every_parameter(name):
    source, target = tokens(2, KEYS), _target(name)[:2]
    out = ef.shapes(SEQ2SEQ[name]).config.decoder.vocab
    weights = np.random.default_rng(1).standard_normal((2, SEQ, out)).astype(np.float32)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(m):
        return (m(source, target) * weights).sum()

    for path, found in ef.named_arrays(gradient(model(name))).items():
        assert np.isfinite(found).all(), path
        if not path.endswith("key.bias"):
            assert np.abs(found).max() > 1e-6, path


def test_sides_of_different_widths_may_share_a_narrower_table():
    narrow = ef.InputEmbedding.Config(width=5)
    tied = ef.TiedHead.Config(project=ef.Linear.Config())
    config = SEQ2SEQ["widths"].edit("*", embedding=narrow).edit("decoder", head=tied)
    built = ef.shapes(config.edit(tokens="shared"))
    assert built.encoder.embedding.tokens.weight.shape == (VOCAB, 5)
    assert built.decoder.embedding.tokens is None
    assert built.decoder.head.project.weight.shape == (12, 5)
    with pytest.raises(ValueError, match="one vocabulary and width; got 13 x 5 and 13 x 12"):
        config.edit("decoder.embedding", width=None).edit(tokens="shared")


def test_a_shared_table_is_one_array_used_on_both_sides_and_in_the_head():
    built = model("t5")
    assert built.decoder.embedding.tokens is None
    names = [path for path in ef.named_arrays(built) if path.endswith("tokens.weight")]
    assert names == ["encoder.embedding.tokens.weight"]
    separate = SEQ2SEQ["t5"].edit(tokens="separate")
    table = SEQ2SEQ["t5"].encoder.vocab * SEQ2SEQ["t5"].encoder.dim
    assert ef.count(ef.shapes(separate)) - ef.count(built) == table


def test_packed_pairs_are_as_if_alone():
    built = model("t5")  # relative distances, so positions need not start anew
    source, target = tokens(1, KEYS), _target("t5")[:1]
    sources, targets = jnp.array([[0, 0, 1, 1, 1]]), jnp.array([[0, 0, 0, 0, 1, 1]])
    packed = logits(
        built,
        source,
        target=target,
        source_mask=ef.Segments(sources),
        mask=ef.Segments(targets),
        cross_mask=ef.Segments(targets, sources),
    )
    plain, (s,), (t,) = twins.plain(built), np.asarray(source), np.asarray(target)
    close(packed[0, :4], twins.encoder_decoder(plain, s[:2], t[:4]), 1e-4)
    close(packed[0, 4:], twins.encoder_decoder(plain, s[2:], t[4:]), 1e-4)


def test_positions_given_for_packed_pairs_are_those_of_each_alone():
    built = model("transformer")
    source, target = tokens(1, KEYS), _target("transformer")[:1]
    sources, targets = jnp.array([[0, 0, 1, 1, 1]]), jnp.array([[0, 0, 0, 0, 1, 1]])
    packed = logits(
        built,
        source,
        target=target,
        source_mask=ef.Segments(sources),
        mask=ef.Segments(targets),
        cross_mask=ef.Segments(targets, sources),
        source_positions=jnp.array([[0, 1, 0, 1, 2]]),
        positions=jnp.array([[0, 1, 2, 3, 0, 1]]),
    )
    plain, (s,), (t,) = twins.plain(built), np.asarray(source), np.asarray(target)
    close(packed[0, 4:], twins.encoder_decoder(plain, s[2:], t[4:]), 1e-4)


def test_a_packed_source_without_a_cross_mask_is_refused():
    source, target = tokens(1, 4), tokens(1, 4)
    with pytest.raises(ValueError, match=r"needs `cross_mask=Segments\(target_ids, source_ids\)`"):
        model("t5")(source, target, source_mask=ef.Segments(jnp.array([[0, 0, 1, 1]])))


def test_a_window_of_the_encoder_is_not_one_of_the_target():
    built = model("t5")
    source, target = tokens(1, KEYS), _target("t5")[:1]
    through = logits(built, source, target=target, source_mask=ef.Window(0, 0))
    encoded = logits(built.encoder, source, mask=ef.Window(0, 0))
    table = built.encoder.embedding.tokens
    expected = eqx.filter_jit(lambda d, *arrays: d(*arrays, table=table))(
        built.decoder, target, encoded
    )
    close(through, expected)


@pytest.mark.parametrize("shapes", [((0, 4), (0, 3)), ((2, 4), (2, 0)), ((2, 0), (2, 3))])
def test_no_rows_no_target_and_no_source_give_defined_results(shapes):
    source, target = (jnp.zeros(shape, jnp.int32) for shape in shapes)
    out = logits(model("t5"), source, target=target)
    assert out.shape == (*shapes[1], 13)
    assert np.isfinite(out).all()  # without a source, cross-attention adds nothing but its bias


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: c.edit("encoder", vocab=17), "need one vocabulary and width; got 17 x 10 and"),
        (lambda c: c.edit("decoder", source_dim=3), "`source_dim` must be None or the encoder's"),
        (
            lambda c: ef.EncoderDecoder.Config(c.encoder, decoder(block({}))),
            "no block looks at it; set `cross_attention`",
        ),
    ],
)
def test_two_sides_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(SEQ2SEQ["t5"])


def test_a_key_switches_dropout_on_and_another_key_draws_anew():
    config = SEQ2SEQ["transformer"].edit("*.embedding", dropout=0.5)
    built = ef.rebuild(model("transformer"), config)
    source, target = tokens(ROWS, KEYS), _target("transformer")
    first = logits(built, source, target=target, key=jax.random.key(0))
    second = logits(built, source, target=target, key=jax.random.key(1))
    assert not np.allclose(first, _run("transformer", source, target))
    assert not np.allclose(first, second)


def test_positions_may_be_given_for_either_side_also_with_a_cache():
    built, source, target = model("transformer"), tokens(ROWS, KEYS), _target("transformer")
    given = {"source_positions": jnp.arange(KEYS) + 2, "positions": jnp.arange(SEQ) * 2 + 1}
    whole = logits(built, source, target=target, **given)
    for name, usual in (("source_positions", jnp.arange(KEYS)), ("positions", jnp.arange(SEQ))):
        other = logits(built, source, target=target, **{**given, name: usual})
        assert not np.allclose(other, whole)
    cache = eqx.filter_jit(lambda m, s, p: m.init_cache(s, SEQ, source_positions=p))(
        built, source, given["source_positions"]
    )
    first, cache = extend(built, target[:, :4], cache, positions=given["positions"][:4])
    last, _ = extend(built, target[:, 4:], cache, positions=given["positions"][4:])
    close(jnp.concatenate([first, last], axis=1), whole)


class Reader(ef.AbstractBlock):
    """A block of one's own that adds a map of the mean of its source."""

    class Config(ef.AbstractBlock.Config):
        reads: bool = True

        @property
        def reads_source(self):
            return self.reads

        def build(self, dim, *, source_dim=None, key):
            return Reader(None if source_dim is None else ef.Linear(source_dim, dim, key=key))

    map: ef.Linear | None

    def run(self, x, context, *, cache=None, key=None):
        seen = self.map(context.source).mean(-2, keepdims=True)
        return x + jnp.broadcast_to(seen, x.shape), cache, None

    def init_cache(self, batch, slots, *, source=None, dtype=jnp.float32):
        return None


@pytest.mark.parametrize("width", [6, 4])  # the decoder's own, and another
def test_a_block_of_ones_own_that_reads_a_source_is_told_how_wide_it_is(width):
    encoder = ef.Encoder.Config(vocab=VOCAB, dim=width, blocks=(block({"heads": 2}),))
    side = decoder(Reader.Config(), dim=6)
    built = filled(ef.EncoderDecoder.Config(encoder, side))
    assert built.decoder.blocks[0].map.weight.shape == (width, 6)
    assert logits(built, tokens(1, 3), target=tokens(1, 2)).shape == (1, 2, VOCAB)
    alone = ef.rebuild(built.decoder, built.decoder.config)
    assert eqx.tree_equal(alone, built.decoder)
    assert ef.shapes(side).blocks[0].map.weight.shape == (6, 6)
    assert ef.shapes(side.edit("blocks.*", reads=False)).blocks[0].map is None


def test_positions_of_a_source_in_which_nothing_depends_on_them_are_refused_by_name():
    built, source, target, given = model("t5"), tokens(1, 3), tokens(1, 2), jnp.arange(3)
    message = "^`source_positions` were given, and nothing in this encoder depends on them"
    with pytest.raises(ValueError, match=message):
        logits(built, source, target=target, source_positions=given)
    with pytest.raises(ValueError, match=message):
        built.init_cache(source, 2, source_positions=given)
    with pytest.raises(ValueError, match="^`positions` were given, and nothing in this model"):
        logits(built, source, target=target, positions=jnp.arange(2))
