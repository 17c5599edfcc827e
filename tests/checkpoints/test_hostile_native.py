"""Configs of the native format made to do harm: refused by the one exception, soon and small."""

import json
import os
import time

import equinox as eqx
import jax
import pytest

import eqxformer as ef
from eqxformer.checkpoints import native
from tests.checkpoints.test_native import SMALL
from tests.helpers.hostile import refused
from tests.helpers.models import filled, model


@pytest.fixture
def small():
    return filled(SMALL)


def numbers_of(value, path=()):
    """The path of every number in a JSON value."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, below in items for found in numbers_of(below, (*path, key))]
    return [path] if isinstance(value, int | float) and not isinstance(value, bool) else []


@pytest.mark.parametrize(
    ("name", "absurd"),
    [("gpt", 10**12), ("gpt", 2**63)],
    ids=["10^12", "2^63"],
)
def test_any_number_of_a_config_may_be_absurd(name, absurd, tmp_path):
    made = model(name)
    ef.save(made, tmp_path)
    path, text = tmp_path / native.CONFIG, (tmp_path / native.CONFIG).read_text()
    places = {tuple(k for k in p if isinstance(k, str)): p for p in numbers_of(json.loads(text))}
    refused = 0
    for place in places.values():
        values = json.loads(text)
        below = values
        for key in place[:-1]:
            below = below[key]
        below[place[-1]] = absurd
        path.write_text(json.dumps(values))
        start = time.process_time()
        try:  # some, such as a window of 10^12, are as good as any other
            assert eqx.tree_equal(jax.tree.leaves(ef.load(tmp_path)), jax.tree.leaves(made))
        except ef.CheckpointError as error:
            refused += 1
            first, *rest = str(error).split("\n")
            assert native.CONFIG in first
            assert all(line.startswith("  ") for line in rest)
        assert time.process_time() - start < 2
    assert refused > len(places) / 3


def test_more_blocks_than_any_model_has_are_refused_before_any_is_made(small, tmp_path):
    ef.save(small, tmp_path)
    path = tmp_path / native.CONFIG
    values = json.loads(path.read_text())
    block = {"type": "Block", "attention": {"type": "Attention", "heads": 1}}
    block["feed_forward"] = {"type": "MLP", "hidden": 1}
    for count, reason in (
        (3000, "may describe 2,048 blocks; it describes more"),
        (500, f"describes 500 blocks; {len(ef.named_arrays(small))} tensors are there"),
    ):
        values["model"]["blocks"] = [block] * count
        path.write_text(json.dumps(values))
        refused(lambda: ef.load(tmp_path), str(path), reason)
    path.write_text(json.dumps(values) + " " * 2**22)
    refused(lambda: ef.load(tmp_path), f"{path} may hold 4,194,304 bytes of JSON at most")


def test_every_error_of_a_saved_model_is_the_one_exception(small, tmp_path):
    ef.save(small, tmp_path)
    (tmp_path / native.CONFIG).write_text('{"format": "eqxformer", "model": {"type": "MLP"}}')
    refused(lambda: ef.load(tmp_path), str(tmp_path / native.CONFIG), "MLP needs `hidden`")
    (tmp_path / native.CONFIG).unlink()
    refused(lambda: ef.load(tmp_path), f"No {native.CONFIG} in", kind=FileNotFoundError)
    os.mkfifo(tmp_path / native.CONFIG)
    refused(lambda: ef.load(tmp_path), f"{native.CONFIG} must be a file; it is a pipe")
