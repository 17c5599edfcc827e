"""Generation with a cache is the argmax of the model without one, for every architecture."""

import numpy as np
import pytest

import eqxformer as ef
from tests.generation.greedy_twin import assert_argmax
from tests.helpers.writers import (
    GOLDEN,
    LENGTHS,
    NEW,
    WRITERS,
    logits_without_cache,
    sources,
    texts,
)


def twin_reads(model):
    """Whether the twin in NumPy knows the parts; elsewhere the model itself reads whole texts."""
    both = isinstance(model, ef.EncoderDecoder)
    if both and not isinstance(model.config.encoder, ef.Encoder.Config):
        return False
    positions = (model.config.decoder if both else model.config).embedding.positions
    learned = isinstance(positions, ef.LearnedPositions.Config)
    return positions is None or (learned and positions.offset == 0)


@pytest.mark.parametrize("name", WRITERS)
def test_greedy_ids_are_the_argmax_without_a_cache_at_every_step(name):
    model = ef.from_pretrained(GOLDEN / name)
    if isinstance(model, ef.EncoderDecoder):
        given, plain = sources(model)
        begin = texts(model.config.decoder.vocab, seed=1)
        made = ef.generate(model, given, start=begin, max_new_tokens=NEW)
    else:
        begin, given, plain = texts(model.config.vocab), None, (None, None)
        made = ef.generate(model, begin, max_new_tokens=NEW)
    assert all(isinstance(row, list) for row in made) or made.shape == (len(LENGTHS), NEW)
    made = [list(map(int, row)) for row in made]
    if twin_reads(model):
        assert_argmax(model, begin, made, NEW, given)
        return
    read = [[*a, *b[:-1]] for a, b in zip(begin, made, strict=True)]
    for row, logits in enumerate(logits_without_cache(model, plain, read)):
        chosen = logits[len(begin[row]) - 1 :]
        np.testing.assert_array_equal(np.argmax(chosen, axis=-1), made[row])
