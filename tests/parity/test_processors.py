"""Processors forbid exactly what those of transformers do, and leave the rest the same logits."""

import copy

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as theirs

import eqxformer as ef

ROWS, LENGTHS = 5, (1, 2, 3, 7, 12)
VOCABULARIES = (3, 11, 300)
PROMPT, LIMIT = 3, 13  # of tokens; processors of theirs are told both when they are made
INF = float("inf")

WARPERS = {
    "temperature": (ef.Temperature(0.7), theirs.TemperatureLogitsWarper(0.7)),
    "top_k": (ef.TopK(4), theirs.TopKLogitsWarper(4)),
    "top_k of more than all": (ef.TopK(1000), theirs.TopKLogitsWarper(1000)),
    **{f"top_p {p}": (ef.TopP(p), theirs.TopPLogitsWarper(p)) for p in (0.02, 0.43, 0.9, 0.99)},
    "top_p, three": (ef.TopP(0.1, at_least=3), theirs.TopPLogitsWarper(0.1, min_tokens_to_keep=3)),
    "min_p": (ef.MinP(0.07), theirs.MinPLogitsWarper(0.07)),
    "min_p, three": (ef.MinP(0.9, at_least=3), theirs.MinPLogitsWarper(0.9, min_tokens_to_keep=3)),
    **{f"typical {m}": (ef.Typical(m), theirs.TypicalLogitsWarper(m)) for m in (0.02, 0.43, 0.9)},
    "typical, three": (
        ef.Typical(0.1, at_least=3),
        theirs.TypicalLogitsWarper(0.1, min_tokens_to_keep=3),
    ),
    "epsilon": (ef.Epsilon(0.013), theirs.EpsilonLogitsWarper(0.013)),
    "epsilon above all": (ef.Epsilon(0.99), theirs.EpsilonLogitsWarper(0.99)),
    "epsilon, three": (
        ef.Epsilon(0.9, at_least=3),
        theirs.EpsilonLogitsWarper(0.9, min_tokens_to_keep=3),
    ),
    "eta": (ef.Eta(0.013), theirs.EtaLogitsWarper(0.013)),
    "eta above all": (ef.Eta(0.9), theirs.EtaLogitsWarper(0.9)),
    "eta, three": (
        ef.Eta(0.9, at_least=3),
        theirs.EtaLogitsWarper(0.9, min_tokens_to_keep=3),
    ),
    # Theirs looks at the hundred likeliest tokens.
    **{f"top_h {h}": (ef.TopK(100) | ef.TopH(h), theirs.TopHLogitsWarper(h)) for h in (0.1, 0.6)},
}
# Among equal logits, these choose by the place that a sort happens to give them; ours never do.
SORTED = ("top_p", "top_h", "min_p, three", "typical, thr")
BY_PLACE = [name for name in WARPERS if name.startswith(SORTED)]
BIASES = {(1,): 2.5, (0,): -INF, (0, 1): -1.5, (1, 0, 1): 3.0, (1, 1): 0.5}
WORDS = [[0], [0, 1], [1, 0, 0], [1, 1, 1, 1]]
PROCESSORS = {
    "repetition": (ef.RepetitionPenalty(1.3), theirs.RepetitionPenaltyLogitsProcessor(1.3)),
    "reward": (ef.RepetitionPenalty(0.8), theirs.RepetitionPenaltyLogitsProcessor(0.8)),
    **{
        f"n-grams of {n}": (ef.NoRepeatNGram(n), theirs.NoRepeatNGramLogitsProcessor(n))
        for n in (1, 2, 3, 5)
    },
    "biases": (
        ef.LogitBias({(key[0] if len(key) == 1 else key): b for key, b in BIASES.items()}),
        theirs.SequenceBiasLogitsProcessor(dict(BIASES)),
    ),
    "bad words": (ef.BadWords(WORDS), theirs.NoBadWordsLogitsProcessor(WORDS)),
    "suppress": (ef.Suppress((0, 1)), theirs.SuppressTokensLogitsProcessor([0, 1])),
    "begin": (
        ef.SuppressAtBegin((1,)),
        theirs.SuppressTokensAtBeginLogitsProcessor([1], begin_index=PROMPT),
    ),
    "after a forced first": (
        ef.SuppressAtBegin((1,), step=4),
        theirs.SuppressTokensAtBeginLogitsProcessor([1], begin_index=PROMPT + 4),
    ),
    "length": (ef.MinLength(7, stop=(1,)), theirs.MinLengthLogitsProcessor(7, [1])),
    "longer": (
        ef.ExponentialLengthPenalty(2, 1.3, stop=(0, 1)),
        theirs.ExponentialDecayLengthPenalty((2, 1.3), [0, 1], PROMPT),
    ),
    "normalized": (ef.Normalize(), theirs.LogitNormalization()),
    "new tokens": (
        ef.MinNewTokens(5, stop=(0, 1)),
        theirs.MinNewTokensLengthLogitsProcessor(PROMPT, 5, [0, 1]),
    ),
    "forced last": (
        ef.Force({-1: (0, 1)}),
        theirs.ForcedEOSTokenLogitsProcessor(LIMIT, [0, 1]),
    ),
}


def rows_of(vocab, seed, *, ties):
    random = np.random.default_rng(seed)
    rows = random.standard_normal((ROWS, vocab)).astype(np.float32) * 2
    if ties:
        rows = np.round(rows * 2) / 2
    forbidden = random.random(rows.shape) < 0.2
    forbidden[:, 0] = False
    return np.where(forbidden & (random.random((ROWS, 1)) < 0.5), np.float32(-INF), rows)


def compare(ours, reference, rows, ids, prompt):
    length = np.full(ROWS, ids.shape[1])
    seen = ef.Seen(
        jnp.asarray(np.pad(ids, ((0, 0), (0, 3)))),
        jnp.asarray(length),
        jnp.full(ROWS, prompt),
        jnp.full(ROWS, LIMIT),
    )
    found = np.asarray(ours(jnp.asarray(rows), seen))
    reference = copy.deepcopy(reference)  # some keep tables of the first vocabulary that they meet
    expected = reference(torch.from_numpy(ids), torch.from_numpy(rows.copy())).numpy()
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", WARPERS)
def test_a_warper_is_theirs(name):
    ours, reference = WARPERS[name]
    for vocab in VOCABULARIES:
        for seed in range(6):
            rows = rows_of(vocab, seed, ties=seed % 2 == 1 and name not in BY_PLACE)
            compare(ours, reference, rows, np.zeros((ROWS, 1), int), 1)


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_is_theirs(name):
    ours, reference = PROCESSORS[name]
    for vocab in VOCABULARIES:
        for seed, length in enumerate(LENGTHS):
            ids = np.random.default_rng(seed).integers(0, min(vocab, 4), (ROWS, length))
            compare(ours, reference, rows_of(vocab, seed, ties=False), ids, PROMPT)


def test_a_forced_first_token_is_theirs():
    ours, reference = ef.Force({0: 1}), theirs.ForcedBOSTokenLogitsProcessor(1)
    for length in (1, 2, 5):  # behind the one token that a target starts from
        ids = np.zeros((ROWS, length), int)
        compare(ours, reference, rows_of(11, length, ties=False), ids, 1)


def test_a_chain_is_their_list():
    ours = ef.RepetitionPenalty(1.3) | ef.NoRepeatNGram(2) | ef.MinLength(5, stop=(1,))
    ours = ours | ef.Temperature(0.7) | ef.TopK(9) | ef.TopP(0.8)
    reference = theirs.LogitsProcessorList(
        [
            theirs.RepetitionPenaltyLogitsProcessor(1.3),
            theirs.NoRepeatNGramLogitsProcessor(2),
            theirs.MinLengthLogitsProcessor(5, [1]),
            theirs.TemperatureLogitsWarper(0.7),
            theirs.TopKLogitsWarper(9),
            theirs.TopPLogitsWarper(0.8),
        ]
    )
    for seed, length in enumerate(LENGTHS):
        ids = np.random.default_rng(seed).integers(0, 5, (ROWS, length))
        compare(ours, reference, rows_of(40, seed, ties=False), ids, PROMPT)
