"""Losses are those that transformers computes itself, in value and in every gradient."""

import copy

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.core_model_loading import revert_weight_conversion

import eqxformer as ef
from eqxformer.pretrained import Checkpoint
from tests.helpers.parity import error_of
from tests.parity.cases import CASES
from tests.parity.live import VOCAB, float64_throughout, store

ROWS, SEQ, START = 3, 8, 0
RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(2, VOCAB, (ROWS, SEQ))
VALID = np.arange(SEQ) < np.array([8, 5, 7])[:, None]
IGNORED = -100  # what transformers calls a label that does not count


def masked():
    noise = ef.MaskTokens(mask=1, vocab=VOCAB, share=0.4)
    return noise(TOKENS, VALID, random=np.random.default_rng(1))


def pairs():
    """Each row and its answer, which in transformers is behind a start token that it adds."""
    answers = np.concatenate([np.full((ROWS, 1), START), TOKENS[:, ::-1]], axis=1)
    counts = np.concatenate([np.ones((ROWS, 1), bool), VALID], axis=1)
    return ef.PairBatch(TOKENS, answers, VALID, counts)


CLASSES = np.array([0, 2, 1])
PER_TOKEN = ef.LabelledBatch(TOKENS, TOKENS % 3, valid=VALID)
LOSSES = {
    "bert-masked": (ef.MaskedLM(), masked()),
    "bert-token": (ef.TokenClassification(), PER_TOKEN),
    "bert-sequence": (ef.SequenceClassification(), ef.LabelledBatch(TOKENS, CLASSES, valid=VALID)),
    "t5": (ef.SequenceToSequence(), pairs()),
}


def asked(batch):
    """The batch as transformers takes it."""
    if isinstance(batch, ef.PairBatch):
        labels = np.where(batch.target_weights, batch.target, IGNORED)[:, 1:]
        read, valid = batch.source, batch.source_valid
    else:
        counts = np.asarray(batch.label_weights()) != 0
        read, valid, labels = batch.tokens, batch.valid, np.where(counts, batch.labels, IGNORED)
    given = {"input_ids": read, "attention_mask": valid, "labels": labels}
    given = {name: array.astype(np.int64) for name, array in given.items()}  # as torch has ids
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in given.items()}


def reference(case, model, batch):
    """The loss of transformers and its gradients, by their names in a file."""
    tensors = {key: tensor.requires_grad_() for key, tensor in case.tensors(model)}
    model.config.decoder_start_token_id = START
    loss = model(**asked(batch)).loss
    gradients = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    known = {
        key: torch.zeros_like(tensor) if slope is None else slope
        for (key, tensor), slope in zip(tensors.items(), gradients, strict=True)
    }
    stored = revert_weight_conversion(model, known)
    return {"loss": loss.detach().numpy()} | {key: slope.numpy() for key, slope in stored.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_are_those_of_transformers(name, tmp_path):
    case, (loss, batch) = CASES[name], LOSSES[name]
    model = case.reference("hot")
    store(model, tmp_path)
    narrow = reference(case, model, batch)
    with float64_throughout():
        exact = reference(case, copy.deepcopy(model).double(), batch)

    checkpoint = Checkpoint(tmp_path)
    value, gradients = eqx.filter_jit(eqx.filter_value_and_grad(lambda m: loss(m, batch).mean))(
        checkpoint.model()
    )
    found, arrays = {"loss": np.asarray(value)}, ef.named_arrays(gradients)
    for binding in checkpoint.bindings:
        moved = binding.move.write([np.asarray(arrays[path]) for path in binding.ours])
        for theirs, gradient in zip(binding.theirs, moved, strict=True):
            found[checkpoint.stored.find(theirs)] = gradient
    assert found.keys() == exact.keys()
    noise = {key: float(np.abs(narrow[key] - exact[key]).max()) for key in exact}
    errors = [error_of(key, found[key], exact[key], noise[key]) for key in exact]
    wrong = [str(each) for each in errors if not each.passed]
    assert not wrong, "\n".join(wrong)


def test_contrastive_is_the_ranking_loss_of_sentence_transformers():
    """`MultipleNegativesRankingLoss` with one hard negative per row, of vectors given to it."""
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    vectors = [RANDOM.standard_normal((ROWS, 6)).astype(np.float32) for _ in range(3)]
    theirs = losses.MultipleNegativesRankingLoss(model=None, scale=1 / 0.05)
    tensors = [torch.from_numpy(each).requires_grad_() for each in vectors]
    value = theirs.compute_loss_from_embeddings(tensors, labels=None)
    value.backward()

    class Given(eqx.Module):
        """A model that looks its vectors up."""

        table: jnp.ndarray

        def embed(self, tokens, *, mask=None, key=None):
            return self.table[tokens[..., 0]]

    rows = np.arange(3 * ROWS).reshape(3, ROWS, 1)
    batch = ef.ContrastiveBatch(*map(ef.Sentences, rows[:2]), ef.Sentences(rows[2][:, None]))
    model = Given(jnp.asarray(np.concatenate(vectors)))
    ours, slope = eqx.filter_value_and_grad(lambda m: ef.Contrastive()(m, batch).mean)(model)
    np.testing.assert_allclose(ours, value.item(), rtol=1e-5)
    expected = np.concatenate([tensor.grad.numpy() for tensor in tensors])
    np.testing.assert_allclose(slope.table, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
