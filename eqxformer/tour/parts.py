"""The first stops of the tour: from token ids to the parts of a block."""

from eqxformer.tour.stop import Stop, X, Y

PARTS = (
    Stop(
        "Token embedding",
        "A text is a row of token ids. The table holds a learned vector for each; an id that "
        "is not in the vocabulary is an error, never another token's vector.",
        "x[t] = weight[id[t]]",
        """\
tokens = jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 28]])
table = ef.Embedding(29, 11, key=next(keys))
x = table(tokens)
""",
        {"tokens": "batch seq"},
        {"table.weight": "vocab dim", **X},
    ),
    Stop(
        "Positions",
        "Attention does not know the order of tokens. Waves of falling frequency tell it; "
        "learned positions, rotary positions, ALiBi and T5's biases are other ways.",
        "p[t, 2i] = sin(t / 10000^(2i / dim))    p[t, 2i + 1] = cos(t / 10000^(2i / dim))",
        """\
places = jnp.arange(5)
waves = ef.Sinusoids(11)(places)
print(ef.inspect.shades(waves))  # positions down, numbers of the vector across
""",
        {"places": "seq"},
        {"waves": "seq dim"},
    ),
    Stop(
        "Input embedding",
        "What enters the first block: tokens and positions added, here with the tokens scaled "
        "as in the first transformer. Token types, a norm and dropout may follow.",
        "x = sqrt(dim) * tokens[id] + positions[t]",
        """\
embedding = ef.InputEmbedding.Config(scale="sqrt(dim)", positions=ef.Sinusoids.Config())
embed = embedding.build(29, 11, key=next(keys))
x = embed(tokens)
""",
        {"tokens": "batch seq"},
        X,
    ),
    Stop(
        "Scaled dot-product attention",
        "Every query takes an average of the values, weighted by how well it matches each "
        "key. The weights of a query sum to one.",
        "y = softmax(query key^T / sqrt(head_dim)) value",
        """\
query, key, value = (jax.random.normal(next(keys), (2, 3, 5, 7)) for _ in range(3))
scoring = ef.Scoring(scale=7**-0.5)
weights = ef.attention_weights(query, key, scoring=scoring)
attended = ef.attend(query, key, value, scoring=scoring)
print(weights[0, 0].sum(-1))
print(ef.inspect.shades(weights[0, 0]))  # queries down, keys across
""",
        dict.fromkeys(("query", "key", "value"), "batch heads seq head_dim"),
        {"weights": "batch heads seq seq", "attended": "batch heads seq head_dim"},
    ),
    Stop(
        "The causal mask",
        "Who writes from left to right may not look ahead. A mask is a description that "
        "becomes an array only where a kernel needs one; here are the squares that stay, and "
        "the weights.",
        "weight[query, key] = 0  where  key > query",
        """\
print(ef.Causal().draw(5))
weights = ef.attention_weights(query, key, scoring=scoring, mask=ef.Causal())
print(weights[0, 0])
print(ef.inspect.shades(weights[0, 0]))
""",
        {"query": "batch heads seq head_dim", "key": "batch heads seq head_dim"},
        {"weights": "batch heads seq seq"},
    ),
    Stop(
        "Other masks",
        "A window, a prefix that may look both ways, two texts packed into one row, padding. "
        "Masks are joined with `&`.",
        "(a & b)[query, key] = a[query, key] and b[query, key]",
        """\
print(ef.Window(1, 0).draw(5))
print(ef.Prefix(2).draw(5))
packed = ef.Segments(jnp.array([0, 0, 0, 1, 1]))
print((ef.Causal() & packed).draw(5))
valid = jnp.array([[True] * 5, [True] * 3 + [False] * 2])
weights = ef.attention_weights(query, key, scoring=scoring, mask=ef.Padding(valid))
print(weights[1, 0, 0])
""",
        {"valid": "batch seq"},
        {"weights": "batch heads seq seq"},
    ),
    Stop(
        "Multi-head attention",
        "Several attentions side by side, each with queries, keys and values of its own, and "
        "a projection of all their results together. Heads may be of any size.",
        "y = concat over h of (softmax(q_h k_h^T / sqrt(head_dim)) v_h) @ out",
        """\
attention = ef.Attention(11, heads=3, head_dim=7, key=next(keys))
y = attention(x, mask=ef.Causal())
weights = attention.weights(x, mask=ef.Causal())
print(ef.table(attention))
""",
        X,
        {"weights": "batch heads seq seq", **Y},
    ),
    Stop(
        "Rotary positions",
        "Queries and keys are turned by angles that grow with their places, pair by pair of "
        "numbers, so that a score depends on the distance alone. Most models of today do this; "
        "longer texts are a matter of scaling the angles.",
        "pair_i of position t is turned by t / base^(2i / width)",
        """\
rotary = ef.Rotary(fraction=6 / 7)  # of each head, six numbers: three pairs
turned = rotary(query, places)
cosines, sines = rotary.tables(6, places)
print(cosines)
same = jnp.ones((1, 1, 5, 7))
scores = (rotary(same, places) @ jnp.swapaxes(rotary(same, places), -1, -2))[0, 0]
print(scores)  # the same along every diagonal
print(ef.inspect.shades(scores))
""",
        {"query": "batch heads seq head_dim", "places": "seq"},
        {"turned": "batch heads seq head_dim", "scores": "seq seq"},
    ),
    Stop(
        "Position biases",
        "Another way: a number is added to each score by the distance of query and key. ALiBi's "
        "falls in a straight line, with a slope for every head; T5 learns one for each of some "
        "ranges of distances.",
        "score[h, q, k] = q_h k_h^T * scale + bias[h, k - q]",
        """\
bias = ef.ALiBi(3)(places, places)
print(bias[0])
print(ef.inspect.shades(bias[0]))
learned = ef.RelativeBias(3, buckets=8, max_distance=16, key=next(keys))(places, places)
""",
        {"places": "seq"},
        dict.fromkeys(("bias", "learned"), "heads seq seq"),
    ),
    Stop(
        "Grouped heads and windows",
        "Several heads of queries may share one of keys and values, which makes the cache "
        "smaller; a window bounds how far a query looks back. Soft-caps, sinks and norms of "
        "queries and keys are settings like these.",
        "head h looks at the keys of head h // (heads / kv_heads)",
        """\
grouped = ef.Attention(11, heads=3, kv_heads=1, head_dim=7, window=2, key=next(keys))
y = grouped(x, mask=ef.Causal())
weights = grouped.weights(x, mask=ef.Causal())
print(ef.inspect.shades(weights[0, 0]))
print(grouped.query.weight.shape, grouped.key.weight.shape)
""",
        X,
        {"weights": "batch heads seq seq", **Y},
    ),
    Stop(
        "Latent attention",
        "Keys and values of all heads are made from one narrow vector per token, and only that "
        "is remembered (DeepSeek). A few numbers more carry the rotary positions.",
        "latent = x @ to_latent    keys = latent @ key    values = latent @ value",
        """\
latent = ef.LatentAttention(11, heads=3, latent=4, head_dim=6, rotary_dim=2, key=next(keys))
y = latent(x, mask=ef.Causal())
cache = latent.init_cache((2,), slots=23)
kept = [leaf.shape[-1] for leaf in jax.tree.leaves(cache) if leaf.ndim > 2]
print(sum(kept), "numbers of a token are remembered, not", 3 * 2 * 6)
""",
        X,
        Y,
    ),
    Stop(
        "Layer norm",
        "Every vector is brought to mean zero and deviation one, then scaled and shifted by "
        "what is learned. Computed in float32 whatever the model's type.",
        "y = (x - mean) / sqrt(var + eps) * weight + bias",
        """\
norm = ef.LayerNorm(11)
y = norm(x)
print(y.mean(-1))
print(y.std(-1))
""",
        X,
        Y,
    ),
    Stop(
        "Feed-forward",
        "What a block does to each token by itself: up to a wider space, an activation, and "
        "down again. `ef.GatedMLP` multiplies by a second projection.",
        "y = down(relu(up(x)))",
        """\
mlp = ef.MLP(11, hidden=13, activation="relu", key=next(keys))
hidden = jax.nn.relu(mlp.up(x))
y = mlp(x)
gated = ef.GatedMLP(11, hidden=13, activation="silu", key=next(keys))  # down(silu(gate) * up)
other = gated(x)
""",
        X,
        {"hidden": "batch seq hidden", "other": "batch seq dim", **Y},
    ),
    Stop(
        "Mixture of experts",
        "Many feed-forwards, of which a router sends each token to a few. Load balance is 1 "
        "when all experts are used alike, and is added to the loss to keep it so.",
        "y = sum over the chosen e of weight[e] * expert[e](x)",
        """\
expert = ef.MLP.Config(hidden=13)
experts = ef.Experts(11, count=4, top=2, expert=expert, key=next(keys))
y, losses = experts.run(x)
print(f"{losses.load_balance:.2f}")
""",
        X,
        {"losses.load_balance": "", **Y},
    ),
    Stop(
        "Residual wiring",
        "Every branch adds to a stream that runs through the whole model. Which norms are "
        "there makes it pre-norm, post-norm or sandwich-norm.",
        "y = out_norm(x + scale * post_norm(branch(pre_norm(x))))",
        """\
residual = ef.Residual(11, pre_norm=ef.LayerNorm.Config())
y = residual(x, mlp)
""",
        X,
        Y,
    ),
)
