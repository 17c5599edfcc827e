"""OPT: positions from row 2 on, ReLU, pre-norm; OPT-350m with post-norm and a narrow table."""

from typing import Any

from eqxformer.architectures._decoders import decoder, output, projections, sizes
from eqxformer.blocks.block import Block
from eqxformer.blocks.residual import post_norm, pre_norm
from eqxformer.checkpoints.rules import same, turned, under
from eqxformer.checkpoints.settings import THEIR_ACTIVATIONS, Settings
from eqxformer.layers.attention import Attention
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import MLP
from eqxformer.layers.initializers import Normal
from eqxformer.layers.linear import Linear
from eqxformer.layers.norms import LayerNorm
from eqxformer.layers.positions import LearnedPositions
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.embedding import InputEmbedding
from eqxformer.models.heads import LinearHead, TiedHead


def config(settings: Settings) -> DecoderLM.Config:
    """The config tree of an OPT."""
    settings.skip("activation_dropout", "layerdrop")  # of training; neither is used any more
    settings.only("scale_embeddings", False)
    settings.only("learned_embeddings", True)
    init, rate = Normal(settings.number("init_std", 0.02)), settings.rate("dropout", 0.1)
    affine = settings.flag("layer_norm_elementwise_affine", True)
    linear = Linear.Config(settings.flag("enable_bias", True), init)
    norm = LayerNorm.Config(bias=affine, gain=affine)
    before = settings.flag("do_layer_norm_before", True)
    wiring = (pre_norm if before else post_norm)(norm, rate)
    block = Block.Config(
        attention=Attention.Config(
            heads=settings.size("num_attention_heads"),
            **projections(linear),
            dropout=settings.rate("attention_dropout"),
        ),
        feed_forward=MLP.Config(
            hidden=settings.size("ffn_dim"),
            activation=settings.activation("activation_function", "relu"),
            up=linear,
            down=linear,
        ),
        attention_residual=wiring,
        feed_forward_residual=wiring,
    )
    removed = settings.flag("_remove_final_layer_norm", False)
    length = settings.size("max_position_embeddings", 2048)
    tree = DecoderLM.Config(
        vocab=settings.size("vocab_size"),
        dim=settings.size("hidden_size"),
        embedding=InputEmbedding.Config(
            tokens=Embedding.Config(init=init),
            positions=LearnedPositions.Config(length, offset=2, init=init),
        ),
        blocks=(block,) * settings.layers("num_hidden_layers"),
        norm=norm if before and not removed else None,
        head=output(
            settings, Linear.Config(False, init), "model.decoder.embed_tokens.weight", tied=True
        ),
    )
    return _narrowed(settings, tree)


def _narrowed(settings: Settings, tree: DecoderLM.Config) -> DecoderLM.Config:
    """The tree with a token table of its own width, where there is one."""
    width = settings.size("word_embed_proj_dim", tree.dim)
    if width == tree.dim:
        return tree
    if isinstance(tree.head, LinearHead.Config):
        raise settings.wrong("word_embed_proj_dim", f"{tree.dim} where heads are not tied", width)
    project = Linear.Config(False, tree.embedding.tokens.init)
    embedding = tree.embedding.edit(width=width, project=project, projected="tokens")
    return tree.edit(embedding=embedding, head=TiedHead.Config(project=project))


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block = tree.blocks[0]
    attention, feed_forward, wiring = block.attention, block.feed_forward, block.attention_residual
    before = wiring.pre_norm is not None
    return {
        **sizes(tree),
        "ffn_dim": feed_forward.hidden,
        "activation_function": THEIR_ACTIVATIONS[feed_forward.activation],
        "max_position_embeddings": tree.embedding.positions.length,
        "word_embed_proj_dim": tree.embedding.width or tree.dim,
        "do_layer_norm_before": before,
        "_remove_final_layer_norm": before and tree.norm is None,
        "layer_norm_elementwise_affine": (wiring.pre_norm or wiring.out_norm).gain,
        "enable_bias": attention.query.bias,
        "dropout": wiring.dropout,
        "attention_dropout": attention.dropout,
    }


RULES = (
    same("embedding.tokens", "model.decoder.embed_tokens"),
    same("embedding.positions", "model.decoder.embed_positions"),
    turned("embedding.project", "model.decoder.project_in"),
    *under(
        "blocks.*",
        "model.decoder.layers.*",
        turned("attention.query", "self_attn.q_proj"),
        turned("attention.key", "self_attn.k_proj"),
        turned("attention.value", "self_attn.v_proj"),
        turned("attention.out", "self_attn.out_proj"),
        turned("feed_forward.up", "fc1"),
        turned("feed_forward.down", "fc2"),
        same("attention_residual.pre_norm", "self_attn_layer_norm"),
        same("attention_residual.out_norm", "self_attn_layer_norm"),
        same("feed_forward_residual.pre_norm", "final_layer_norm"),
        same("feed_forward_residual.out_norm", "final_layer_norm"),
    ),
    same("norm", "model.decoder.final_layer_norm"),
    turned("head.project", "model.decoder.project_out"),
    turned("head.linear", "lm_head"),
)

ARCHITECTURE = decoder(
    "opt",
    "OPT",
    config,
    RULES,
    questions="model.",
    lacks=("ForTokenClassification",),
    describe=describe,
)
