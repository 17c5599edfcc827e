"""Slow twins of the parts in float64 NumPy: one sequence, one head, one token at a time.

They read the parameters and the config of a part, and nothing of its code. Arrays may have been
replaced by NumPy ones.
"""

import math
import operator

import jax
import numpy as np


def linear(part, x):
    y = np.array([row @ part.weight for row in x]).reshape(len(x), part.weight.shape[1])
    return y if part.bias is None else y + part.bias


def norm(part, x):
    """A `LayerNorm`, an `RMSNorm` or an `Identity` over the last axis."""
    if type(part).__name__ == "Identity":
        return x
    if x.ndim > 1:
        return np.array([norm(part, row) for row in x]).reshape(x.shape)
    if type(part).__name__ == "RMSNorm":
        return (
            (part.config.offset + part.weight) * x / math.sqrt((x @ x) / len(x) + part.config.eps)
        )
    mean = sum(x) / len(x)
    variance = sum((x - mean) ** 2) / len(x)
    y = (x - mean) / math.sqrt(variance + part.config.eps)
    y = y if part.weight is None else y * part.weight
    return y if part.bias is None else y + part.bias


ACTIVATIONS = {
    "relu": lambda x: max(x, 0.0),
    "relu_squared": lambda x: max(x, 0.0) ** 2,
    "gelu": lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2.0)),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
}


def activate(name, x):
    return np.vectorize(ACTIVATIONS[name], otypes=[float])(x)


def feed_forward(part, x):
    """An `MLP`, a `GatedMLP` or a `ClampedGatedMLP` on [tokens, dim]."""
    up = linear(part.up, x)
    if type(part).__name__ == "ClampedGatedMLP":
        bound = np.vectorize(lambda g: min(g, part.config.limit), otypes=[float])
        gate, up = bound(linear(part.gate, x)), -bound(-bound(up))
        hidden = (up + 1.0) * gate / (1.0 + np.exp(-part.config.alpha * gate))
        return linear(part.down, hidden)
    name = part.config.activation
    gated = type(part).__name__ == "GatedMLP"
    hidden = activate(name, linear(part.gate, x)) * up if gated else activate(name, up)
    return linear(part.down, hidden)


def softmax(scores, sink=None):
    """Softmax over the scores that are not minus infinity, beside a sink; zeros if all are."""
    finite = [s for s in scores if s > -math.inf] + ([] if sink is None else [sink])
    if not finite:
        return np.zeros(len(scores))
    powers = np.exp(np.asarray(scores) - max(finite))
    total = powers.sum() + (0.0 if sink is None else math.exp(sink - max(finite)))
    return powers / total


def attention_weights(part, x, source=None, *, allowed=None, positions=None, bias=None):
    """[heads, seq, keys] for one sequence; `allowed` and `bias` are [seq, keys] or per head."""
    config, seen = part.config, x if source is None else source
    kv_heads = config.kv_heads or config.heads
    query = _heads(part, clipped(part, linear(part.query, x)), part.query_norm, config.heads)
    keys = _heads(part, clipped(part, linear(part.key, seen)), part.key_norm, kv_heads)
    if config.rotary is not None and source is None:
        at = np.arange(len(x)) if positions is None else positions
        query, keys = rotate(config.rotary, query, at), rotate(config.rotary, keys, at)
    scale = part.head_dim**-0.5 if config.scale is None else config.scale
    weights = np.zeros((config.heads, len(x), len(seen)))
    for h in range(config.heads):
        for i in range(len(x)):
            scores = np.full(len(seen), -math.inf)
            for j in range(len(seen)):
                if not _allowed(config, allowed, source is None, h, i, j):
                    continue
                scores[j] = scale * (query[h, i] @ keys[h * kv_heads // config.heads, j])
                if config.softcap is not None:
                    scores[j] = config.softcap * math.tanh(scores[j] / config.softcap)
                scores[j] += position_bias(part.bias, h, i, j)
                scores[j] += 0.0 if bias is None else np.broadcast_to(bias, weights.shape)[h, i, j]
            weights[h, i] = softmax(scores, None if part.sinks is None else part.sinks[h])
    return weights


def attention(part, x, source=None, **options):
    """The result for one sequence [seq, dim]; arguments as in `attention_weights`."""
    weights = attention_weights(part, x, source, **options)
    value = clipped(part, linear(part.value, x if source is None else source))
    value = value.reshape(len(value), -1, part.value_dim)
    groups = len(weights) // value.shape[1]
    heads = [weights[h] @ value[:, h // groups] for h in range(len(weights))]
    if type(part.out).__name__ != "HeadSum":
        return linear(part.out, np.concatenate(heads, axis=-1))
    wide = np.concatenate(heads, axis=-1)
    return sum(wide[:, i : i + part.out.dim] for i in range(0, wide.shape[-1], part.out.dim))


def latent_attention(part, x, *, allowed=None, positions=None, bias=None):
    """A `LatentAttention` for one sequence [seq, dim]; arguments as in `attention_weights`."""
    config, heads = part.config, part.config.heads
    at = np.arange(len(x)) if positions is None else positions
    plain = config.head_dim - config.rotary_dim
    latent = norm(part.latent_norm, linear(part.to_latent, x))
    turned = rotate(config.rotary, linear(part.rotary_key, x)[None], at)[0]
    h = x if part.to_query_latent is None else linear(part.to_query_latent, x)
    query = linear(part.query, norm(part.query_norm, h)).reshape(len(x), heads, -1).swapaxes(0, 1)
    rotated = rotate(config.rotary, query[..., plain:], at)
    keys = linear(part.key, latent).reshape(len(x), heads, plain)
    values = linear(part.value, latent).reshape(len(x), heads, part.value_dim)
    scale = config.head_dim**-0.5 if config.scale is None else config.scale
    y = np.zeros((len(x), heads, part.value_dim))
    for h in range(heads):
        for i in range(len(x)):
            scores = np.full(len(x), -math.inf)
            for j in range(len(x)):
                if allowed is None or allowed[i, j]:
                    products = query[h, i, :plain] @ keys[j, h] + rotated[h, i] @ turned[j]
                    scores[j] = scale * products + (0.0 if bias is None else bias[h, i, j])
            y[i, h] = softmax(scores) @ values[:, h]
    return linear(part.out, y.reshape(len(x), -1))


def clipped(part, x):
    """Every number between `-clip` and `clip`."""
    clip = math.inf if part.config.clip is None else part.config.clip
    return np.vectorize(lambda n: min(max(n, -clip), clip), otypes=[float])(x)


def _heads(part, x, norms, heads):
    over = part.config.qk_norm_over
    x = norm(norms, x) if over == "projection" else x
    x = x.reshape(len(x), heads, part.head_dim).swapaxes(0, 1)
    if over == "each_head":
        each = [jax.tree.map(operator.itemgetter(h), norms) for h in range(heads)]
        return np.stack([norm(n, head) for n, head in zip(each, x, strict=True)])
    return x if over == "projection" else norm(norms, x)


def _allowed(config, allowed, itself, head, query, key):
    window = config.window if itself else None
    left, right = (window - 1, 0) if isinstance(window, int) else window or (math.inf, math.inf)
    if not query - left <= key <= query + right:
        return False
    return allowed is None or bool(allowed[(head, query, key)[-np.ndim(allowed) :]])


def position_bias(part, head, query, key):
    """One number of an `ALiBi`, a `RelativeBias`, or no bias."""
    if part is None:
        return 0.0
    if type(part).__name__ == "ALiBi":
        slope = alibi_slopes(part.heads)[head]
        if part.config.rounding == "bfloat16":
            return part.config.scale * bfloat16(bfloat16(slope) * bfloat16(key))
        return -part.config.scale * slope * abs(key - query)
    config = part.config
    return part.weight[
        t5_bucket(key - query, config.buckets, config.max_distance, config.direction), head
    ]


def bfloat16(x):
    """The nearest number with eight significant bits; of two, the one with an even last bit."""
    fraction, exponent = math.frexp(x)
    return math.ldexp(round(fraction * 256), exponent - 8)


def alibi_slopes(heads):
    """Press et al.: 2^-(8/n), 2^-(16/n), ... for a power of two; else mixed from two of them."""
    if heads & (heads - 1) == 0:
        return [2.0 ** -(8.0 * (i + 1) / heads) for i in range(heads)]
    below = 1
    while 2 * below < heads:
        below *= 2
    return alibi_slopes(below) + alibi_slopes(2 * below)[0::2][: heads - below]


def t5_bucket(distance, buckets, max_distance, direction):
    """Raffel et al., with whole numbers only: `log` falls on either side of a boundary."""
    bucket, steps = 0, -distance
    if direction == "bidirectional":
        buckets //= 2
        bucket, steps = (buckets if distance > 0 else 0), abs(distance)
    steps, exact = max(steps, 0), buckets // 2
    if steps < exact:
        return bucket + steps
    far = buckets - exact  # how many more buckets divide log(max_distance / exact) evenly
    grown = 0
    while (
        grown < far - 1
        and steps**far * exact ** (grown + 1) >= max_distance ** (grown + 1) * exact**far
    ):
        grown += 1
    return bucket + exact + grown


def rotate(rotary, x, positions):
    """[heads, seq, head_dim] turned pair by pair, with angles rounded to float32."""
    width = int(x.shape[-1] * rotary.fraction)
    length = max(positions, default=-1) + 1
    speeds = np.float32(frequencies(rotary.scaling, rotary.base, width, length))
    growth = magnitude(rotary.scaling)
    y = np.array(x)
    for s, position in enumerate(positions):
        for i in range(width // 2):
            half = rotary.layout == "half"
            a, b = (i, i + width // 2) if half else (2 * i, 2 * i + 1)
            angle = float(np.float32(position) * speeds[i])
            cos, sin = growth * math.cos(angle), growth * math.sin(angle)
            y[:, s, a] = x[:, s, a] * cos - x[:, s, b] * sin
            y[:, s, b] = x[:, s, a] * sin + x[:, s, b] * cos
    return y


def frequencies(scaling, base, width, length):
    """The speed of every pair, by the formulas of the papers and of their authors' code."""
    name = type(scaling).__qualname__
    plain = [base ** (-2 * i / width) for i in range(width // 2)]
    if name == "LinearScaling":
        return [f / scaling.factor for f in plain]
    if name == "DynamicNTK":
        ratio = max(length, scaling.original_length) / scaling.original_length
        grown = base * (scaling.factor * ratio - (scaling.factor - 1)) ** (width / (width - 2))
        return [grown ** (-2 * i / width) for i in range(width // 2)]
    if name == "Llama3Scaling":
        return [_llama3(scaling, f) for f in plain]
    if name == "YaRN":
        return _yarn(scaling, base, width, plain)
    if name == "LongRoPE":
        divisors = scaling.long if length > scaling.original_length else scaling.short
        return [f / d for f, d in zip(plain, divisors, strict=True)]
    assert scaling is None
    return plain


def magnitude(scaling):
    if getattr(scaling, "attention_factor", None) is not None:
        return scaling.attention_factor
    name = type(scaling).__qualname__
    if name == "YaRN":
        return 0.1 * math.log(scaling.factor) + 1.0
    if name == "LongRoPE":
        return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_length))
    return 1.0


def _llama3(scaling, frequency):
    wavelength = 2 * math.pi / frequency
    longest = scaling.original_length / scaling.low_frequency_factor
    shortest = scaling.original_length / scaling.high_frequency_factor
    if wavelength < shortest:
        return frequency
    if wavelength > longest:
        return frequency / scaling.factor
    smooth = (scaling.original_length / wavelength - scaling.low_frequency_factor) / (
        scaling.high_frequency_factor - scaling.low_frequency_factor
    )
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def _yarn(scaling, base, width, plain):
    def pair(turns):
        """The pair that turns so often over the original length, by bisection."""
        low, high = -10.0 * width, 10.0 * width
        for _ in range(200):
            middle = (low + high) / 2
            often = scaling.original_length * base ** (-2 * middle / width) / (2 * math.pi) > turns
            low, high = (middle, high) if often else (low, middle)
        return low

    first, last = pair(scaling.fast), pair(scaling.slow)
    if scaling.rounded:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    found = []
    for i, frequency in enumerate(plain):
        stretched = min(max((i - first) / (last - first), 0.0), 1.0)
        found.append(stretched * frequency / scaling.factor + (1 - stretched) * frequency)
    return found


def routing(part, logits):
    """The ids and weights of one token's experts, and all its probabilities."""
    rule = part.config.routing
    name = type(rule).__qualname__
    sigmoid = 1 / (1 + np.exp(-logits))
    scores = {"SoftmaxThenTopK": softmax(logits), "TopKThenSoftmax": logits}.get(name, sigmoid)
    ids = chosen_experts(part, scores)
    if name == "TopKThenSoftmax":
        return ids, softmax(logits[ids]), softmax(logits)
    weights = scores[ids] / scores[ids].sum() if rule.normalize else scores[ids]
    if name == "SoftmaxThenTopK":
        return ids, weights, scores
    assert name == "SigmoidTopK"
    return ids, rule.scale * weights, scores / scores.sum()


def chosen_experts(part, scores):
    """The experts of the largest scores, corrected, within the groups of the two largest."""
    config, groups = part.config, getattr(part.config.routing, "groups", 1)
    by = scores if part.correction is None else scores + part.correction
    size = config.count // groups
    best = [sum(sorted(by[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    kept = sorted(range(groups), key=lambda g: -best[g])
    kept = kept[: getattr(config.routing, "top_groups", 1)]
    return sorted((e for g in kept for e in range(g * size, (g + 1) * size)), key=lambda e: -by[e])[
        : config.top
    ]


def experts(part, x):
    """A mixture of experts on [tokens, dim]: the result, the load-balance loss and the z-loss."""
    y, uses, mean, z = np.zeros(x.shape), np.zeros(part.config.count), 0.0, 0.0
    for t, token in enumerate(x):
        logits = linear(part.router, token[None])[0]
        ids, weights, probabilities = routing(part, logits)
        for e, weight in zip(ids, weights, strict=True):
            expert = jax.tree.map(operator.itemgetter(e), part.experts)
            y[t] += weight * feed_forward(expert, token[None])[0]
            uses[e] += 1
        mean = mean + probabilities / len(x)
        z += math.log(np.exp(logits).sum()) ** 2 / len(x)
    if part.shared is not None:
        y = y + feed_forward(part.shared, x)
    share = uses / (len(x) * part.config.top)
    return y, part.config.count * (share @ mean), z
