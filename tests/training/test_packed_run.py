"""A run over packed lines of JSON: broken off, gone on with, and refused when a line changes."""

import json

import jax
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.hot import drawn

CONFIG = ef.families.llama(vocab=128, dim=8, layers=1, heads=2, hidden=16)


class Breaks(ef.Callback):
    """Breaks training off at a step, once."""

    every = 1

    def __init__(self, at):
        self.at = at

    def reached(self, trainer):
        if trainer.step == self.at:
            self.at = None
            raise RuntimeError("broken off")


def trainer(path, directory, *callbacks):
    def encode(text):
        return [*text.encode(), 0]

    documents = ef.tokenized(ef.JsonLines(str(path)).open(), encode)
    batches = ef.Packing(length=20, batch=2).build(documents, seed=5)
    checkpoints = ef.Checkpoints(directory, every=3)
    return ef.Trainer(
        drawn(CONFIG),
        ef.feed(batches, ahead=2),
        ef.AdamW(1e-2).build(8),
        8,
        key=jax.random.key(0),
        callbacks=callbacks,
        checkpoints=checkpoints,
    )


def test_a_run_that_broke_off_ends_with_the_same_bits_and_refuses_a_changed_line(tmp_path):
    path, lines = tmp_path / "some.jsonl", [{"text": "abc " * n} for n in range(1, 9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = trainer(path, tmp_path / "whole").fit()
    with pytest.raises(RuntimeError, match="broken off"):
        trainer(path, tmp_path / "broken", Breaks(5)).fit()
    changed = path.read_text().replace("abc abc", "abc abd", 1)
    kept = path.read_text()
    path.write_text(changed)
    with pytest.raises(ValueError, match="The data are not those of this position"):
        trainer(path, tmp_path / "broken").fit()
    path.write_text(kept)
    again = trainer(path, tmp_path / "broken").fit()
    assert int(again.step) == 8
    for one, other in zip(*(jax.tree.leaves(s.model) for s in (whole, again)), strict=True):
        np.testing.assert_array_equal(one, other)
