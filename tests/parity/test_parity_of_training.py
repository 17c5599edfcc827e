"""Training with our step is training with torch's AdamW, loss by loss and weight by weight."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import torch

import eqxformer as ef
from tests.parity.decoder_families import GPT2
from tests.parity.reference import Arrays, error_of, float64_throughout, make_batch, tensors_of
from tests.parity.weight_rules import fill, read

STEPS, RATE, BETAS, DECAY, CLIP = 5, 1e-2, (0.9, 0.95), 0.1, 0.5
EPSILON = (
    1e-4  # large enough to be seen, and to keep Adam from magnifying the noise of small gradients
)


def train_theirs(model: torch.nn.Module, tokens: np.ndarray) -> tuple[list[float], Arrays]:
    """The loss before every step, and the weights after the last; only matrices decay."""
    parameters = tensors_of(GPT2, model)
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


def test_five_steps_of_adamw():
    torch.manual_seed(0)
    model = GPT2.reference().eval()
    start = {key: p.detach().numpy().copy() for key, p in tensors_of(GPT2, model).items()}
    tokens = make_batch().tokens
    with float64_throughout():
        exact, exact_weights = train_theirs(copy.deepcopy(model).double(), tokens)
    narrow, narrow_weights = train_theirs(model, tokens)

    settings = ef.AdamW(
        RATE, betas=BETAS, epsilon=EPSILON, weight_decay=DECAY, clip=ef.ClipByNorm(CLIP)
    )
    optimizer = settings.build(STEPS)
    ours = fill(GPT2.config, GPT2.rules, start)
    state = ef.TrainState.create(ours, optimizer, key=jax.random.key(0))
    step, losses = ef.make_step(ef.next_token_loss, optimizer), []
    for _ in range(STEPS):
        state, metrics = step(state, ef.TokenBatch(jnp.asarray(tokens)))
        losses.append(float(metrics["loss"]))

    found = [error_of("losses", *map(np.asarray, (losses, narrow, exact)))]
    noisy, true = (read(ours, GPT2.rules, each) for each in (narrow_weights, exact_weights))
    for key, array in ef.named_arrays(state.model).items():
        found.append(error_of(key, np.asarray(array), noisy[key], true[key]))
    assert losses[-1] < losses[0] - 0.1
    wrong = [each for each in found if not each.error <= each.tolerance]
    assert not wrong, "\n" + "\n".join(map(str, wrong))
