"""T5: a relative bias that all blocks of a side share, RMS pre-norm, no other bias, no scaling.

Version 1.0 has a ReLU, and the token table divided by the root of the width as its output; version
1.1 and Flan-T5 a gated GELU and an output of their own; ByT5 far more readers than writers.
"""

from typing import Any

from eqxformer.architectures._seq2seq import HEAD, Labelled, one_table, seq2seq
from eqxformer.checkpoints.rules import Rules, same, turned, under
from eqxformer.checkpoints.settings import ACTIVATIONS, THEIR_ACTIVATIONS, Settings
from eqxformer.layers.feed_forward import MLP, FeedForward, GatedMLP
from eqxformer.models import families
from eqxformer.models.encoder_decoder import EncoderDecoder
from eqxformer.models.heads import LinearHead

LABELLED = Labelled(start=0, end=1, prefix="transformer.")
# Version 5 always says that the head is tied, and by the scale whether that was meant.
OWN_HEAD = {"tie_word_embeddings": (False,), "scale_decoder_outputs": (False,)}
# Old files have a bias of the cross-attention that was never used.
IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)


def config(settings: Settings, *, proj: str = "relu") -> EncoderDecoder.Config:
    """The config tree of a T5 of any version; `proj` is the feed-forward if none is named."""
    settings.skip("n_positions", "classifier_dropout", "scalable_attention")
    eps = settings.number("layer_norm_epsilon", 1e-6)
    readers = settings.layers("num_layers")
    writers = settings.layers("num_decoder_layers", readers)
    tree = families.t5(
        vocab=settings.size("vocab_size"),
        dim=settings.size("d_model"),
        layers=1,
        heads=settings.size("num_heads"),
        head_dim=settings.size("d_kv", 64),
        hidden=settings.size("d_ff"),
        dropout=settings.rate("dropout_rate", 0.1),
    )
    mlp: Any = tree.encoder.blocks[0]
    mlp = mlp.feed_forward
    scaled = settings.flag("scale_decoder_outputs", settings.flag("tie_word_embeddings", True))
    tree = (
        tree.edit("*.blocks.*", feed_forward=_feed_forward(settings, mlp, proj))
        .edit("*.blocks.*.*_residual.pre_norm", eps=eps)
        .edit("*.norm", eps=eps)
        .edit(
            "*.bias",
            buckets=settings.size("relative_attention_num_buckets", 32),
            max_distance=settings.size("relative_attention_max_distance", 128),
        )
    )
    tree = tree.edit("encoder", blocks=tree.encoder.blocks * readers)
    tree = tree.edit("decoder", blocks=tree.decoder.blocks * writers)
    return one_table(settings, tree, mlp.up, prefix="", bias=False, narrowed=scaled)


def _feed_forward(settings: Settings, mlp: MLP.Config, proj: str) -> FeedForward.Config:
    """What `feed_forward_proj` names: `relu` say, or `gated-gelu`, which means GPT-2's GELU."""
    word = settings.get("feed_forward_proj", proj)
    first, _, last = str(word).partition("-")
    name = "gelu_new" if word == "gated-gelu" else last or first
    if name not in ACTIVATIONS or (last and first != "gated"):
        raise settings.wrong("feed_forward_proj", "an activation, or `gated-` and one", word)
    act = settings.activation("dense_act_fn", name)
    if not settings.flag("is_gated_act", first == "gated"):
        return mlp.edit(activation=act)
    return GatedMLP.Config(mlp.hidden, act, mlp.dropout, gate=mlp.up, up=mlp.up, down=mlp.down)


def describe(tree: Any) -> dict[str, Any]:
    """The settings of both sides of a T5, or of its encoder alone."""
    encoder = getattr(tree, "encoder", tree)
    decoder = getattr(tree, "decoder", encoder)
    block: Any = encoder.blocks[0]
    bias, feed_forward = encoder.bias or block.attention.bias, block.feed_forward
    head = getattr(decoder, "head", None)
    word = THEIR_ACTIVATIONS[feed_forward.activation]
    gated = "gated-" + word.removesuffix("_pytorch_tanh")
    return {
        "vocab_size": encoder.vocab,
        "d_model": encoder.dim,
        "d_kv": block.attention.head_dim or encoder.dim // block.attention.heads,
        "d_ff": feed_forward.hidden,
        "num_layers": len(encoder.blocks),
        "num_decoder_layers": len(decoder.blocks),
        "num_heads": block.attention.heads,
        "relative_attention_num_buckets": bias.buckets,
        "relative_attention_max_distance": bias.max_distance,
        "dropout_rate": block.attention.dropout,
        "layer_norm_epsilon": block.attention_residual.pre_norm.eps,
        "feed_forward_proj": gated if isinstance(feed_forward, GatedMLP.Config) else word,
        "tie_word_embeddings": not isinstance(head, LinearHead.Config),
        "scale_decoder_outputs": getattr(head, "scale", None) != 1.0,
    }


ATTENTION = (turned("query", "q"), turned("key", "k"), turned("value", "v"), turned("out", "o"))
PLAIN = (turned("up", "wi"), turned("down", "wo"))
GATED = (turned("gate", "wi_0"), turned("up", "wi_1"), turned("down", "wo"))


def rules(tree: Any) -> Rules:
    """Where the arrays of both sides are, or of an encoder alone."""
    blocks: Any = getattr(tree, "encoder", tree).blocks
    gated = any(isinstance(block.feed_forward, GatedMLP.Config) for block in blocks)
    parts = GATED if gated else PLAIN
    return (
        same("encoder.embedding.tokens", "shared"),
        *_side("encoder", under("feed_forward", "1.DenseReluDense", *parts), "1.layer_norm"),
        *_side("decoder", under("feed_forward", "2.DenseReluDense", *parts), "2.layer_norm"),
        *HEAD,
    )


def _side(name: str, feed_forward: Rules, norm: str) -> Rules:
    """One side of T5, the parts of whose blocks are numbered."""
    bias = "relative_attention_bias"
    return (
        same(f"{name}.bias", f"{name}.block.0.layer.0.SelfAttention.{bias}"),
        same(f"{name}.norm", f"{name}.final_layer_norm"),
        *under(
            f"{name}.blocks.*",
            f"{name}.block.*.layer",
            *under("attention", "0.SelfAttention", *ATTENTION, same("bias", bias)),
            same("attention_residual.pre_norm", "0.layer_norm"),
            *under("cross_attention", "1.EncDecAttention", *ATTENTION),
            same("cross_residual.pre_norm", "1.layer_norm"),
            *feed_forward,
            same("feed_forward_residual.pre_norm", norm),
        ),
    )


ARCHITECTURE = seq2seq(
    "t5",
    "T5",
    config,
    rules,
    writers=("ForConditionalGeneration", "WithLMHeadModel"),
    encoder="EncoderModel",
    labelled=LABELLED,
    own_head=OWN_HEAD,
    ignored=IGNORED,
    describe=describe,
)
