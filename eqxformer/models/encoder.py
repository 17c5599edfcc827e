"""An encoder: every token sees every other. With a head, a masked LM or a classifier."""

from typing import Literal

import equinox as eqx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.blocks.block import AbstractBlock, Context
from eqxformer.blocks.stack import Layout, Stack, Unrolled
from eqxformer.config import Config, takes_options
from eqxformer.keys import split
from eqxformer.layers.biases import PositionBias
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import RouterLosses
from eqxformer.layers.masked_calls import check_batch
from eqxformer.layers.masks import Causal, Mask, ordered, valid_keys
from eqxformer.layers.norms import Norm, build_norm
from eqxformer.models.arguments import check_reads_positions, check_sizes
from eqxformer.models.decoder_lm import shared_bias
from eqxformer.models.embedding import InputEmbedding, places
from eqxformer.models.heads import TokenHead
from eqxformer.models.label_heads import LabelHead, Pooling, SequenceHead
from eqxformer.models.origin import Origin, unknown


class Encoder(eqx.Module):
    """An encoder: `norm(blocks(embedding(tokens)))`, a vector per token that knows its context.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> block = ef.Block.Config(ef.Attention.Config(heads=2), ef.MLP.Config(hidden=32))
        >>> config = ef.Encoder.Config(vocab=65, dim=16, blocks=(block,))
        >>> encoder = config.build(key=jax.random.key(0))
        >>> encoder(jnp.array([[1, 2, 3]])).shape, encoder.embed(jnp.array([[1, 2, 3]])).shape
        ((1, 3, 16), (1, 16))
    """

    class Config(Config):
        """The whole encoder.

        Arguments:
            vocab: token ids.
            dim: width of the residual stream.
            blocks: the config of every block, first to last.
            embedding: what enters the first block.
            norm: the norm after the last block; None for post-norm models.
            bias: a position bias that all blocks share (T5).
            pooling: how `embed` makes one vector of a sequence.
            direction: whether a token also looks ahead; `causal` is a decoder without its head.
            layout: how the blocks are stored and run.
            origin: the checkpoint this is from.
        """

        vocab: int
        dim: int
        blocks: tuple[AbstractBlock.Config, ...]
        embedding: InputEmbedding.Config = InputEmbedding.Config()
        norm: Norm.Config | None = None
        bias: PositionBias.Config | None = None
        pooling: Pooling.Config = Pooling.Config()
        direction: Literal["bidirectional", "causal"] = "bidirectional"
        layout: Layout = Unrolled()
        origin: Origin | None = unknown()

        def check(self) -> None:
            check_sizes(vocab=self.vocab, dim=self.dim)

        def build(self, *, key: PRNGKeyArray) -> "Encoder":
            """The model, freshly initialised."""
            return Encoder(self, key=key)

    embedding: InputEmbedding
    blocks: Stack
    norm: Norm
    bias: PositionBias | None
    pooling: Pooling
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, config: Config, *, key: PRNGKeyArray):
        embedding, blocks, bias, pooling = split(key, 4)
        self.embedding = config.embedding.build(config.vocab, config.dim, key=embedding)
        self.blocks = Stack.build(config.blocks, dim=config.dim, layout=config.layout, key=blocks)
        self.norm = build_norm(config.norm, config.dim)
        self.bias = shared_bias(config.bias, config.blocks, bias)
        self.pooling = config.pooling.build(config.dim, key=pooling)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "*batch seq"],
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        types: Int[Array, "*batch seq"] | None = None,
        table: Embedding | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq dim"]:
        """The hidden state of every token.

        Arguments:
            mask: who may look at whom; `Padding(valid)` for sequences of several lengths.
            positions: the place of every token; counted from 0 over real tokens if None.
            types: the type (segment) of every token; all 0 if None.
            table: the token table, for a model that shares another's.
            key: switches dropout on.

        Raises `ValueError` for an id outside the vocabulary or a position past the table; under
        `jit` its row is NaN.
        """
        return self.run(tokens, mask=mask, positions=positions, types=types, table=table, key=key)[
            0
        ]

    def run(
        self,
        tokens: Int[Array, "*batch seq"],
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        types: Int[Array, "*batch seq"] | None = None,
        table: Embedding | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], RouterLosses | None]:
        """The hidden states, and the losses of routers; arguments as in a call."""
        check_reads_positions(self.config, positions)
        check_batch(mask, tokens.shape[:-1])
        embedding_key, blocks_key = split(key, 2)
        at = places(tokens.shape[-1], valid_keys(mask), positions)
        x = self.embedding(tokens, table=table, positions=at, types=types, key=embedding_key)
        if self.config.direction == "causal":
            mask = ordered(mask, Causal())
        x, _, losses = self.blocks.run(x, Context(mask, at, self.bias), key=blocks_key)
        return self.norm(x), losses

    def embed(
        self,
        tokens: Int[Array, "*batch seq"],
        *,
        mask: Mask | None = None,
        types: Int[Array, "*batch seq"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch dim"]:
        """One vector per sequence, as `pooling` makes it; arguments as in a call."""
        states_key, pooling_key = split(key, 2)
        states = self(tokens, mask=mask, types=types, key=states_key)
        return self.pooling(states, valid_keys(mask), key=pooling_key)


class EncoderWithHead(eqx.Module):
    """An encoder and what is asked of it: masked tokens, a label per sequence, a label per token.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> block = ef.Block.Config(ef.Attention.Config(heads=2), ef.MLP.Config(hidden=32))
        >>> encoder = ef.Encoder.Config(vocab=65, dim=16, blocks=(block,))
        >>> config = ef.EncoderWithHead.Config(encoder, ef.SequenceHead.Config(labels=3))
        >>> config.build(key=jax.random.key(0))(jnp.array([[1, 2, 3]])).shape
        (1, 3)
    """

    class Config(Config):
        """The encoder, the head, and the checkpoint both are from."""

        encoder: Encoder.Config
        head: TokenHead.Config | SequenceHead.Config | LabelHead.Config
        origin: Origin | None = unknown()

        def build(self, *, key: PRNGKeyArray) -> "EncoderWithHead":
            """The model, freshly initialised."""
            return EncoderWithHead(self, key=key)

    encoder: Encoder
    head: TokenHead | SequenceHead | LabelHead
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, config: Config, *, key: PRNGKeyArray):
        encoder, head = split(key, 2)
        self.encoder = config.encoder.build(key=encoder)
        inner = config.encoder
        self.head = config.head.build(inner.dim, inner.vocab, width=inner.embedding.width, key=head)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "*batch seq"],
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        types: Int[Array, "*batch seq"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*shape"]:
        """The head's scores; arguments as in a call of the encoder."""
        encoder_key, head_key = split(key, 2)
        x = self.encoder(tokens, mask=mask, positions=positions, types=types, key=encoder_key)
        if isinstance(self.head, TokenHead):
            return self.logits(x)
        return self.head(x, valid_keys(mask), key=head_key)

    def run(
        self,
        tokens: Int[Array, "*batch seq"],
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        types: Int[Array, "*batch seq"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], RouterLosses | None]:
        """The encoder's hidden states, and the losses of routers; arguments as in a call."""
        encoder_key, _ = split(key, 2)
        return self.encoder.run(
            tokens, mask=mask, positions=positions, types=types, key=encoder_key
        )

    def logits(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """The scores of every token, given hidden states, by a head that scores tokens.

        Raises `ValueError` for a head of labels.
        """
        if isinstance(self.head, TokenHead):
            return self.head(x, self.encoder.embedding.table())
        raise ValueError(
            f"This model has a {type(self.head).__name__}, which scores labels and not tokens; "
            "call it, or use SequenceClassification or TokenClassification as the loss."
        )
