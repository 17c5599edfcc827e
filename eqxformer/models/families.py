"""The config trees of well-known families, from a handful of sizes. Edit them as you like.

Each function is the whole architecture on one screen; `print` its result to see the tree.
"""

from eqxformer.blocks.block import Block
from eqxformer.blocks.residual import Residual, post_norm, pre_norm
from eqxformer.layers.attention import Attention
from eqxformer.layers.biases import RelativeBias
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import MLP, GatedMLP
from eqxformer.layers.initializers import Glorot, Normal, TruncatedNormal
from eqxformer.layers.linear import Linear
from eqxformer.layers.norms import LayerNorm, RMSNorm
from eqxformer.layers.positions import LearnedPositions, Sinusoids
from eqxformer.layers.rotary import Rotary
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.embedding import InputEmbedding, TypeEmbedding
from eqxformer.models.encoder import Encoder
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.models.heads import LinearHead, TiedHead
from eqxformer.models.label_heads import Pooling


def gpt(
    *,
    vocab: int,
    dim: int,
    layers: int,
    heads: int,
    context: int,
    hidden: int | None = None,
    bias: bool = True,
    dropout: float = 0.0,
) -> DecoderLM.Config:
    """GPT-2: learned positions, pre-norm, tanh GELU, a tied head (Radford et al. 2019).

    Weights start at N(0, 0.02^2), those that write to the residual at `1 / sqrt(2 layers)` of it.

    Example:
        >>> import eqxformer as ef, jax
        >>> config = ef.families.gpt(vocab=50257, dim=768, layers=12, heads=12, context=1024)
        >>> model = ef.shapes(config)  # built without allocating memory
        >>> f"{ef.count(model):,}"
        '124,439,808'
    """
    reads = Linear.Config(bias=bias, init=Normal(0.02))
    writes = Linear.Config(bias=bias, init=Normal(0.02 * (2 * layers) ** -0.5))
    norm = LayerNorm.Config(bias=bias)
    block = Block.Config(
        attention=Attention.Config(
            heads=heads, query=reads, key=reads, value=reads, out=writes, dropout=dropout
        ),
        feed_forward=MLP.Config(
            hidden=hidden or 4 * dim, activation="gelu_tanh", up=reads, down=writes
        ),
        attention_residual=pre_norm(norm, dropout),
        feed_forward_residual=pre_norm(norm, dropout),
    )
    return DecoderLM.Config(
        vocab=vocab,
        dim=dim,
        embedding=InputEmbedding.Config(
            positions=LearnedPositions.Config(length=context), dropout=dropout
        ),
        blocks=(block,) * layers,
        norm=norm,
        head=TiedHead.Config(),
    )


def llama(
    *,
    vocab: int,
    dim: int,
    layers: int,
    heads: int,
    hidden: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    rotary: Rotary = Rotary(),
) -> DecoderLM.Config:
    """Llama: rotary positions, RMS pre-norm, SwiGLU, no biases (Touvron et al. 2023).

    Example:
        >>> import eqxformer as ef
        >>> config = ef.families.llama(vocab=65, dim=64, layers=2, heads=4, kv_heads=2, hidden=128)
        >>> f"{ef.count(ef.shapes(config)):,}"
        '82,368'
    """
    plain = Linear.Config(bias=False, init=Normal(0.02))
    wiring = pre_norm(RMSNorm.Config(eps=1e-5))
    block = Block.Config(
        attention=Attention.Config(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            query=plain,
            key=plain,
            value=plain,
            out=plain,
            rotary=rotary,
        ),
        feed_forward=GatedMLP.Config(hidden=hidden, gate=plain, up=plain, down=plain),
        attention_residual=wiring,
        feed_forward_residual=wiring,
    )
    return DecoderLM.Config(
        vocab=vocab,
        dim=dim,
        blocks=(block,) * layers,
        norm=RMSNorm.Config(eps=1e-5),
        head=LinearHead.Config(linear=plain),
    )


def bert(
    *,
    vocab: int,
    dim: int,
    layers: int,
    heads: int,
    hidden: int,
    context: int = 512,
    types: int = 2,
    dropout: float = 0.0,
) -> Encoder.Config:
    """BERT: learned positions, token types, post-norm, exact GELU (Devlin et al. 2019).

    Example:
        >>> import eqxformer as ef
        >>> config = ef.families.bert(vocab=30522, dim=768, layers=12, heads=12, hidden=3072)
        >>> f"{ef.count(ef.shapes(config)):,}"
        '109,482,240'
    """
    linear = Linear.Config(init=TruncatedNormal(0.02))
    norm = LayerNorm.Config(eps=1e-12)
    block = Block.Config(
        attention=Attention.Config(
            heads=heads, query=linear, key=linear, value=linear, out=linear, dropout=dropout
        ),
        feed_forward=MLP.Config(hidden=hidden, up=linear, down=linear),
        attention_residual=post_norm(norm, dropout),
        feed_forward_residual=post_norm(norm, dropout),
    )
    return Encoder.Config(
        vocab=vocab,
        dim=dim,
        embedding=InputEmbedding.Config(
            positions=LearnedPositions.Config(length=context),
            types=TypeEmbedding.Config(count=types),
            norm=norm,
            dropout=dropout,
        ),
        blocks=(block,) * layers,
        pooling=Pooling.Config(take="first", dense=linear),
    )


def transformer(
    *,
    vocab: int,
    dim: int,
    layers: int,
    heads: int,
    hidden: int,
    head_dim: int | None = None,
    target_vocab: int | None = None,
    wiring: Residual.Config | None = None,
    dropout: float = 0.0,
) -> EncoderDecoder.Config:
    """The first transformer: sinusoids, post-norm, ReLU, untied output (Vaswani et al. 2017).

    `head_dim` may be any size; the output has a bias. `wiring=ef.pre_norm()` makes it pre-norm.

    Example:
        >>> import eqxformer as ef
        >>> config = ef.families.transformer(
        ...     vocab=28, dim=8, layers=1, heads=7, head_dim=5, hidden=5
        ... )
        >>> f"{ef.count(ef.shapes(config)):,}"
        '4,665'
    """
    linear, wiring = Linear.Config(init=Glorot()), wiring or post_norm(dropout=dropout)
    attention = Attention.Config(
        heads=heads, head_dim=head_dim, query=linear, key=linear, value=linear, out=linear
    )
    reader = Block.Config(
        attention=attention,
        feed_forward=MLP.Config(hidden=hidden, activation="relu", up=linear, down=linear),
        attention_residual=wiring,
        cross_residual=wiring,
        feed_forward_residual=wiring,
    )
    embedding = InputEmbedding.Config(
        tokens=Embedding.Config(init=Normal(dim**-0.5)),
        scale="sqrt(dim)",
        positions=Sinusoids.Config(),
        dropout=dropout,
    )
    last = wiring.pre_norm  # pre-norm leaves the last block's sum without a norm
    return EncoderDecoder.Config(
        encoder=Encoder.Config(
            vocab=vocab, dim=dim, embedding=embedding, blocks=(reader,) * layers, norm=last
        ),
        decoder=DecoderLM.Config(
            vocab=target_vocab or vocab,
            dim=dim,
            embedding=embedding,
            blocks=(reader.edit(cross_attention=attention),) * layers,
            norm=last,
            head=LinearHead.Config(linear=Linear.Config(init=Glorot())),
        ),
    )


def t5(
    *,
    vocab: int,
    dim: int,
    layers: int,
    heads: int,
    head_dim: int,
    hidden: int,
    dropout: float = 0.0,
) -> EncoderDecoder.Config:
    """T5 1.0: a shared relative bias, RMS pre-norm, ReLU, one table (Raffel et al. 2020).

    No projection has a bias. Scores are not scaled; the initialisation makes up for it.

    Example:
        >>> import eqxformer as ef
        >>> config = ef.families.t5(
        ...     vocab=32128, dim=512, layers=6, heads=8, head_dim=64, hidden=2048
        ... )
        >>> f"{ef.count(ef.shapes(config)):,}"
        '60,506,624'
    """
    inner = heads * head_dim
    attention = Attention.Config(
        heads=heads,
        head_dim=head_dim,
        scale=1.0,
        dropout=dropout,
        query=Linear.Config(bias=False, init=Normal((dim * head_dim) ** -0.5)),
        key=Linear.Config(bias=False, init=Normal(dim**-0.5)),
        value=Linear.Config(bias=False, init=Normal(dim**-0.5)),
        out=Linear.Config(bias=False, init=Normal(inner**-0.5)),
    )
    wiring = pre_norm(RMSNorm.Config(), dropout)
    reader = Block.Config(
        attention=attention,
        feed_forward=MLP.Config(
            hidden=hidden,
            activation="relu",
            dropout=dropout,
            up=Linear.Config(bias=False, init=Normal(dim**-0.5)),
            down=Linear.Config(bias=False, init=Normal(hidden**-0.5)),
        ),
        attention_residual=wiring,
        cross_residual=wiring,
        feed_forward_residual=wiring,
    )
    embedding = InputEmbedding.Config(tokens=Embedding.Config(init=Normal(1.0)), dropout=dropout)
    return EncoderDecoder.Config(
        encoder=Encoder.Config(
            vocab=vocab,
            dim=dim,
            embedding=embedding,
            blocks=(reader,) * layers,
            norm=RMSNorm.Config(),
            bias=RelativeBias.Config(),
        ),
        decoder=DecoderLM.Config(
            vocab=vocab,
            dim=dim,
            embedding=embedding,
            blocks=(reader.edit(cross_attention=attention),) * layers,
            norm=RMSNorm.Config(),
            bias=RelativeBias.Config(direction="causal"),
            head=TiedHead.Config(scale="1/sqrt(dim)"),
        ),
        tokens="shared",
    )
