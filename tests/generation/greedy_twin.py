"""Greedy text from the slow twins of the models, which have no cache: NumPy, float64."""

import numpy as np

from tests.helpers import twins


def assert_argmax(model, begun, made, new, sources=None):
    """Of every row, so many new tokens were made, each the argmax behind all before it, read whole.

    Rows are real tokens: how each text begins, what was made, and the source of each.
    """
    plain = twins.plain(model)
    for row, (begin, tokens) in enumerate(zip(begun, made, strict=True)):
        assert len(tokens) == new
        text = np.array([*begin, *tokens[:-1]])
        if sources is None:
            logits = twins.decoder(plain, text)
        else:
            logits = twins.encoder_decoder(plain, np.array(sources[row]), text)
        np.testing.assert_array_equal(np.argmax(logits[len(begin) - 1 :], axis=-1), tokens)
