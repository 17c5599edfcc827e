"""Labels from an encoder-decoder: both sides read one text, the head is asked of the decoder's."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from eqxformer.config import Config, takes_options
from eqxformer.keys import split
from eqxformer.layers.masks import Mask, Padding
from eqxformer.models.encoder import Encoder
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.models.heads import TiedHead, TokenHead
from eqxformer.models.label_heads import LabelHead, SequenceHead
from eqxformer.models.origin import Origin, unknown


class EncoderDecoderWithHead(eqx.Module):
    """`head(decoder(shifted(text), encoder(text)))`: labels of a text, or of each of its tokens.

    The decoder reads the text that the encoder has read, one place later and behind a token that
    starts it, so that its state at the last token knows the whole text (Lewis et al. 2020, BART,
    section 3). Padding changes nothing, on whatever side.

    Example:
        >>> import eqxformer as ef, jax, jax.numpy as jnp
        >>> body = ef.families.transformer(vocab=28, dim=8, layers=1, heads=2, hidden=16)
        >>> body = body.edit("decoder", head=ef.TiedHead.Config())  # which has no parameters
        >>> head = ef.SequenceHead.Config(labels=3, pooling=ef.Pooling.Config(take="last"))
        >>> config = ef.EncoderDecoderWithHead.Config(body, head, start=0)
        >>> config.build(key=jax.random.key(0))(jnp.array([[5, 6, 7]])).shape
        (1, 3)
    """

    class Config(Config):
        """The whole model.

        Arguments:
            body: both sides, of one vocabulary; the decoder's own head is never asked, and must be
                one without parameters.
            head: what is asked of the decoder's hidden states.
            start: the token that the decoder reads first; `last` is the text's own last one
                (mBART, whose texts end with their language).
            end: the token whose places alone a `SequenceHead` pools, so that `take="last"` is the
                state at a text's last end; None for all real tokens.
            origin: the checkpoint this is from.
        """

        body: EncoderDecoder.Config
        head: SequenceHead.Config | LabelHead.Config
        start: int | Literal["last"]
        end: int | None = None
        origin: Origin | None = unknown()

        def check(self) -> None:
            encoder, decoder = self.body.encoder, self.body.decoder
            if not isinstance(encoder, Encoder.Config) or encoder.vocab != decoder.vocab:
                raise ValueError(
                    "`body` must read tokens of one vocabulary on both sides; got "
                    f"{encoder.type_name} of {getattr(encoder, 'vocab', 'no')} tokens and "
                    f"{decoder.type_name} of {decoder.vocab}."
                )
            for name, token in (("start", self.start), ("end", self.end)):
                if isinstance(token, int) and not 0 <= token < decoder.vocab:
                    raise ValueError(
                        f"`{name}` must be a token id below {decoder.vocab}; got {token}."
                    )
            if self.end is not None and not isinstance(self.head, SequenceHead.Config):
                raise ValueError(
                    "`end` is for a SequenceHead, which pools its places; leave it None for "
                    f"{self.head.type_name}."
                )
            _check_no_parameters(decoder.head)

        def build(self, *, key: PRNGKeyArray) -> "EncoderDecoderWithHead":
            """The model, freshly initialised."""
            return EncoderDecoderWithHead(self, key=key)

    body: EncoderDecoder
    head: SequenceHead | LabelHead
    config: Config = eqx.field(static=True)

    @takes_options
    def __init__(self, config: Config, *, key: PRNGKeyArray):
        body, head = split(key, 2)
        decoder = config.body.decoder
        self.body = config.body.build(key=body)
        self.head = config.head.build(decoder.dim, decoder.vocab, key=head)
        self.config = config

    def __call__(
        self,
        tokens: Int[Array, "*batch seq"],
        *,
        mask: Mask | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*shape"]:
        """The head's scores.

        Arguments:
            mask: `Padding(valid)` for texts of several lengths.
            key: switches dropout on.

        Raises `ValueError` for any other mask, for an id outside the vocabulary, and for a text
        without its `end`; under `jit` the last two give NaN.
        """
        if mask is not None and not isinstance(mask, Padding):
            raise ValueError(
                "`mask` must be Padding(valid), or None: the decoder reads the text shifted, for "
                f"which no other mask was made; got {type(mask).__name__}."
            )
        real = jnp.broadcast_to(True if mask is None else mask.valid, tokens.shape)
        asked, ended = real, None
        if self.config.end is not None:
            asked = real & (tokens == self.config.end)
            ended = _check_ended(asked.any(-1), self.config.end)
        body_key, head_key = split(key, 2)
        target = shifted(tokens, self.config.start, real)
        x, _ = self.body.run(tokens, target, source_mask=mask, mask=mask, key=body_key)
        scores = self.head(x, asked, key=head_key)
        return scores if ended is None else jnp.where(ended[..., None], scores, jnp.nan)


def shifted(
    tokens: Int[Array, "*batch seq"],
    start: int | Literal["last"],
    real: Bool[Array, "*batch seq"],
) -> Int[Array, "*batch seq"]:
    """Every token in the place of the next real one, and `start` in that of the first.

    Drawn for `start = 0` and padding on either side, where a dot is any token:

        · 5 6 7 ·
        · 0 5 6 ·
    """
    places = jnp.where(real, jnp.arange(tokens.shape[-1]), -1)
    newest = jax.lax.cummax(places, axis=places.ndim - 1)  # the last real place up to here
    before = jnp.roll(newest, 1, axis=-1).at[..., :1].set(-1)
    earlier = jnp.take_along_axis(tokens, jnp.maximum(before, 0), axis=-1)
    if start == "last":
        first = jnp.take_along_axis(tokens, jnp.maximum(newest[..., -1:], 0), axis=-1)
    else:
        first = jnp.asarray(start, tokens.dtype)
    return jnp.where(before < 0, first, earlier)


def _check_no_parameters(head: TokenHead.Config) -> None:
    """Raises `ValueError` for a decoder whose head would be there for nothing."""
    if not isinstance(head, TiedHead.Config) or head.bias or head.project is not None:
        raise ValueError(
            "`body.decoder.head` is never asked and must have no parameters; got "
            f'{head}. Set it with `body.edit("decoder", head=TiedHead.Config())`.'
        )


def _check_ended(ended: Bool[Array, "*batch"], end: int) -> Bool[Array, "*batch"]:
    """Which texts have their end; all of them, or else a `ValueError`, where values are there."""
    if not isinstance(ended, Tracer) and not np.asarray(ended).all():
        raise ValueError(
            f"Every text must have its `end`, the token {end}, whose state the head pools; "
            f"{int((~np.asarray(ended)).sum())} of {ended.size} have none."
        )
    return ended
