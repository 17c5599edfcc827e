"""Beam search of one row as lists and loops, from the scores of whole texts: no cache, float64."""

import collections
import functools

import jax.numpy as jnp
import numpy as np

import eqxformer as ef
from tests.helpers.models import logits

WIDTH, LENGTH = 6, 16  # texts at once, and the tokens they may have: one program for all


def beam_search(
    score,
    *,
    beams,
    new,
    penalty,
    early,
    stop=(),
    process=lambda row, text: row,
    groups=1,
    diversity=0.0,
    ids=None,
):
    """All texts that are kept, with their scores, best first.

    `score(texts)` gives a row of logits for each text of new tokens, `process(row, text)` changes
    log-probabilities, and `stop` is a set of ids or a function of a text.
    """
    ends = stop if callable(stop) else lambda text: text[-1] in stop
    size, width = beams // groups, max(2, 1 + (len(stop) if ids is None else ids))
    groups = [{"running": [(0.0, [])], "complete": [], "done": False} for _ in range(groups)]
    for step in range(1, new + 1):
        taken = collections.Counter()
        for group in groups:
            if group["done"]:
                continue
            pool = _continued(group["running"], score, process, taken, diversity)[: width * size]
            group["complete"] += [
                (value / step**penalty, text)
                for value, text in pool[:size]
                if ends(text) or step == new
            ]
            group["complete"] = _sorted(group["complete"])[:size]
            group["running"] = [each for each in pool if not ends(each[1])][:size]
            taken.update(text[-1] for _, text in group["running"])
            group["done"] = _is_done(group, size, step, new, penalty, early)
    return _sorted(each for group in groups for each in group["complete"])


def log_softmax(row):
    return row - row.max() - np.log(np.exp(row - row.max()).sum())


def _sorted(pairs):
    return sorted(pairs, key=lambda pair: -pair[0])


def _continued(running, score, process, taken, diversity):
    rows = score([text for _, text in running])
    return _sorted(
        (value + number - diversity * taken[token], [*text, token])
        for (value, text), row in zip(running, rows, strict=True)
        for token, number in enumerate(process(log_softmax(row), text))
        if number > -np.inf
    )


def _is_done(group, size, step, new, penalty, early):
    if not group["running"]:
        return True
    if len(group["complete"]) < size:
        return False
    length = new if early == "never" and penalty > 0 else step
    best, worst = group["running"][0][0] / length**penalty, group["complete"][-1][0]
    return early is True or best <= worst


def scorer(model, prompt, start=None):
    """`score` of a model after a prompt, or of one that writes behind a source."""
    return functools.partial(_scores, model, tuple(map(int, prompt)), start)


def _scores(model, prompt, start, texts):
    before = prompt if start is None else (start,)
    rows = np.zeros((WIDTH, LENGTH), int)
    for row, text in enumerate(texts):
        rows[row, : len(before) + len(text)] = [*before, *text]
    if start is None:
        out = logits(model, jnp.asarray(rows))
    else:
        source, real = np.zeros((WIDTH, LENGTH), int), np.arange(LENGTH) < len(prompt)
        source[:, : len(prompt)] = prompt
        mask = ef.Padding(jnp.asarray(np.broadcast_to(real, source.shape)))
        out = logits(model, jnp.asarray(source), target=jnp.asarray(rows), source_mask=mask)
    out = np.asarray(out, np.float64)
    return [out[row, len(before) + len(text) - 1] for row, text in enumerate(texts)]
