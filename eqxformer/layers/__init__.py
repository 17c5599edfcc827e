"""The parts: every one acts on the trailing axes of a whole batch."""

from eqxformer.layers.abstract_attention import AbstractAttention
from eqxformer.layers.activations import Activation, activation
from eqxformer.layers.attention import Attention
from eqxformer.layers.biases import ALiBi, ExplicitBias, PositionBias, RelativeBias
from eqxformer.layers.cache import Cache, FullCache, RingCache, SourceCache
from eqxformer.layers.convolution import Convolution
from eqxformer.layers.dot_product import Choice, attend, backend_report
from eqxformer.layers.dropout import drop_path, dropout
from eqxformer.layers.embedding import Embedding
from eqxformer.layers.experts import (
    Experts,
    Routing,
    SigmoidTopK,
    SoftmaxThenTopK,
    TopKThenSoftmax,
)
from eqxformer.layers.feed_forward import (
    MLP,
    ClampedGatedMLP,
    FeedForward,
    GatedMLP,
    RouterLosses,
)
from eqxformer.layers.head_axis import HeadSum, SumHeads
from eqxformer.layers.initializers import (
    FanInUniform,
    Glorot,
    He,
    Initializer,
    LeCun,
    Normal,
    Orthogonal,
    TruncatedNormal,
    Zeros,
)
from eqxformer.layers.latent_attention import LatentAttention
from eqxformer.layers.linear import AbstractLinear, GroupedLinear, Groups, Linear
from eqxformer.layers.masks import (
    Causal,
    Explicit,
    Full,
    Mask,
    Padding,
    PerHead,
    Prefix,
    Segments,
    Window,
    valid_keys,
)
from eqxformer.layers.norms import Identity, LayerNorm, Norm, RMSNorm
from eqxformer.layers.plain_attention import Scoring, attention_weights
from eqxformer.layers.positions import LearnedPositions, Positions, Sinusoids, SinusoidTable
from eqxformer.layers.rotary import (
    DynamicNTK,
    LinearScaling,
    Llama3Scaling,
    LongRoPE,
    Rotary,
    Scaling,
    YaRN,
)
from eqxformer.layers.taps import tap

__all__ = [
    "MLP",
    "ALiBi",
    "AbstractAttention",
    "AbstractLinear",
    "Activation",
    "Attention",
    "Cache",
    "Causal",
    "Choice",
    "ClampedGatedMLP",
    "Convolution",
    "DynamicNTK",
    "Embedding",
    "Experts",
    "Explicit",
    "ExplicitBias",
    "FanInUniform",
    "FeedForward",
    "Full",
    "FullCache",
    "GatedMLP",
    "Glorot",
    "GroupedLinear",
    "Groups",
    "He",
    "HeadSum",
    "Identity",
    "Initializer",
    "LatentAttention",
    "LayerNorm",
    "LeCun",
    "LearnedPositions",
    "Linear",
    "LinearScaling",
    "Llama3Scaling",
    "LongRoPE",
    "Mask",
    "Norm",
    "Normal",
    "Orthogonal",
    "Padding",
    "PerHead",
    "PositionBias",
    "Positions",
    "Prefix",
    "RMSNorm",
    "RelativeBias",
    "RingCache",
    "Rotary",
    "RouterLosses",
    "Routing",
    "Scaling",
    "Scoring",
    "Segments",
    "SigmoidTopK",
    "SinusoidTable",
    "Sinusoids",
    "SoftmaxThenTopK",
    "SourceCache",
    "SumHeads",
    "TopKThenSoftmax",
    "TruncatedNormal",
    "Window",
    "YaRN",
    "Zeros",
    "activation",
    "attend",
    "attention_weights",
    "backend_report",
    "drop_path",
    "dropout",
    "tap",
    "valid_keys",
]
