"""The stops of the tour, as data: what a component is, its formula, and the code that shows it.

Sizes are different primes, as far as they are sizes of axes: a shape says which axes it has.
"""

import dataclasses

SIZES = {
    "batch": 2,
    "heads": 3,
    "seq": 5,
    "head_dim": 7,
    "dim": 11,
    "hidden": 13,
    "keys": 17,
    "labels": 19,
    "slots": 23,
    "vocab": 29,
}

BEGIN = """\
import eqxformer as ef, jax, jax.numpy as jnp, numpy as np
np.set_printoptions(precision=2, suppress=True)
keys = iter(jax.random.split(jax.random.key(0), 32))  # a new key for everything that is drawn
"""


@dataclasses.dataclass(frozen=True)
class Stop:
    """One component.

    Arguments:
        title: its name.
        says: what it is, in a sentence or two.
        formula: what it computes.
        code: lines to type; what they print is shown below them.
        takes, gives: the axes of arrays that go in and come out, by their names in the code.
    """

    title: str
    says: str
    formula: str
    code: str
    takes: dict[str, str]
    gives: dict[str, str]


X = {"x": "batch seq dim"}
Y = {"y": "batch seq dim"}

STOPS = (
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
print(waves[:, :4])
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
""",
        X,
        {"hidden": "batch seq hidden", **Y},
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
    Stop(
        "Encoder block",
        "Attention, by which tokens see each other, then a feed-forward, both added to the stream.",
        "x = x + attention(norm(x))\ny = x + mlp(norm(x))",
        """\
reader = ef.Block.Config(
    attention=ef.Attention.Config(heads=3, head_dim=7),
    feed_forward=ef.MLP.Config(hidden=13),
)
block = reader.build(11, key=next(keys))
y = block(x)
""",
        X,
        Y,
    ),
    Stop(
        "Encoder",
        "An embedding, blocks, a norm: a vector for every token that knows its context. "
        "Pooling makes one of them all, and a head scores labels.",
        "hidden = norm(block_2(block_1(embed(tokens))))",
        """\
config = ef.Encoder.Config(
    vocab=29, dim=11, embedding=embedding, blocks=(reader,) * 2, norm=ef.LayerNorm.Config()
)
encoder = config.build(key=next(keys))
hidden = encoder(tokens)
vector = encoder.embed(tokens)
question = ef.SequenceHead.Config(labels=19)
labelled = ef.EncoderWithHead(encoder=config, head=question, key=next(keys))
scores = labelled(tokens)
""",
        {"tokens": "batch seq"},
        {"hidden": "batch seq dim", "vector": "batch dim", "scores": "batch labels"},
    ),
    Stop(
        "Cross-attention",
        "Queries come from one sequence, keys and values from another: how a decoder reads "
        "its source, which here has 17 tokens.",
        "y = softmax(query(x) key(source)^T / sqrt(head_dim)) value(source) @ out",
        """\
source_tokens = jax.random.randint(next(keys), (2, 17), 0, 29)
source = encoder(source_tokens)
cross = ef.Attention(11, heads=3, head_dim=7, key=next(keys))
weights = cross.weights(x, source)
y = cross(x, source)
""",
        {**X, "source": "batch keys dim"},
        {"weights": "batch heads seq keys", **Y},
    ),
    Stop(
        "Decoder block",
        "Three branches: causal attention to what is written, cross-attention to the source, "
        "a feed-forward.",
        "x = x + attention(norm(x))\nx = x + cross(norm(x), source)\ny = x + mlp(norm(x))",
        """\
writer = reader.edit(cross_attention=ef.Attention.Config(heads=3, head_dim=7))
block = writer.build(11, key=next(keys))
y = block(x, source, mask=ef.Causal())
""",
        {**X, "source": "batch keys dim"},
        Y,
    ),
    Stop(
        "Decoder",
        "Decoder blocks between an embedding and a head; causal by itself, so a mask need not "
        "be given.",
        "logits = head(norm(block_2(block_1(embed(tokens), source), source)))",
        """\
config = ef.DecoderLM.Config(vocab=29, dim=11, embedding=embedding, blocks=(writer,) * 2)
decoder = config.build(key=next(keys))
logits = decoder(tokens, source)
""",
        {"tokens": "batch seq", "source": "batch keys dim"},
        {"logits": "batch seq vocab"},
    ),
    Stop(
        "Output layer",
        "A score for every token of the vocabulary. Their log-softmax are log-probabilities: "
        "of the exponentials each row sums to one. `ef.TiedHead` uses the embedding's own "
        "table.",
        "log_probabilities = log_softmax(x @ weight)",
        """\
head = ef.LinearHead(11, 29, key=next(keys))
logits = head(x, table)
log_probabilities = jax.nn.log_softmax(logits)
print(jnp.exp(log_probabilities).sum(-1))
""",
        X,
        {"logits": "batch seq vocab", "log_probabilities": "batch seq vocab"},
    ),
    Stop(
        "Encoder-decoder",
        "The first transformer, whole: the encoder reads 17 tokens, the decoder scores what "
        "follows each of 5. `ef.families` has it, T5, GPT, Llama and BERT ready made.",
        "logits = decoder(target, encoder(source))",
        """\
config = ef.families.transformer(vocab=29, dim=11, layers=2, heads=3, head_dim=7, hidden=13)
translator = config.build(key=next(keys))
logits = translator(source_tokens, tokens)
print(ef.table(translator, depth=2))
""",
        {"source_tokens": "batch keys", "tokens": "batch seq"},
        {"logits": "batch seq vocab"},
    ),
    Stop(
        "Language model",
        "A decoder without a source: at every place, the scores of the next token. The config "
        "is the architecture; `config.edit` changes any part of it by its path.",
        "logits = head(norm(block_2(block_1(embed(tokens)))))",
        """\
config = ef.DecoderLM.Config(vocab=29, dim=11, embedding=embedding, blocks=(reader,) * 2)
config = config.edit("blocks.*.attention", window=4)
print(config)
model = config.build(key=next(keys))
logits = model(tokens)
""",
        {"tokens": "batch seq"},
        {"logits": "batch seq vocab"},
    ),
    Stop(
        "The cache",
        "Keys and values of earlier tokens are kept, so that a new token costs one step. A "
        "cache has a fixed number of slots; the logits are those of the whole text.",
        "keys[slot t] = key(x[t])    values[slot t] = value(x[t])",
        """\
model = config.edit("blocks.*.attention", window=None).build(key=next(keys))
cache = model.init_cache((2,), slots=23)
prompt, cache = model.extend(tokens[:, :4], cache)
last, cache = model.extend(tokens[:, 4:], cache)
print(cache.length, jnp.allclose(last[:, 0], model(tokens)[:, 4], atol=1e-5))
remembered = cache.blocks[0].attention.keys
""",
        {"tokens": "batch seq"},
        {"remembered": "batch heads slots head_dim", "cache.length": "batch"},
    ),
    Stop(
        "Generation",
        "The prompt in one pass, then a token a step: the likeliest, or one drawn at a "
        "temperature. A key gives each row the same text in any batch.",
        "token ~ softmax(logits / temperature)",
        """\
print(ef.generate(model, tokens, max_new_tokens=7))
sampler = ef.Sample(temperature=0.8, top_k=11)
new = ef.generate(model, tokens, max_new_tokens=7, sampler=sampler, key=next(keys))
print(new)
""",
        {"tokens": "batch seq"},
        {"new": "batch new"},
    ),
)
