"""A trainer on a mesh, and its checkpoints read to other meshes and to one device."""

import jax
import numpy as np
import pytest

import eqxformer as ef
from tests.sharding.meshes import placed, share
from tests.training.tiny import Bigram

pytest.importorskip("orbax.checkpoint")

BATCHES = ef.RandomWindows(length=4, batch=8).build(np.arange(200) % 8, seed=0)


def trainer(steps, placement=None, checkpoints=None):
    return ef.Trainer(
        Bigram(vocab=8, dim=8, key=jax.random.key(0)),
        BATCHES,
        ef.AdamW(0.1, epsilon=1e-3).build(6),
        steps,
        key=jax.random.key(1),
        checkpoints=checkpoints,
        placement=placement,
    )


def test_training_goes_on_from_eight_devices_on_one_and_back(tmp_path):
    wanted = trainer(6).fit().model
    for steps, mesh in ((2, "fsdp=8"), (4, None), (6, "data=2,fsdp=4")):
        placement = None if mesh is None else placed(mesh)
        run = trainer(steps, placement, ef.Checkpoints(tmp_path / "kept", every=2))
        state = run.fit()
        assert run.tokens == steps * 32
        held, _ = share((state.model.embedding, state.model.output))
        assert held == {"fsdp=8": 1 / 8, None: 1.0, "data=2,fsdp=4": 1 / 4}[mesh]
    for one, other in zip(jax.tree.leaves(state.model), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_batch_that_cannot_be_dealt_out_is_refused():
    run = trainer(1, placed("data=3"))
    with pytest.raises(
        ValueError, match="multiple of the 3 devices that share them, data=3; got 8"
    ):
        run.fit()
