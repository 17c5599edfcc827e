"""Generation is the loop one would write without a cache, for each row as if it were alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.generation.greedy_twin import assert_argmax
from tests.generation.small import shallow, small
from tests.helpers.models import SEQ2SEQ, VOCAB, filled, logits, model, tokens

NEW = 5


def _ragged():
    """Prompts of 5, 3 and 2 tokens, padded on the right and on the left."""
    ids = np.array([[1, 2, 3, 4, 5], [6, 7, 8, -1, -1], [-1, -1, -1, 9, 10]])
    return ids, ids >= 0, [row[row >= 0] for row in ids]


@pytest.mark.parametrize("name", ["gpt", "gemma", "experts and sinks", "relative"])
def test_greedy_is_the_argmax_loop_for_ragged_rows_padded_on_either_side(name):
    ids, valid, texts = _ragged()
    made = ef.generate(model(name), jnp.asarray(ids), max_new_tokens=NEW, valid=jnp.asarray(valid))
    assert_argmax(model(name), texts, np.asarray(made), NEW)


def test_prompts_of_one_length_need_no_mask():
    prompts = tokens(3, 4)
    made = ef.generate(model("gpt"), prompts, max_new_tokens=NEW)
    assert_argmax(model("gpt"), np.asarray(prompts), np.asarray(made), NEW)


def test_a_key_gives_a_row_the_same_text_at_any_batch_size_and_rows_differ():
    prompts = np.repeat(tokens(1, 4), 3, axis=0)
    options = {"max_new_tokens": NEW, "sampler": ef.Sample(2.0)}
    every = ef.generate(small("llama"), prompts, key=jax.random.key(3), **options)
    alone = ef.generate(small("llama"), prompts[:1], key=jax.random.key(3), **options)
    other = ef.generate(small("llama"), prompts, key=jax.random.key(4), **options)
    every, alone, other = map(np.asarray, (every, alone, other))
    np.testing.assert_array_equal(every[0], alone[0])
    assert len({tuple(row.tolist()) for row in every}) == 3
    assert (every != other).any()


def test_fewer_new_tokens_are_the_beginning_of_more():
    prompts, key = tokens(3, 4), jax.random.key(3)
    options = {"sampler": ef.Sample(2.0)}
    built = small("llama")
    long = ef.generate(built, prompts, max_new_tokens=NEW, key=jax.random.clone(key), **options)
    short = ef.generate(built, prompts, max_new_tokens=1, key=key, **options)
    np.testing.assert_array_equal(np.asarray(long)[:, :1], short)


# Stopping


def test_a_row_stops_at_a_stop_id_and_is_filled_while_others_go_on():
    def run(**options):
        options.update(max_new_tokens=NEW, sampler=ef.Sample(2.0), key=jax.random.key(5))
        return np.asarray(ef.generate(small("llama"), tokens(3, 4), **options))

    free = run()
    stop = int(free[0, 2])
    assert stop not in free[0, :2]
    made = run(stop=(stop,))
    assert (free[1:] != stop).all(axis=1).any()  # some other row goes on
    for row in range(3):
        hits = np.flatnonzero(free[row] == stop)
        end = hits[0] if hits.size else NEW
        np.testing.assert_array_equal(made[row, :end], free[row, :end])
        assert (made[row, end:] == stop).all()


def test_any_of_several_stop_ids_ends_a_row_and_the_first_of_them_fills_it():
    prompts = tokens(3, 4)
    free = np.asarray(ef.generate(model("gpt"), prompts, max_new_tokens=NEW))
    filler = next(i for i in range(VOCAB) if i not in free)
    made = ef.generate(model("gpt"), prompts, max_new_tokens=NEW, stop=(filler, int(free[0, 0])))
    assert made[0].tolist() == [int(free[0, 0])] + [filler] * (NEW - 1)


# Encoder-decoders


@pytest.mark.parametrize("name", ["t5", "widths"])
def test_an_encoder_decoder_writes_the_argmax_loop_for_sources_of_several_lengths(name):
    ids, valid, texts = _ragged()
    made = ef.generate(
        model(name), jnp.asarray(ids), max_new_tokens=NEW, valid=jnp.asarray(valid), start=2
    )
    assert_argmax(model(name), [[2]] * 3, np.asarray(made), NEW, texts)


# Compiling


class Counting(ef.Sampler):
    """Counts how often it is traced; each program holds it twice: before the loop and in it."""

    inner: ef.Sample
    traced: list = eqx.field(static=True)

    @property
    def needs_key(self):
        return True

    def process(self, logits, seen=None):
        self.traced.append(1)
        return self.inner.process(logits, seen)


class Tally(list):
    """A list that is equal to itself and hashable, as static fields must be."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


def test_another_temperature_prompt_key_or_start_compiles_nothing_anew():
    traced = Tally()

    def run(temperature, seed, **options):
        built = small("llama" if "start" not in options else "t5")
        return ef.generate(
            built,
            tokens(3, 4, seed=seed),
            max_new_tokens=3,
            sampler=Counting(ef.Sample(temperature), traced),
            key=jax.random.key(seed),
            **options,
        )

    run(1.0, 0)
    assert len(traced) == 2
    run(0.5, 1)
    run(2.0, 2)
    assert len(traced) == 2
    run(1.0, 0, start=1)
    run(0.7, 1, start=2)
    assert len(traced) == 4


# Lengths and mistakes


def test_no_new_tokens_are_an_empty_answer():
    assert ef.generate(model("gpt"), tokens(3, 4), max_new_tokens=0).shape == (3, 0)


def test_a_model_may_be_filled_to_its_last_position_and_no_further():
    built = filled(shallow("gpt").edit("embedding.positions", length=6))
    made = ef.generate(built, tokens(1, 4), max_new_tokens=3)  # the third new token is never read
    assert_argmax(built, np.asarray(tokens(1, 4)), np.asarray(made), 3)
    with pytest.raises(ValueError, match=r"6 positions, so that after 4 tokens .* at most 3 new"):
        ef.generate(built, tokens(1, 4), max_new_tokens=4)
    with pytest.raises(ValueError, match=r"after 7 tokens it can make at most 0 new ones"):
        ef.generate(built, tokens(1, 7), max_new_tokens=1)


def test_padding_does_not_count_as_positions():
    built = filled(shallow("gpt").edit("embedding.positions", length=6))
    ids = np.concatenate([np.full((1, 5), -1), tokens(1, 4)], axis=1)
    made = ef.generate(built, ids, max_new_tokens=3, valid=ids >= 0)
    np.testing.assert_array_equal(made, ef.generate(built, tokens(1, 4), max_new_tokens=3))


def test_a_model_in_half_precision_generates():
    half = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.bfloat16), small("llama"))
    prompts = tokens(1, 4)
    made = np.asarray(ef.generate(half, prompts, max_new_tokens=3))
    text = jnp.asarray(np.concatenate([prompts, made], axis=1))
    found = np.asarray(logits(half, text).astype(jnp.float32))
    np.testing.assert_array_equal(np.argmax(found[:, 3:6], axis=-1), made)


T5, GPT = "t5", "gpt"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (GPT, {"prompts": jnp.zeros((0, 4), int)}, r"at least one token id, .*; got int32\[0, 4\]"),
        (GPT, {"prompts": jnp.zeros((2, 0), int)}, r"at least one token id, .*; got int32\[2, 0\]"),
        (GPT, {"prompts": jnp.array([[1, VOCAB]])}, f"below {VOCAB}; got {VOCAB}"),
        (GPT, {"prompts": jnp.array([[1, -2]])}, "at least 0 and .*; got -2"),
        (GPT, {"max_new_tokens": -1}, "must not be negative; got -1"),
        (GPT, {"sampler": ef.Sample()}, "Sample draws at random and needs a `key`"),
        (GPT, {"sampler": ef.TopP(0.9) | ef.Sample()}, "The sampler draws at random and needs"),
        (GPT, {"start": 1}, "`start` is for encoder-decoders"),
        (GPT, {"stop": (1, VOCAB)}, r"ids of `stop` must be below 13; got 13"),
        (GPT, {"valid": jnp.array([[False, False]])}, "a real token in every row"),
        (T5, {}, "needs `start`"),
        (T5, {"start": VOCAB}, "`start` must be at least 0 and below 13"),
        ("transformer", {"start": 11}, "`start` must be at least 0 and below 11"),
        ("transformer", {"start": 1, "stop": (12,)}, "ids of `stop` must be below 11; got 12"),
    ],
)
def test_what_cannot_be_generated_is_refused_with_the_reason(name, changes, message):
    given = {"prompts": jnp.array([[1, 2]]), "max_new_tokens": 3, **changes}
    with pytest.raises(ValueError, match=message):
        ef.generate(model(name), given.pop("prompts"), **given)


def test_an_encoder_refuses_a_source_longer_than_its_positions():
    config = SEQ2SEQ["t5"].edit("encoder.embedding", positions=ef.LearnedPositions.Config(length=4))
    with pytest.raises(ValueError, match="The encoder has 4 positions; got a source of 5 tokens"):
        ef.generate(filled(config), tokens(1, 5), max_new_tokens=1, start=0)


def test_texts_and_sources_are_as_many():
    with pytest.raises(ValueError, match="There are 1 texts, and 2 sources for them"):
        ef.score(model("t5"), [[1, 2, 3]], source=[[1], [2]])
