"""An encoder of audio, alone and in front of a decoder."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.models import block, close, decoder, extend, filled, logits, tokens

READER = ef.AudioEncoder.Config(
    bins=5,
    dim=12,
    blocks=(block({}),),
    embedding=ef.AudioEmbedding.Config(positions=ef.LearnedPositions.Config(4), dropout=0.5),
    norm=ef.LayerNorm.Config(),
)
CONFIG = ef.EncoderDecoder.Config(
    READER, decoder(block({}, cross_attention=ef.Attention.Config(heads=2)))
)
FRAMES = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 5)), jnp.float32)


@pytest.fixture(scope="module")
def model():
    """The model with every parameter off its neutral value."""
    return filled(CONFIG)


def test_what_enters_the_first_block_is_two_convolutions_and_the_places(model):
    part = model.encoder.embedding
    heard = ef.activation("gelu")(part.second(ef.activation("gelu")(part.first(FRAMES))))
    assert heard.shape == (2, 4, 12)
    close(part(FRAMES), heard + part.positions.weight[None])
    close(part(FRAMES, positions=jnp.full(4, 2)), heard + part.positions.weight[None, None, 2])


def test_frames_that_are_said_to_be_padding_are_refused_in_generation(model):
    with pytest.raises(ValueError, match="`valid` is for prompts of tokens; frames of audio are"):
        ef.generate(model, FRAMES, valid=np.ones((2, 8), bool), start=1, max_new_tokens=2)


def test_more_frames_than_there_are_places_are_refused(model):
    with pytest.raises(ValueError, match="Every position must be at least 0 and below 4; got 4"):
        model.encoder(jnp.concatenate([FRAMES, FRAMES], axis=1))


def test_a_key_drops_numbers_and_none_does_not(model):
    part = model.encoder.embedding
    dropped = part(FRAMES, key=jax.random.key(0)) == 0
    assert 0.3 < float(dropped.mean()) < 0.7
    assert not (part(FRAMES) == 0).any()


def test_any_leading_axes_give_what_rows_give(model):
    @eqx.filter_jit
    def forms(model, frames, target):
        alone, wide = model(frames[0], target[0]), model(frames[None], target[None])
        return model(frames, target), alone, wide, jax.vmap(model)(frames, target)

    together, alone, wide, mapped = forms(model, FRAMES, tokens(2, 3))
    assert together.shape == (2, 3, 13)
    close(alone, together[0])
    close(wide, together[None])
    close(mapped, together)


def test_places_that_are_masked_make_no_difference(model):
    mask = ef.Padding(jnp.array([[True, True, True, False]] * 2))
    other = FRAMES.at[:, -1].set(9.0)  # of which the last place alone is made
    target = tokens(2, 3)
    assert not np.allclose(logits(model, FRAMES, target), logits(model, other, target))
    close(
        logits(model, FRAMES, target, source_mask=mask),
        logits(model, other, target, source_mask=mask),
    )


def test_a_cache_gives_the_logits_of_the_whole_target(model):
    target = tokens(2, 3)
    cache, found = model.init_cache(FRAMES, 3), []
    for i in range(3):
        each, cache = extend(model, target[:, i : i + 1], cache)
        found.append(each)
    close(jnp.concatenate(found, axis=1), logits(model, FRAMES, target))


def test_a_scan_over_its_blocks_gives_what_they_give_one_by_one():
    deep = READER.edit(blocks=READER.blocks * 2)
    plain = filled(deep)
    scanned = ef.rebuild(plain, deep.edit(layout=ef.Scanned()))
    close(eqx.filter_jit(scanned)(FRAMES), eqx.filter_jit(plain)(FRAMES))


def test_every_axis_of_its_parameters_has_a_word():
    axes = ef.leaf_axes(ef.shapes(CONFIG))
    assert axes["encoder.embedding.first.weight"] == ("kernel", "bins", "dim")
    assert axes["encoder.embedding.second.weight"] == ("kernel", "dim", "dim")
    assert axes["encoder.embedding.second.bias"] == ("dim",)
    words = {word for found in axes.values() for part in found for word in part.split("*")}
    assert words <= set(ef.GLOSSARY)


def test_audio_has_no_tokens_to_share_and_is_heard_as_frames(model):
    with pytest.raises(ValueError, match="need one vocabulary and width; got no tokens and 13 x"):
        CONFIG.edit(tokens="shared")
    with pytest.raises(ValueError, match="This model hears audio: `prompts` must be frames"):
        ef.generate(model, tokens(2, 3), max_new_tokens=2, start=0)


def test_audio_longer_than_there_are_positions_is_refused(model):
    places = CONFIG.encoder.embedding.positions.length
    frames = jnp.zeros((1, 2 * places + 1, CONFIG.encoder.bins))
    for heard in (
        lambda: ef.generate(model, frames, max_new_tokens=2, start=0),
        lambda: ef.score(model, [[1, 2, 3]], source=frames),
    ):
        with pytest.raises(
            ValueError, match=f"positions for {2 * places} frames; got {2 * places + 1}"
        ):
            heard()


def test_the_config_goes_to_text_and_back():
    assert ef.Config.from_json(CONFIG.to_json()) == CONFIG


@pytest.mark.parametrize("size", ["bins", "dim"])
def test_a_size_below_one_is_refused(size):
    with pytest.raises(ValueError, match=f"`{size}` must be positive; got 0"):
        READER.edit(**{size: 0})


def test_a_table_of_sinusoids_starts_as_they_are():
    waves = ef.Sinusoids.Config(layout="halves", spread="closed")
    table = ef.LearnedPositions(8, length=5, init=ef.SinusoidTable(waves), key=jax.random.key(0))
    close(table.weight, waves.build(8, key=jax.random.key(0))(jnp.arange(5)))


def test_positions_of_places_that_nothing_tells_apart_are_refused():
    without = ef.shapes(READER.edit("embedding", positions=None))
    with pytest.raises(ValueError, match="`positions` were given, and nothing in this model"):
        without(FRAMES, positions=jnp.arange(4))
