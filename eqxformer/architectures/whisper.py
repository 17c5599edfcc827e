"""Whisper: two convolutions over a spectrogram, pre-norm, keys without a bias, a tied output.

The encoder's sinusoids are stored, and were computed in float32: they are read as a table.
"""

from typing import Any

from eqxformer.architectures import bart, mbart
from eqxformer.architectures._seq2seq import seq2seq
from eqxformer.checkpoints.rules import convolved, same, turned
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.positions import LearnedPositions, Sinusoids, SinusoidTable
from eqxformer.models.audio import AudioEmbedding, AudioEncoder
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.models.heads import LinearHead, TiedHead

WAVES = SinusoidTable(Sinusoids.Config(layout="halves", spread="closed"))


def config(settings: Settings) -> EncoderDecoder.Config:
    """mBART's blocks, with an encoder of audio in front of them."""
    settings.skip(*OF_GENERATION, *OF_OTHER_USES)
    tree = mbart.pre_normed(bart.sides(settings))
    rate = settings.rate("dropout")
    tree = (
        tree.edit("*.blocks.*.*attention.key", bias=False)
        .edit("*.blocks.*.*_residual", dropout=rate)
        .edit(
            "decoder.embedding",
            norm=None,
            scale=1.0,
            positions=LearnedPositions.Config(settings.size("max_target_positions", 448)),
            dropout=rate,
        )
    )
    tied = settings.tied("proj_out.weight", "model.decoder.embed_tokens.weight", default=True)
    return tree.edit("decoder", head=TiedHead.Config() if tied else LinearHead.Config()).edit(
        encoder=_encoder(settings, tree, rate)
    )


def _encoder(settings: Settings, tree: Any, rate: float) -> AudioEncoder.Config:
    positions = LearnedPositions.Config(settings.size("max_source_positions", 1500), init=WAVES)
    return AudioEncoder.Config(
        bins=settings.size("num_mel_bins", 80),
        dim=tree.encoder.dim,
        blocks=tree.encoder.blocks,
        embedding=AudioEmbedding.Config(positions=positions, dropout=rate),
        norm=tree.encoder.norm,
    )


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    return {
        **bart.describe_blocks(tree),
        "vocab_size": tree.decoder.vocab,
        "num_mel_bins": tree.encoder.bins,
        "max_source_positions": tree.encoder.embedding.positions.length,
        "max_target_positions": tree.decoder.embedding.positions.length,
        "tie_word_embeddings": isinstance(tree.decoder.head, TiedHead.Config),
        "pad_token_id": None,  # the default is one of 51,865 words
    }


RULES = (
    *bart.RULES,
    convolved("encoder.embedding.first", "model.encoder.conv1"),
    convolved("encoder.embedding.second", "model.encoder.conv2"),
    same("decoder.embedding.tokens", "model.decoder.embed_tokens"),
    turned("decoder.head.linear.weight", "proj_out.weight"),
)
OF_GENERATION = (
    "alignment_heads",
    "forced_decoder_ids",
    "is_multilingual",
    "lang_ids",
    "lang_to_id",
    "max_initial_timestamp_index",
    "median_filter_width",
    "no_timestamps_token_id",
    "return_timestamps",
    "task_ids",
    "task_to_id",
)
OF_OTHER_USES = (
    "apply_spec_augment",
    "classifier_proj_size",
    "mask_feature_length",
    "mask_feature_min_masks",
    "mask_feature_prob",
    "mask_time_length",
    "mask_time_min_masks",
    "mask_time_prob",
    "use_weighted_layer_sum",
)

ARCHITECTURE = seq2seq("whisper", "Whisper", config, RULES, prefix="model.", describe=describe)
