"""The models of the recipes `mlm` and `denoise` in plain PyTorch, and their training.

Modules have the names that the parts have in eqxformer, so that weights find their places by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from peers.torch_models import heads_of, rotary_tables, rotated
from peers.torch_step import load

EPSILON = 1e-5  # of norms


class Attention(nn.Module):
    """Attention to a source, or to itself with rotary positions."""

    def __init__(self, dim: int, heads: int, bias: bool):
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.value, self.out = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, source: Tensor | None = None, causal: bool = False) -> Tensor:
        seen = x if source is None else source
        q, k, v = (
            heads_of(part(y), self.heads)
            for part, y in ((self.query, x), (self.key, seen), (self.value, seen))
        )
        if source is None:
            cos, sin = rotary_tables(x.shape[-2], q.shape[-1])
            q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out(y.transpose(1, 2).flatten(-2))


class GatedMLP(nn.Module):
    """`down(act(gate(x)) * up(x))`."""

    def __init__(self, dim: int, hidden: int, bias: bool, act: Callable[[Tensor], Tensor]):
        super().__init__()
        self.act = act
        self.gate, self.up = nn.Linear(dim, hidden, bias=bias), nn.Linear(dim, hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    """The norm before a part; none for a part whose input has just been normalised."""

    def __init__(self, dim: int, bias: bool, there: bool = True):
        super().__init__()
        self.pre_norm = nn.LayerNorm(dim, EPSILON, bias=bias) if there else nn.Identity()


class Block(nn.Module):
    """Pre-norm attention, attention to a source if there is one, and a feed-forward."""

    def __init__(self, config: Any, dim: int):
        super().__init__()
        attention, hidden = config.attention, config.feed_forward
        bias, norms = attention.query.bias, config.feed_forward_residual.pre_norm.bias
        first = config.attention_residual.pre_norm is None
        act = {"gelu": F.gelu, "silu": F.silu}[hidden.activation]
        self.attention = Attention(dim, attention.heads, bias)
        self.attention_residual = Residual(dim, norms, there=not first)
        self.feed_forward = GatedMLP(dim, hidden.hidden, hidden.up.bias, act)
        self.feed_forward_residual = Residual(dim, norms)
        self.causal = config.cross_attention is not None
        if self.causal:
            self.cross_attention = Attention(dim, config.cross_attention.heads, bias)
            self.cross_residual = Residual(dim, norms)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_residual.pre_norm(x), causal=self.causal)
        if source is not None:
            x = x + self.cross_attention(self.cross_residual.pre_norm(x), source)
        return x + self.feed_forward(self.feed_forward_residual.pre_norm(x))


class Side(nn.Module):
    """An encoder or a decoder, between embedded tokens and its last norm."""

    def __init__(self, config: Any):
        super().__init__()
        self.blocks = nn.ModuleList(Block(block, config.dim) for block in config.blocks)
        self.norm = nn.LayerNorm(config.dim, EPSILON, bias=config.norm.bias)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, source)
        return self.norm(x)


class Embedding(nn.Module):
    """A table of tokens, and a norm where there is one."""

    def __init__(self, config: Any):
        super().__init__()
        self.tokens = nn.Embedding(config.vocab, config.dim)
        norm = config.embedding.norm
        self.norm = nn.LayerNorm(config.dim, EPSILON, bias=norm.bias) if norm else nn.Identity()

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.tokens(ids))


class MaskedLM(nn.Module):
    """ModernBERT's encoder and its head, whose output is the table of tokens."""

    def __init__(self, config: Any):
        super().__init__()
        inner = config.encoder
        self.encoder = Side(inner)
        self.encoder.embedding = Embedding(inner)
        self.head = nn.Module()
        self.head.dense = nn.Linear(inner.dim, inner.dim, bias=config.head.dense.bias)
        self.head.norm = nn.LayerNorm(inner.dim, EPSILON, bias=config.head.norm.bias)
        self.head.output = nn.Module()
        self.head.output.bias = nn.Parameter(torch.zeros(inner.vocab))

    def loss(self, batch: Any) -> Tensor:
        """The mean cross-entropy of the hidden tokens."""
        x = self.encoder(self.encoder.embedding(ids(batch.tokens)))
        x = self.head.norm(F.gelu(self.head.dense(x)))
        scores = F.linear(x, self.encoder.embedding.tokens.weight, self.head.output.bias)
        chosen = torch.from_numpy(np.asarray(batch.weights))
        return F.cross_entropy(scores[chosen], ids(batch.labels)[chosen])


class EncoderDecoder(nn.Module):
    """Both sides, with one table of tokens."""

    def __init__(self, config: Any):
        super().__init__()
        self.encoder, self.decoder = Side(config.encoder), Side(config.decoder)
        self.encoder.embedding = Embedding(config.encoder)

    def loss(self, batch: Any) -> Tensor:
        """The mean cross-entropy of each target token but the first."""
        embedding, target = self.encoder.embedding, ids(batch.target)
        source = self.encoder(embedding(ids(batch.source)))
        scores = F.linear(self.decoder(embedding(target[:, :-1]), source), embedding.tokens.weight)
        return F.cross_entropy(scores.flatten(0, 1), target[:, 1:].flatten())


MODELS = {"mlm": MaskedLM, "denoise": EncoderDecoder}


def ids(array: Any) -> Tensor:
    """Token ids as torch wants them."""
    return torch.from_numpy(np.asarray(array)).long()


def twin(name: str, config: Any, weights: Mapping[str, np.ndarray]) -> nn.Module:
    """The model of a recipe with these weights, every one of which finds its place."""
    model = MODELS[name](config)
    left = dict(weights)
    for path, parameter in model.named_parameters():
        array = left.pop(path)
        linear = isinstance(model.get_submodule(path.rpartition(".")[0]), nn.Linear)
        load(parameter, array.T if linear and array.ndim == 2 else array)
    if left:
        raise ValueError(f"The twin has no place for {', '.join(left)}.")
    return model


def training(
    model: nn.Module, settings: Any, batches: Callable[[int], Any], rate: Callable[[int], float]
) -> Callable[[int], float]:
    """A function that takes a step, given its number, and returns the loss before it."""
    every = list(model.parameters())
    groups = [
        {"params": [p for p in every if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.epsilon)

    def step(number: int) -> float:
        for group in adamw.param_groups:
            group["lr"] = rate(number)
        adamw.zero_grad(set_to_none=True)
        loss = model.loss(batches(number))
        loss.backward()
        nn.utils.clip_grad_norm_(every, settings.clip.limit)
        adamw.step()
        return loss.item()

    return step
