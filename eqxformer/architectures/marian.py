"""Marian (OPUS-MT): BART with sinusoids, no norm of the embedding, and maybe two vocabularies."""

from eqxformer.architectures import bart
from eqxformer.architectures._decoders import derived
from eqxformer.architectures._seq2seq import one_table, seq2seq, sinusoids, token_head
from eqxformer.checkpoints.rules import Rules, same
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.linear import Linear
from eqxformer.models.encoder_decoder import EncoderDecoder

SEPARATE = ("model.encoder.embed_tokens", "model.decoder.embed_tokens")


def config(settings: Settings) -> EncoderDecoder.Config:
    """BART's tree with computed positions, and two tables where they are not shared."""
    shared = settings.flag("share_encoder_decoder_embeddings", True)
    vocab = settings.size("decoder_vocab_size", settings.size("vocab_size"))
    tree = bart.sides(settings)
    tree = tree.edit("*.embedding", norm=None, positions=sinusoids(settings))
    if shared:
        return one_table(settings, tree, Linear.Config())
    head = token_head(settings, f"{SEPARATE[1]}.weight", Linear.Config())
    return tree.edit("decoder", vocab=vocab, head=head)


def rules(tree: EncoderDecoder.Config) -> Rules:
    """BART's, with a table for each side where they are not shared."""
    if tree.tokens == "shared":
        return bart.RULES
    encoder, decoder = SEPARATE
    return (
        *bart.RULES,
        same("encoder.embedding.tokens", encoder),
        same("decoder.embedding.tokens", decoder),
    )


ARCHITECTURE = seq2seq(
    "marian",
    "Marian",
    config,
    rules,
    prefix="model.",
    writers=("MTModel",),
    ignored=bart.IGNORED,
    describe=derived(
        bart.describe,
        decoder_vocab_size=lambda tree: tree.decoder.vocab,
        share_encoder_decoder_embeddings=lambda tree: tree.tokens == "shared",
        pad_token_id=None,  # the default is the last of 58,101 words
    ),
)
