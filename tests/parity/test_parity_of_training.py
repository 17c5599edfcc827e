"""Training with our step is training with torch's AdamW, loss by loss and weight by weight."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import torch

import eqxformer as ef
from eqxformer.pretrained import Checkpoint
from tests.helpers.parity import Arrays, error_of, make_batch
from tests.parity.cases import CASES
from tests.parity.live import float64_throughout, store

GPT2 = CASES["gpt2"]
STEPS, RATE, BETAS, DECAY, CLIP = 5, 1e-2, (0.9, 0.95), 0.1, 0.5
EPSILON = (
    1e-4  # large enough to be seen, and to keep Adam from magnifying the noise of small gradients
)


def train_theirs(model: torch.nn.Module, tokens: np.ndarray) -> tuple[list[float], Arrays]:
    """The loss before every step, and the weights after the last; only matrices decay."""
    parameters = dict(GPT2.tensors(model))
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, eps=EPSILON)
    ids, losses = torch.from_numpy(tokens), []
    for _ in range(STEPS):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)
        optimizer.step()
        losses.append(loss.item())
    return losses, {key: p.detach().numpy() for key, p in parameters.items()}


def test_five_steps_of_adamw(tmp_path):
    model = GPT2.reference("cold")
    store(model, tmp_path)
    tokens = make_batch()["tokens"]
    with float64_throughout():
        exact, exact_weights = train_theirs(copy.deepcopy(model).double(), tokens)
    narrow, narrow_weights = train_theirs(model, tokens)

    settings = ef.AdamW(
        RATE, betas=BETAS, epsilon=EPSILON, weight_decay=DECAY, clip=ef.ClipByNorm(CLIP)
    )
    optimizer, checkpoint = settings.build(STEPS), Checkpoint(tmp_path)
    config = checkpoint.config.edit("blocks.*.*", dropout=0.0).edit("embedding", dropout=0.0)
    ours = ef.rebuild(checkpoint.model(), config)
    state = ef.TrainState.create(ours, optimizer, key=jax.random.key(0))
    step, losses = ef.make_step(ef.next_token_loss, optimizer), []
    for _ in range(STEPS):
        state, metrics = step(state, ef.TokenBatch(jnp.asarray(tokens)))
        losses.append(float(metrics["loss"]))

    noise = float(np.abs(np.subtract(narrow, exact)).max())
    found = [error_of("losses", np.asarray(losses), np.asarray(exact), noise)]
    arrays = ef.named_arrays(state.model)
    for binding in checkpoint.bindings:
        moved = binding.move.write([np.asarray(arrays[path]) for path in binding.ours])
        for name, array in zip(binding.theirs, moved, strict=True):
            true = exact_weights[name]
            found.append(
                error_of(name, array, true, float(np.abs(narrow_weights[name] - true).max()))
            )
    assert losses[-1] < losses[0] - 0.1
    wrong = [str(each) for each in found if not each.passed]
    assert not wrong, "\n".join(wrong)
