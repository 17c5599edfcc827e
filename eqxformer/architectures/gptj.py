"""GPT-J: attention and feed-forward side by side behind one norm, interleaved rotary pairs."""

import math
from typing import Any

from eqxformer.architectures._decoders import GPT_ACTIVATIONS, decoder, output, projections, sizes
from eqxformer.architectures.gpt2 import WITHOUT_EFFECT, WORDS
from eqxformer.blocks.block import ParallelBlock
from eqxformer.checkpoints.rules import same, turned, under
from eqxformer.checkpoints.settings import Settings
from eqxformer.layers.attention import Attention
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.feed_forward import MLP
from eqxformer.layers.initializers import Normal
from eqxformer.layers.linear import Linear
from eqxformer.layers.norms import LayerNorm
from eqxformer.layers.rotary import Rotary
from eqxformer.models.decoder_lm import DecoderLM
from eqxformer.models.embedding import InputEmbedding


def config(settings: Settings) -> DecoderLM.Config:
    """The config tree of a GPT-J."""
    settings.synonyms(**WORDS)
    settings.skip(*WITHOUT_EFFECT, "n_positions")
    settings.only("rotary", True)
    settings.only("scale_attn_weights", True)
    dim, heads = settings.size("n_embd", 4096), settings.size("n_head", 16)
    init = Normal(settings.number("initializer_range", 0.02))
    plain, wide = Linear.Config(False, init), Linear.Config(True, init)
    norm = LayerNorm.Config(eps=settings.number("layer_norm_epsilon", 1e-5))
    block = ParallelBlock.Config(
        attention=Attention.Config(
            heads=heads,
            **projections(plain),
            rotary=_rotary(settings, dim // heads),
            dropout=settings.rate("attn_pdrop"),
        ),
        feed_forward=MLP.Config(
            hidden=settings.size("n_inner", 4 * dim),
            activation=settings.activation("activation_function", "gelu_new"),
            up=wide,
            down=wide,
        ),
        norm=norm,
        dropout=settings.rate("resid_pdrop"),
    )
    return DecoderLM.Config(
        vocab=settings.size("vocab_size", 50400),
        dim=dim,
        embedding=InputEmbedding.Config(
            tokens=Embedding.Config(init=init), dropout=settings.rate("embd_pdrop")
        ),
        blocks=(block,) * settings.layers("n_layer", 28),
        norm=norm,
        head=output(settings, wide, "transformer.wte.weight", tied=False),
    )


def _rotary(settings: Settings, head_dim: int) -> Rotary:
    """Rotary positions for the first `rotary_dim` numbers of a head."""
    turned = settings.size("rotary_dim", 64)
    if turned > head_dim:
        raise settings.wrong("rotary_dim", f"at most {head_dim}, the size of a head", turned)
    fraction = turned / head_dim
    if int(head_dim * fraction) < turned:  # rounded down, where it is no binary fraction
        fraction = math.nextafter(fraction, 1.0)
    return Rotary(fraction=fraction, layout="interleaved")


def describe(tree: Any) -> dict[str, Any]:
    """The settings of a config tree of this kind."""
    block = tree.blocks[0]
    attention, feed_forward = block.attention, block.feed_forward
    return {
        **sizes(tree, **WORDS),
        "n_inner": feed_forward.hidden,
        "activation_function": GPT_ACTIVATIONS[feed_forward.activation],
        "rotary_dim": attention.rotary.width(tree.dim // attention.heads),
        "layer_norm_epsilon": block.norm.eps,
        "embd_pdrop": tree.embedding.dropout,
        "attn_pdrop": attention.dropout,
        "resid_pdrop": block.dropout,
    }


RULES = (
    same("embedding.tokens", "transformer.wte"),
    *under(
        "blocks.*",
        "transformer.h.*",
        same("norm", "ln_1"),
        turned("attention.query", "attn.q_proj"),
        turned("attention.key", "attn.k_proj"),
        turned("attention.value", "attn.v_proj"),
        turned("attention.out", "attn.out_proj"),
        turned("feed_forward.up", "mlp.fc_in"),
        turned("feed_forward.down", "mlp.fc_out"),
    ),
    same("norm", "transformer.ln_f"),
    turned("head", "lm_head"),
    turned("head.linear", "lm_head"),
)

ARCHITECTURE = decoder(
    "gptj",
    "GPTJ",
    config,
    RULES,
    prefix="transformer.",
    questions="transformer.",
    lacks=("ForTokenClassification",),
    describe=describe,
)
