"""The models in plain PyTorch: a small GPT, a small Llama, and `nn.Transformer`.

Attention goes through `scaled_dot_product_attention`, query, key and value are one product, as in
the small GPTs that people train from.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from peers.task import NORM_EPSILON, ROTARY_BASE, Size, Task, sinusoids
from peers.torch_step import load, load_linear, load_norm


def heads_of(x: Tensor, heads: int) -> Tensor:
    """`[batch, seq, dim]` as `[batch, heads, seq, head_dim]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Attention(nn.Module):
    """Causal self-attention, rotary if it is told to turn."""

    def __init__(self, size: Size, bias: bool):
        super().__init__()
        self.heads = size.heads
        self.qkv = nn.Linear(size.dim, 3 * size.dim, bias=bias)
        self.out = nn.Linear(size.dim, size.dim, bias=bias)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        q, k, v = (heads_of(part, self.heads) for part in self.qkv(x).chunk(3, -1))
        if turn is not None:
            q, k = rotated(q, *turn), rotated(k, *turn)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(-2))


class MLP(nn.Module):
    """`down(gelu(up(x)))`."""

    def __init__(self, size: Size):
        super().__init__()
        self.up, self.down = nn.Linear(size.dim, size.hidden), nn.Linear(size.hidden, size.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, size: Size):
        super().__init__()
        self.gate = nn.Linear(size.dim, size.hidden, bias=False)
        self.up = nn.Linear(size.dim, size.hidden, bias=False)
        self.down = nn.Linear(size.hidden, size.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def norm(size: Size) -> nn.Module:
    """The norm of this kind of model."""
    return (nn.LayerNorm if size.kind == "gpt" else nn.RMSNorm)(size.dim, eps=NORM_EPSILON)


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, size: Size):
        super().__init__()
        gpt = size.kind == "gpt"
        self.attention_norm, self.feed_forward_norm = norm(size), norm(size)
        self.attention = Attention(size, bias=gpt)
        self.feed_forward = MLP(size) if gpt else SwiGLU(size)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), turn)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Decoder(nn.Module):
    """GPT-2, or Llama with a tied head."""

    def __init__(self, size: Size):
        super().__init__()
        self.tokens = nn.Embedding(size.vocab, size.dim)
        self.positions = nn.Embedding(size.seq, size.dim) if size.kind == "gpt" else None
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = norm(size)
        cos, sin = rotary_tables(size.seq, size.dim // size.heads)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, ids: Tensor) -> Tensor:
        x, turn = self.tokens(ids), None
        if self.positions is None:
            turn = self.cos, self.sin
        else:
            x = x + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x, turn)
        return F.linear(self.norm(x), self.tokens.weight)


def rotary_tables(length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles, `[length, head_dim]`, both halves alike."""
    rates = ROTARY_BASE ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), rates).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The pairs `(x[i], x[i + head_dim / 2])`, turned."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def decoder(task: Task) -> Decoder:
    """The decoder with the task's weights."""
    model, weights = Decoder(task.size), task.weights
    load(model.tokens.weight, weights["embedding.tokens.weight"])
    if model.positions is not None:
        load(model.positions.weight, weights["embedding.positions.weight"])
    for number, block in enumerate(model.blocks):
        layer = task.layer(number)
        attention = [f"attention.{name}" for name in ("query", "key", "value")]
        load_linear(block.attention.qkv, *attention, weights=layer)
        load_linear(block.attention.out, "attention.out", weights=layer)
        for name, linear in block.feed_forward.named_children():
            load_linear(linear, f"feed_forward.{name}", weights=layer)
        load_norm(block.attention_norm, "attention_residual.pre_norm", layer)
        load_norm(block.feed_forward_norm, "feed_forward_residual.pre_norm", layer)
    load_norm(model.norm, "norm", weights)
    return model


class Seq2Seq(nn.Module):
    """The layers of `nn.Transformer`, pre-norm, with sinusoids, and a head with a bias."""

    def __init__(self, size: Size):
        super().__init__()
        self.scale = size.dim**0.5
        self.source, self.target = (nn.Embedding(size.vocab, size.dim) for _ in range(2))
        wiring = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        sizes = size.dim, size.heads, size.hidden
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(*sizes, layer_norm_eps=NORM_EPSILON, **wiring),
            size.layers,
            nn.LayerNorm(size.dim, NORM_EPSILON),
            enable_nested_tensor=False,
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(*sizes, layer_norm_eps=NORM_EPSILON, **wiring),
            size.layers,
            nn.LayerNorm(size.dim, NORM_EPSILON),
        )
        self.head = nn.Linear(size.dim, size.vocab)
        waves = torch.from_numpy(sinusoids(max(size.seq, size.source), size.dim))
        self.register_buffer("waves", waves)
        causal = nn.Transformer.generate_square_subsequent_mask(size.seq)
        self.register_buffer("causal", causal)

    def embedded(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        """Scaled embeddings, with positions."""
        return table(ids) * self.scale + self.waves[: ids.shape[1]]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        x, y = self.embedded(self.source, source), self.embedded(self.target, target)
        y = self.decoder(y, self.encoder(x), tgt_mask=self.causal, tgt_is_causal=True)
        return self.head(y)


def seq2seq(task: Task) -> Seq2Seq:
    """The encoder-decoder with the task's weights."""
    model, weights = Seq2Seq(task.size), task.weights
    load(model.source.weight, weights["encoder.embedding.tokens.weight"])
    load(model.target.weight, weights["decoder.embedding.tokens.weight"])
    load_linear(model.head, "decoder.head.linear", weights=weights)
    sides = {"encoder.": model.encoder, "decoder.": model.decoder}
    for side, stack in sides.items():
        load_norm(stack.norm, f"{side}norm", weights)
        for number, block in enumerate(stack.layers):
            load_layer(block, task.layer(number, side))
    return model


def load_layer(block: nn.Module, layer: dict[str, object]) -> None:
    """Writes a block of ours into an encoder's or a decoder's layer of `nn.Transformer`."""
    last = "norm3" if "cross_attention.out.weight" in layer else "norm2"
    norms = {"norm1": "attention", last: "feed_forward"}
    attentions = {"self_attn": "attention"}
    if last == "norm3":
        norms["norm2"], attentions["multihead_attn"] = "cross", "cross_attention"
    for theirs, ours in norms.items():
        load_norm(getattr(block, theirs), f"{ours}_residual.pre_norm", layer)
    for theirs, ours in attentions.items():
        load_attention(getattr(block, theirs), ours, layer)
    load_linear(block.linear1, "feed_forward.up", weights=layer)
    load_linear(block.linear2, "feed_forward.down", weights=layer)


def load_attention(attention: nn.MultiheadAttention, name: str, layer: dict[str, object]) -> None:
    """Writes the four projections of an attention of ours into one of torch."""
    whole = nn.Linear(attention.embed_dim, 3 * attention.embed_dim)
    load_linear(whole, *(f"{name}.{part}" for part in ("query", "key", "value")), weights=layer)
    with torch.no_grad():
        attention.in_proj_weight.copy_(whole.weight)
        attention.in_proj_bias.copy_(whole.bias)
    load_linear(attention.out_proj, f"{name}.out", weights=layer)
