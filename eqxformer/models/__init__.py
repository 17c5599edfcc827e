"""Whole models: decoder-only, encoder-only, encoder-decoder; one set of parts."""

from eqxformer.models import families
from eqxformer.models.audio import AudioEmbedding, AudioEncoder
from eqxformer.models.decoder_lm import DecoderLM, ModelCache
from eqxformer.models.embedding import InputEmbedding, TypeEmbedding
from eqxformer.models.encoder import Encoder, EncoderWithHead
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.models.encoder_decoder_with_head import EncoderDecoderWithHead
from eqxformer.models.heads import LinearHead, MaskedLMHead, TiedHead, TokenHead
from eqxformer.models.label_heads import LabelHead, Pooling, SequenceHead
from eqxformer.models.origin import Origin

__all__ = [
    "AudioEmbedding",
    "AudioEncoder",
    "DecoderLM",
    "Encoder",
    "EncoderDecoder",
    "EncoderDecoderWithHead",
    "EncoderWithHead",
    "InputEmbedding",
    "LabelHead",
    "LinearHead",
    "MaskedLMHead",
    "ModelCache",
    "Origin",
    "Pooling",
    "SequenceHead",
    "TiedHead",
    "TokenHead",
    "TypeEmbedding",
    "families",
]
