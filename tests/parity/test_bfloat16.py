"""Loaded in bfloat16, a model is as accurate as the reference is in bfloat16."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import eqxformer as ef
from tests.helpers.parity import ours, without_padding
from tests.parity.cases import CASES, grouped
from tests.parity.live import VOCAB, float64_throughout, inputs_of, make_batch, outputs_of, store

# Roundings fall differently in two programs; the mean over hundreds of outputs of these models
# scatters by some hundredths. A norm or a softmax computed in bfloat16 would cost far more.
MARGIN = 1.2
FEW = ("bart-sequence",)  # a dozen outputs, of which no mean can be taken
NAMES = [name for name, case in CASES.items() if case.golden and name not in FEW]


@pytest.mark.parametrize("name", grouped(NAMES))
def test_errors_in_bfloat16_are_no_larger_than_the_reference_has(name, tmp_path):
    case = CASES[name]
    model = case.reference("cold").to(torch.bfloat16)
    store(model, tmp_path)
    padding = getattr(model.config, "pad_token_id", None) or 0
    inputs = inputs_of(model, make_batch(vocab=VOCAB, padding=padding))
    tensors = {key: torch.from_numpy(array) for key, array in inputs.items()}
    with torch.no_grad():
        theirs = outputs_of(case, model, tensors)
        with float64_throughout():
            exact = outputs_of(case, copy.deepcopy(model).double(), tensors)
    loaded = ef.from_pretrained(tmp_path, dtype="bfloat16")
    given = {key: jnp.asarray(array) for key, array in inputs.items()}
    found = jax.jit(lambda arrays: ours(loaded, arrays, case.places))(given)
    key = next(k for k in ("logits", "last") if k in exact)
    true = without_padding(exact[key].numpy(), inputs)

    routed = any("router" in each for each in ef.named_arrays(loaded))

    def error(output):
        """The root of the mean square; of experts without the one token in twenty that errs most.

        Where two experts are about as likely, rounding decides which of them a token goes to, in
        the reference too, and on another processor otherwise.
        """
        squares = np.square(without_padding(output, inputs) - true)
        if routed:
            each = np.sort(squares.reshape(-1, squares.shape[-1]).mean(-1))
            squares = each[: len(each) - len(each) // 20]
        return np.sqrt(squares.mean())

    reference = error(theirs[key].float().numpy())
    assert error(np.asarray(found[key], np.float32)) <= MARGIN * reference, reference
