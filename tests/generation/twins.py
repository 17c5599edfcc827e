"""What processors do, as loops over rows and tokens in plain NumPy: one row at a time, float64."""

import numpy as np


def softmax(row):
    powers = np.exp(np.asarray(row, np.float64) - np.max(row))
    return powers / powers.sum()


def _share(row, order, mass):
    """Whether each token is among the first in `order`, level by level, up to `mass`."""
    kept, total, probability = np.zeros(len(row), bool), 0.0, softmax(row)
    for level in sorted(set(order), reverse=True):
        if total >= mass:
            break
        kept |= order == level
        total += probability[order == level].sum()
    return kept


def top_k(row, k):
    return row >= sorted(row, reverse=True)[min(k, len(row)) - 1]


def top_p(row, p):
    return _share(row, np.asarray(row, np.float64), p)


def min_p(row, p):
    return softmax(row) >= p * softmax(row).max()


def epsilon(row, cutoff):
    return (softmax(row) >= cutoff) | (row == row.max())


def typical(row, mass):
    probability = softmax(row)
    surprise = np.array([-np.log(p) if p > 0 else np.inf for p in probability])
    return _share(row, -np.abs(surprise - _entropies(row).sum()), mass)


def eta(row, cutoff):
    least = min(cutoff, cutoff**0.5 * np.exp(-_entropies(row).sum()))
    return (softmax(row) >= least) | (row == row.max())


def top_h(row, h):
    terms, kept = _entropies(row), row == row.max()
    for level in set(row[softmax(row) > 0]):
        kept |= (row == level) & (terms[row >= level].sum() <= h * terms.sum())
    return kept


def _entropies(row):
    return np.array([-p * np.log(p) if p > 0 else 0.0 for p in softmax(row)])


def kept(row, stays):
    """The row with what does not stay forbidden."""
    return np.where(stays, row, -np.inf)


def repetition(row, tokens, prompt, penalty):
    out = row.copy()
    for token in set(tokens):
        out[token] = row[token] * penalty if row[token] < 0 else row[token] / penalty
    return out


def presence(row, tokens, prompt, penalty):
    out = row.copy()
    for token in set(tokens[prompt:]):
        out[token] -= penalty
    return out


def frequency(row, tokens, prompt, penalty):
    out = row.copy()
    for token in tokens[prompt:]:
        out[token] -= penalty
    return out


def longer(row, tokens, prompt, setting):
    begin, factor, stop = setting
    past = max(len(tokens) - prompt - begin, 0)
    more = np.abs(row) * (factor**past - 1)
    return np.where(np.isin(np.arange(len(row)), stop), row + more, row)


def bias(row, tokens, prompt, biases):
    out = row.copy()
    for phrase, value in biases.items():
        *before, last = phrase if isinstance(phrase, tuple) else (phrase,)
        if tokens[len(tokens) - len(before) :] == before and len(before) <= len(tokens):
            out[last] += value
    return out


def bad_words(row, tokens, prompt, words):
    return bias(row, tokens, prompt, dict.fromkeys(words, -np.inf))


def no_repeat(row, tokens, prompt, size):
    out = row.copy()
    there = {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}
    for token in range(len(row)):
        if len(tokens) >= size - 1 and (*tokens[len(tokens) - size + 1 :], token) in there:
            out[token] = -np.inf
    return out


def without(row, ids):
    out = row.copy()
    out[list(ids)] = -np.inf
    return out


def demanded(row, ids):
    out = np.full_like(row, -np.inf)
    out[list(ids)] = 0.0
    return out
