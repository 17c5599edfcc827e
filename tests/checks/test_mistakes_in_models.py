"""Twenty typical mistakes with whole models, and what is said of each."""

import textwrap
import traceback
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from tests.helpers.models import filled

DECODER = filled(ef.families.llama(vocab=13, dim=12, layers=4, heads=3, hidden=7))
SEQ2SEQ = filled(ef.families.transformer(vocab=13, dim=8, layers=4, heads=2, hidden=7))
TOKENS = jnp.ones((2, 5), jnp.int32)
X = jnp.ones((2, 5, 12))


def _changed(model, where, new):
    """The model with a wrong array or part in one place, as after a slip in a conversion."""
    return eqx.tree_at(where, model, new)


def _wrong_query():
    other = filled_linear(6, 8)
    return _changed(SEQ2SEQ, lambda m: m.decoder.blocks.groups[3].attention.query, other)


def filled_linear(in_dim, out_dim):
    """A linear map of these sizes."""
    return ef.Linear.of(jnp.ones((in_dim, out_dim)), jnp.ones(out_dim))


def _scanned_down():
    scanned = ef.rebuild(DECODER, DECODER.config.edit(layout=ef.Scanned()))
    turned = jnp.swapaxes(scanned.blocks.groups[0].feed_forward.down.weight, 1, 2)
    return _changed(scanned, lambda m: m.blocks.groups[0].feed_forward.down.weight, turned)


MISTAKES = {
    "a projection of another width": lambda: _wrong_query()(TOKENS, TOKENS),
    "the same under jit": (lambda: eqx.filter_jit(_wrong_query())(TOKENS, TOKENS)),
    "the same in a gradient": (
        lambda: eqx.filter_grad(lambda m: m(TOKENS, TOKENS).sum())(_wrong_query())
    ),
    "a weight turned round in stacked layers": (lambda: _scanned_down()(TOKENS)),
    "a norm of another width": (
        lambda: _changed(
            DECODER, lambda m: m.blocks.groups[2].attention_residual.pre_norm.weight, jnp.ones(6)
        )(TOKENS)
    ),
    "a head of another width": (
        lambda: _changed(DECODER, lambda m: m.head.linear, filled_linear(6, 13))(TOKENS)
    ),
    "a table of another width": (
        lambda: _changed(DECODER, lambda m: m.embedding.tokens.weight, jnp.ones((13, 6)))(TOKENS)
    ),
    "token ids that are floats": (lambda: DECODER(TOKENS.astype(float))),
    "token ids of NumPy": (lambda: DECODER(np.ones((2, 5), np.int32))),
    "token ids in a list": (lambda: DECODER([1, 2, 3])),
    "one token id without an axis": (lambda: DECODER(TOKENS[0, 0])),
    "hidden states in place of ids": (lambda: DECODER(X)),
    "a source of another batch": (lambda: SEQ2SEQ(TOKENS, jnp.ones((3, 4), jnp.int32))),
    "an array in place of a mask": (lambda: DECODER(TOKENS, mask=TOKENS > 0)),
    "padding of zeros and ones": (lambda: DECODER(TOKENS, mask=ef.Padding(TOKENS))),
    "positions of another length": (lambda: DECODER(TOKENS, positions=jnp.arange(4))),
    "positions that are floats": (lambda: DECODER(TOKENS, positions=jnp.arange(5.0))),
    "a seed in place of a key": (lambda: DECODER(TOKENS, key=0)),
    "several keys": (lambda: DECODER(TOKENS, key=jax.random.split(jax.random.key(0)))),
    "inputs of another width": (lambda: DECODER.blocks[1].attention(X[..., :8])),
    "a source of another width": (
        lambda: SEQ2SEQ.decoder.blocks[0](X[..., :8], X, mask=ef.Causal())
    ),
    "a cache of another batch": (lambda: DECODER.extend(TOKENS, DECODER.init_cache((3,), 8))),
    "weights of tokens of another length": (
        lambda: ef.next_token_loss(DECODER, ef.TokenBatch(TOKENS, weights=jnp.ones((2, 4))))
    ),
}

MESSAGES = {
    "a projection of another width": """
        `x` of decoder.blocks.3.attention.query (Linear.__call__): axis `in_dim` must be 6; \
got 8.
          x: float32[2,5,8], annotated Float[Array, "*batch in_dim"]
          self.weight: float32[6,8], annotated Float[Array, "in_dim out_dim"]; sets in_dim=6
        """,
    "a weight turned round in stacked layers": """
        `x` of blocks.*.feed_forward.down (Linear.__call__): axis `in_dim` must be 12; got 7.
          x: float32[2,5,7], annotated Float[Array, "*batch in_dim"]
          self.weight: float32[12,7], annotated Float[Array, "in_dim out_dim"]; sets in_dim=12
        """,
    "a norm of another width": """
        `x` of blocks.2.attention_residual.pre_norm (RMSNorm.__call__): axis `dim` must be 6; \
got 12.
          x: float32[2,5,12], annotated Float[Array, "*batch dim"]
          self.weight: float32[6], annotated Float[Array, "dim"]; sets dim=6
        """,
    "a head of another width": """
        `x` of head.linear (Linear.__call__): axis `in_dim` must be 6; got 12.
          x: float32[2,5,12], annotated Float[Array, "*batch in_dim"]
          self.weight: float32[6,13], annotated Float[Array, "in_dim out_dim"]; sets in_dim=6
        """,
    "a table of another width": """
        `x` of blocks.0.attention_residual.pre_norm (RMSNorm.__call__): axis `dim` must be \
12; got 6.
          x: float32[2,5,6], annotated Float[Array, "*batch dim"]
          self.weight: float32[12], annotated Float[Array, "dim"]; sets dim=12
        """,
    "token ids that are floats": """
        `tokens` of DecoderLM.__call__: must be Int; got float32.
          tokens: float32[2,5], annotated Int[Array, "*batch seq"]
        """,
    "token ids of NumPy": """
        `tokens` of DecoderLM.__call__: must be a JAX array (jax.numpy.asarray makes one); \
got numpy int32[2,5].
          tokens: numpy int32[2,5], annotated Int[Array, "*batch seq"]
        """,
    "token ids in a list": """
        `tokens` of DecoderLM.__call__: must be Int[Array, "*batch seq"]; got a list of \
length 3.
        """,
    "one token id without an axis": """
        `tokens` of DecoderLM.__call__: must have at least 1 axis; got 0.
          tokens: int32[], annotated Int[Array, "*batch seq"]
        """,
    "hidden states in place of ids": """
        `tokens` of DecoderLM.__call__: must be Int; got float32.
          tokens: float32[2,5,12], annotated Int[Array, "*batch seq"]
        """,
    "a source of another batch": """
        `target` of EncoderDecoder.__call__: axes `*batch` must be (2,); got (3,).
          target: int32[3,4], annotated Int[Array, "*batch seq"]
          source: int32[2,5], annotated Int[Array, "*batch keys"] | Float[Array, "*batch \
frames bins"]; sets batch=(2,)
        """,
    "an array in place of a mask": """
        `mask` of DecoderLM.__call__: must be Mask | None; got bool[2,5]; `ef.Padding(valid)` \
and `ef.Explicit(allowed)` make masks of arrays.
        """,
    "padding of zeros and ones": """
        `valid` of Padding: must be Bool; got int32.
          valid: int32[2,5], annotated Bool[Array, "*#batch keys"]
        """,
    "positions of another length": """
        `positions` of DecoderLM.__call__: axis `seq` must be 5; got 4.
          positions: int32[4], annotated Int[Array, "*#batch seq"] | None
          tokens: int32[2,5], annotated Int[Array, "*batch seq"]; sets seq=5
        """,
    "positions that are floats": """
        `positions` of DecoderLM.__call__: must be Int; got float32.
          positions: float32[5], annotated Int[Array, "*#batch seq"] | None
        """,
    "a seed in place of a key": """
        `key` of DecoderLM.__call__: must be PRNGKeyArray | None; got the int 0.
        """,
    "several keys": """
        `key` of DecoderLM.__call__: must have 0 axes; got 1.
          key: key<fry>[2], annotated PRNGKeyArray | None
        """,
    "inputs of another width": """
        `x` of key (Linear.__call__): axis `in_dim` must be 12; got 8.
          x: float32[2,5,8], annotated Float[Array, "*batch in_dim"]
          self.weight: float32[12,12], annotated Float[Array, "in_dim out_dim"]; sets in_dim=12
        """,
    "a source of another width": """
        `x` of cross_attention.key (Linear.__call__): axis `in_dim` must be 8; got 12.
          x: float32[2,5,12], annotated Float[Array, "*batch in_dim"]
          self.weight: float32[8,8], annotated Float[Array, "in_dim out_dim"]; sets in_dim=8
        """,
    "a cache of another batch": """
        The cache is for a batch of (3,); this call has (2,).
        """,
    "weights of tokens of another length": """
        `weights` of TokenBatch: axis `seq` must be 5; got 4.
          weights: float32[2,4], annotated Float[Array, "*batch seq"] | Float[ndarray, \
"*batch seq"] | Bool[Array, "*batch seq"] | Bool[ndarray, "*batch seq"] | None
          tokens: int32[2,5], annotated Int[Array, "*batch seq"] | Int[ndarray, "*batch \
seq"]; sets seq=5
        """,
}
for _same in ("the same under jit", "the same in a gradient"):
    MESSAGES[_same] = MESSAGES["a projection of another width"]


@pytest.fixture(scope="module")
def told():
    """The error of every mistake."""
    found = {}
    for name, mistake in MISTAKES.items():
        with pytest.raises((ef.ShapeError, ValueError)) as error:
            mistake()
        found[name] = error.value
    return found


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_path_axis_expected_got_and_what_fixed_it(told, name):
    assert str(told[name]) == textwrap.dedent(MESSAGES[name]).strip()
    assert str(told[name]).count("\n") < 4


def test_the_last_frame_is_that_of_the_mistake(told):
    for name, error in told.items():
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "site-packages" not in f.filename]  # Equinox calls methods
        if isinstance(error, ef.ShapeError):
            assert Path(ours[-1].filename) == Path(__file__), name
