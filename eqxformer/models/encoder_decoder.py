"""An encoder-decoder: the encoder reads the source, the decoder writes the target."""

from typing import Literal

import equinox as eqx
import jax
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from eqxformer.config import Config, takes_options
from eqxformer.keys import split
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import RouterLosses
from eqxformer.layers.masks import Mask, Padding, Segments, join, parts
from eqxformer.models.arguments import check_reads_positions, check_reads_source
from eqxformer.models.audio import AudioEncoder
from eqxformer.models.decoder_lm import DecoderLM, ModelCache
from eqxformer.models.encoder import Encoder
from eqxformer.models.origin import Origin, unknown

Source = Int[Array, "*batch keys"] | Float[Array, "*batch frames bins"]


class EncoderDecoder(eqx.Module):
    """An encoder-decoder: `decoder(target, encoder(source))` (Vaswani et al. 2017).

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> config = ef.families.transformer(vocab=28, dim=8, layers=1, heads=2, hidden=16)
        >>> model = config.build(key=jax.random.key(0))
        >>> model(jnp.array([[1, 2, 3, 4]]), jnp.array([[5, 6]])).shape
        (1, 2, 28)
    """

    class Config(Config):
        """The two sides, whether they share a token table, and the checkpoint they are from."""

        encoder: Encoder.Config | AudioEncoder.Config
        decoder: DecoderLM.Config
        tokens: Literal["separate", "shared"] = "separate"
        origin: Origin | None = unknown()

        def check(self) -> None:
            tables = [_table(side) for side in (self.encoder, self.decoder)]
            if self.tokens == "shared" and tables[0] != tables[1]:
                raise ValueError(
                    "To share a token table, encoder and decoder need one vocabulary and width; "
                    f"got {tables[0]} and {tables[1]}."
                )
            if self.decoder.source_dim not in (None, self.encoder.dim):
                raise ValueError(
                    "The decoder's `source_dim` must be None or the encoder's width; got "
                    f"{self.decoder.source_dim} and {self.encoder.dim}."
                )
            check_reads_source(self.decoder.blocks)

        def build(self, *, key: PRNGKeyArray) -> "EncoderDecoder":
            """The model, freshly initialised."""
            return EncoderDecoder(self, key=key)

    encoder: Encoder | AudioEncoder
    decoder: DecoderLM
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, config: Config, *, key: PRNGKeyArray):
        encoder, decoder = split(key, 2)
        self.encoder = config.encoder.build(key=encoder)
        built = config.decoder.build(source_dim=config.encoder.dim, key=decoder)
        if config.tokens == "shared":
            built = eqx.tree_at(lambda d: d.embedding.tokens, built, None)
        self.decoder = built
        self.config = config

    def __call__(
        self,
        source: Source,
        target: Int[Array, "*batch seq"],
        *,
        source_mask: Mask | None = None,
        mask: Mask | None = None,
        cross_mask: Mask | None = None,
        source_positions: Int[Array, "*#batch keys"] | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*batch seq vocab"]:
        """The logits of the next target token at every place of the target.

        Arguments:
            source: token ids, or the frames that an `AudioEncoder` hears.
            source_mask: who may look at whom in the source; `Padding(valid)` for sources of several
                lengths, which the target does not look at either.
            mask: who may look at whom in the target, beside `Causal()`.
            cross_mask: what the target may look at in the source, beside what is not padding. One
                by places, such as `Prefix`, counts the target's from the start of a row, with a
                cache its real tokens alone.
            source_positions, positions: the place of every token of the source and of the target;
                counted from 0 over real tokens if None.
            key: switches dropout on.

        Raises `ValueError` for a source packed with `Segments` without a `cross_mask`.
        """
        x, _ = self.run(
            source,
            target,
            source_mask=source_mask,
            mask=mask,
            cross_mask=cross_mask,
            source_positions=source_positions,
            positions=positions,
            key=key,
        )
        return self.logits(x)

    def run(
        self,
        source: Source,
        target: Int[Array, "*batch seq"],
        *,
        source_mask: Mask | None = None,
        mask: Mask | None = None,
        cross_mask: Mask | None = None,
        source_positions: Int[Array, "*#batch keys"] | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], RouterLosses | None]:
        """The decoder's hidden states before the head, and the routers' losses of both sides."""
        across = _across(source_mask, cross_mask)
        self._check_source_positions(source_positions)
        encoder_key, decoder_key = split(key, 2)
        encoded, encoder_losses = self.encoder.run(
            source, mask=source_mask, positions=source_positions, key=encoder_key
        )
        x, _, decoder_losses = self.decoder.run(
            target,
            encoded,
            mask=mask,
            positions=positions,
            source_mask=across,
            table=self._shared_table(),
            key=decoder_key,
        )
        found = [each for each in (encoder_losses, decoder_losses) if each is not None]
        return x, jax.tree.map(lambda *each: sum(each), *found) if found else None

    def logits(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch vocab"]:
        """The scores of every token, given the decoder's hidden states."""
        return self.decoder.logits(x, table=self._shared_table())

    def init_cache(
        self,
        source: Source,
        slots: int,
        *,
        source_mask: Mask | None = None,
        source_positions: Int[Array, "*#batch keys"] | None = None,
        dtype: DTypeLike | None = None,
    ) -> ModelCache:
        """The source read and remembered, and room for `slots` target tokens per row."""
        self._check_source_positions(source_positions)
        encoded = self.encoder(source, mask=source_mask, positions=source_positions)
        return self.decoder.init_cache(encoded.shape[:-2], slots, source=encoded, dtype=dtype)

    def extend(
        self,
        target: Int[Array, "*batch seq"],
        cache: ModelCache,
        *,
        source_mask: Mask | None = None,
        mask: Mask | None = None,
        cross_mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
    ) -> tuple[Float[Array, "*batch seq vocab"], ModelCache]:
        """The logits of target tokens that follow those in the cache, and the cache with them."""
        x, cache = self.read(
            target,
            cache,
            source_mask=source_mask,
            mask=mask,
            cross_mask=cross_mask,
            positions=positions,
        )
        return self.logits(x), cache

    def read(
        self,
        target: Int[Array, "*batch seq"],
        cache: ModelCache,
        *,
        source_mask: Mask | None = None,
        mask: Mask | None = None,
        cross_mask: Mask | None = None,
        positions: Int[Array, "*#batch seq"] | None = None,
    ) -> tuple[Float[Array, "*batch seq dim"], ModelCache]:
        """As `extend`, but the hidden states: for logits at a few of the places only."""
        across = _across(source_mask, cross_mask)
        x, new, _ = self.decoder.run(
            target,
            mask=mask,
            positions=positions,
            source_mask=across,
            table=self._shared_table(),
            cache=cache,
        )
        return x, new  # pyright: ignore[reportReturnType]

    def _check_source_positions(self, positions: Array | None) -> None:
        check_reads_positions(self.config.encoder, positions, "source_positions", "encoder")

    def _shared_table(self) -> Embedding | None:
        encoder = self.encoder
        if self.config.tokens == "separate" or isinstance(encoder, AudioEncoder):
            return None
        return encoder.embedding.tokens


def _table(side: Encoder.Config | AudioEncoder.Config | DecoderLM.Config) -> str:
    """The size of a side's token table."""
    if isinstance(side, AudioEncoder.Config):
        return "no tokens"
    return f"{side.vocab} x {side.embedding.width or side.dim}"


def _across(source_mask: Mask | None, cross_mask: Mask | None) -> Mask | None:
    """What the target may look at: of the encoder's mask the padding alone, and `cross_mask`."""
    found = parts(source_mask)
    if cross_mask is None and any(isinstance(part, Segments) for part in found):
        raise ValueError(
            "A source packed with `Segments` needs `cross_mask=Segments(target_ids, source_ids)`, "
            "or every target would look at all sources of its row."
        )
    return join((*(part for part in found if isinstance(part, Padding)), *parts(cross_mask)))
