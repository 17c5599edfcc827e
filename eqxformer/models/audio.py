"""An encoder of audio: a spectrogram in place of tokens, two convolutions in place of a table."""

from typing import Annotated

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from eqxformer.axes import Axes
from eqxformer.blocks.block import AbstractBlock, Context
from eqxformer.blocks.stack import Layout, Stack, Unrolled
from eqxformer.config import Config, takes_options
from eqxformer.keys import split
from eqxformer.layers.activations import Activation, activation
from eqxformer.layers.convolution import Convolution
from eqxformer.layers.dropout import check_rate, dropout
from eqxformer.layers.feed_forward import RouterLosses
from eqxformer.layers.masks import Mask
from eqxformer.layers.norms import Norm, build_norm
from eqxformer.layers.positions import Positions
from eqxformer.models.arguments import check_reads_positions, check_sizes


class AudioEmbedding(eqx.Module):
    """What enters the first block: `dropout(act(second(act(first(frames)))) + positions[p])`.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> embedding = ef.AudioEmbedding(80, 16, key=jax.random.key(0))
        >>> embedding(jnp.ones((2, 100, 80))).shape
        (2, 50, 16)
    """

    class Config(Config):
        """Two convolutions, the second of which skips every other frame unless said."""

        first: Convolution.Config = Convolution.Config()
        second: Convolution.Config = Convolution.Config(stride=2)
        activation: Activation = "gelu"
        positions: Positions.Config | None = None
        dropout: float = 0.0

        def check(self) -> None:
            check_rate("dropout", self.dropout)

        def build(self, bins: int, dim: int, *, key: PRNGKeyArray) -> "AudioEmbedding":
            """The embedding of frames of so many numbers in a model of this width."""
            return AudioEmbedding(bins, dim, self, key=key)

    first: Annotated[Convolution, Axes(in_dim="bins", out_dim="dim")]
    second: Annotated[Convolution, Axes(in_dim="dim", out_dim="dim")]
    positions: Positions | None
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, bins: int, dim: int, config: Config, *, key: PRNGKeyArray):
        first, second, positions = split(key, 3)
        self.first = config.first.build(bins, dim, key=first)
        self.second = config.second.build(dim, dim, key=second)
        self.positions = None
        if config.positions is not None:
            self.positions = config.positions.build(dim, key=positions)
        self.config = config

    def __call__(
        self,
        frames: Float[Array, "*batch frames bins"],
        *,
        positions: Int[Array, "*#batch seq"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq dim"]:
        """The vectors of these frames, in the type of the weights.

        Arguments:
            positions: of every place that the convolutions leave; counted from 0 if None.
            key: switches dropout on.
        """
        act = activation(self.config.activation)
        x = act(self.second(act(self.first(frames.astype(self.first.weight.dtype)))))
        if self.positions is not None:
            at = jnp.arange(x.shape[-2]) if positions is None else positions
            x = x + jnp.broadcast_to(self.positions(at).astype(x.dtype), x.shape)
        return dropout(x, self.config.dropout, key)


class AudioEncoder(eqx.Module):
    """An encoder of audio: `norm(blocks(embedding(frames)))` (Radford et al. 2022, Whisper).

    It takes the place of an `Encoder` in an `EncoderDecoder`.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> block = ef.Block.Config(ef.Attention.Config(heads=2), ef.MLP.Config(hidden=32))
        >>> config = ef.AudioEncoder.Config(bins=80, dim=16, blocks=(block,))
        >>> config.build(key=jax.random.key(0))(jnp.ones((2, 100, 80))).shape
        (2, 50, 16)
    """

    class Config(Config):
        """The whole encoder.

        Arguments:
            bins: numbers per frame, such as the bands of a mel spectrogram.
            dim: width of the residual stream.
            blocks: the config of every block, first to last.
            embedding: what enters the first block.
            norm: the norm after the last block, or None.
            layout: how the blocks are stored and run.
        """

        bins: int
        dim: int
        blocks: tuple[AbstractBlock.Config, ...]
        embedding: AudioEmbedding.Config = AudioEmbedding.Config()
        norm: Norm.Config | None = None
        layout: Layout = Unrolled()

        def check(self) -> None:
            check_sizes(bins=self.bins, dim=self.dim)

        def build(self, *, key: PRNGKeyArray) -> "AudioEncoder":
            """The model, freshly initialised."""
            return AudioEncoder(self, key=key)

    embedding: AudioEmbedding
    blocks: Stack
    norm: Norm
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, config: Config, *, key: PRNGKeyArray):
        embedding, blocks = split(key, 2)
        self.embedding = config.embedding.build(config.bins, config.dim, key=embedding)
        self.blocks = Stack.build(config.blocks, dim=config.dim, layout=config.layout, key=blocks)
        self.norm = build_norm(config.norm, config.dim)
        self.config = config

    def __call__(
        self,
        frames: Float[Array, "*batch frames bins"],
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq dim"]:
        """The hidden state of every place that the convolutions leave.

        Arguments:
            mask: which of these places may look at which.
            positions: the number of every such place; counted from 0 if None.
            key: switches dropout on.
        """
        return self.run(frames, mask=mask, positions=positions, key=key)[0]

    def run(
        self,
        frames: Float[Array, "*batch frames bins"],
        *,
        mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], RouterLosses | None]:
        """The hidden states, and the losses of routers; arguments as in a call."""
        check_reads_positions(self.config, positions)
        embedding_key, blocks_key = split(key, 2)
        x = self.embedding(frames, positions=positions, key=embedding_key)
        x, _, losses = self.blocks.run(x, Context(mask, positions), key=blocks_key)
        return self.norm(x), losses
