"""The later stops of the tour: blocks, models, and what is done with them."""

from eqxformer.tour.stop import Stop, X, Y

WHOLES = (
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
        "Parallel block",
        "Both branches read the same stream and are added together, which saves waiting for "
        "one of them (GPT-J, PaLM). A block of your own is one class more.",
        "y = x + attention(norm(x)) + mlp(norm(x))",
        """\
parallel = ef.ParallelBlock(
    11, attention=reader.attention, feed_forward=reader.feed_forward, key=next(keys)
)
y = parallel(x)
""",
        X,
        Y,
    ),
    Stop(
        "Stack",
        "Blocks in a row. How they are stored is a value: one by one, or equal ones stacked and "
        "scanned, so that compile time does not grow with depth. The numbers are the same.",
        "y = block_n(... block_2(block_1(x)))",
        """\
config = ef.Encoder.Config(vocab=29, dim=11, blocks=(reader,) * 2)
one_by_one = config.build(key=jax.random.key(1))
scanned = ef.rebuild(one_by_one, config.edit(layout=ef.Scanned()))
print(one_by_one.blocks[1].attention.query.weight.shape)
print(scanned.blocks.groups[0].attention.query.weight.shape)
y = scanned(tokens)
print(jnp.allclose(y, one_by_one(tokens), atol=1e-5))
""",
        {"tokens": "batch seq"},
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
masked = ef.EncoderWithHead(encoder=config, head=ef.MaskedLMHead.Config(), key=next(keys))
guesses = masked(tokens)
""",
        {"tokens": "batch seq"},
        {
            "hidden": "batch seq dim",
            "vector": "batch dim",
            "scores": "batch labels",
            "guesses": "batch seq vocab",
        },
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
print(ef.inspect.shades(weights[0, 0]))  # 5 queries down, 17 keys across
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
    Stop(
        "Looking inside",
        "A table of all parts with what goes in and comes out, found without computing anything; "
        "and any value from inside, by its name, while the model runs as ever. `ef.patch` puts "
        "another in its place; `ef.inspect` has pictures and the compiler's view.",
        "outputs, seen = capture(model, name)(inputs)",
        """\
print(ef.tabulate(model, tokens, depth=2))
look = ef.capture(model, "blocks.0.attention.weights", "blocks.1.residual")
logits, seen = look(tokens)
weights, stream = seen["blocks.0.attention.weights"], seen["blocks.1.residual"]
print(ef.inspect.shades(weights[0, 0]))
""",
        {"tokens": "batch seq"},
        {"weights": "batch heads seq seq", "stream": "batch seq dim"},
    ),
    Stop(
        "Training step",
        "The loss is the mean surprise at each next token. Its gradient has the shape of the "
        "model; an optimizer makes of it a change that lowers the loss.",
        "loss = -mean over t of log p(token[t + 1] | tokens up to t)",
        """\
optimizer = ef.AdamW(1e-2).build(steps=3)
state = ef.TrainState.create(model, optimizer, key=next(keys))
step = ef.make_step(ef.next_token_loss, optimizer)
for _ in range(3):
    state, metrics = step(state, ef.TokenBatch(tokens))
    print(f"loss {metrics['loss']:.3f}, norm of the gradient {metrics['gradient_norm']:.3f}")
logits = state.model(tokens)
""",
        {"tokens": "batch seq"},
        {"metrics['loss']": "", "logits": "batch seq vocab"},
    ),
)
