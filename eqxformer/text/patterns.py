"""Texts that match a regular expression, or are JSON of a schema: automata over a tokenizer's ids.

What a form allows is worked out byte by byte by outlines-core, of the extra `constrain`; which
tokens spell such bytes, here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import equinox as eqx
from jaxtyping import Array, Float, Int

from eqxformer.generation.automaton import Automaton, NoWay
from eqxformer.generation.processors import Processor, Seen
from eqxformer.text._byte_automaton import byte_automaton, check_expression, spelled
from eqxformer.text._schema import pattern_of
from eqxformer.text.token_bytes import token_bytes


class _Form(Processor):
    """A processor that leaves everything to an automaton."""

    automaton: eqx.AbstractVar[Automaton]

    def begin(self, rows: int) -> Self:
        return eqx.tree_at(lambda form: form.automaton, self, self.automaton.begin(rows))

    def after(self, tokens: Int[Array, " rows"]) -> Self:
        return eqx.tree_at(lambda form: form.automaton, self, self.automaton.after(tokens))

    def __call__(
        self, logits: Float[Array, "rows vocab"], seen: Seen | None = None
    ) -> Float[Array, "rows vocab"]:
        return self.automaton(logits, seen)


class Pattern(_Form):
    r"""Makes the text that is generated match a regular expression, all of it.

    Its characters may be split over tokens in any way. An end id is allowed where the text matches,
    and forced where nothing can follow. A space counts as in `token_bytes`: that of a first word is
    part of the text, although `decode` may leave it out. All else is as of an `Automaton`.

    Arguments:
        regex: in the syntax of Rust's crate `regex`, which has no look-around and no references
            back; `\d` is any digit of Unicode, `[0-9]` one of ASCII. All of the text has to match,
            so `^` at the beginning and `$` at the end change nothing.
        tokenizer: a `tokenizers.Tokenizer`, or the bytes of each id, None for one that is no text.
        stop: the ids that end a text; give them to `generate`, too.
        within_limit: whether to allow only what can still be completed within the tokens that
            there may be. Otherwise a text may be cut at that limit.

    Raises `ImportError` without outlines-core, and `ValueError` for an invalid expression, or one
    that no tokens spell a match of; when called, as an `Automaton` does.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> pattern = ef.Pattern("(ab)+c", (b"", b"a", b"ab", b"c"), stop=0).begin(1)
        >>> pattern(jnp.zeros((1, 4)))  # behind an "a" alone, no token has the "b"
        Array([[-inf, -inf,   0., -inf]], dtype=float32)
        >>> pattern.after(jnp.array([2]))(jnp.zeros((1, 4)))
        Array([[-inf, -inf,   0.,   0.]], dtype=float32)
    """

    automaton: Automaton

    def __init__(
        self,
        regex: str,
        tokenizer: Any,
        *,
        stop: int | Sequence[int],
        within_limit: bool = True,
    ):
        check_expression(regex)
        self.automaton = _automaton(regex, f"`{regex}`", tokenizer, stop, within_limit)


class JsonSchema(_Form):
    r"""Makes the text that is generated JSON of a schema.

    Properties come in the order of the schema. References are followed within the schema, but not
    into themselves. A string matches its `pattern` in full, of which `\d` and `\w` are of ASCII, or
    looks like its `format`; no calendar is asked for a date. What a schema leaves open, such as the
    items of an array without `items`, holds arrays and objects two deep. Refused is what no regular
    expression says in reasonable length: bounds of numbers, `oneOf`, `allOf` of several, `not`,
    properties by pattern, and whatever else would be passed over.

    Arguments:
        schema: a JSON schema as a dictionary or as its text.
        tokenizer, stop, within_limit: as of a `Pattern`.
        space: the expression of what may stand between parts; "" for none.

    Raises `ImportError` without outlines-core, `ValueError` for what is no schema or has no text,
    and `NotImplementedError`, with the place, for a keyword that is not followed.

    Source: JSON Schema, draft 2020-12.

    Example:
        >>> import eqxformer as ef, jax.numpy as jnp
        >>> schema = {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1}
        >>> form = ef.JsonSchema(schema, (b"", b"[", b"1", b"]", b"[]"), stop=0, space="").begin(1)
        >>> form(jnp.zeros((1, 5)))
        Array([[-inf,   0., -inf, -inf, -inf]], dtype=float32)
    """

    automaton: Automaton

    def __init__(
        self,
        schema: Mapping[str, Any] | str,
        tokenizer: Any,
        *,
        stop: int | Sequence[int],
        space: str = "[ ]?",
        within_limit: bool = True,
    ):
        regex = pattern_of(schema, space)
        self.automaton = _automaton(regex, "the schema", tokenizer, stop, within_limit)


def _automaton(
    regex: str, name: str, tokenizer: Any, stop: int | Sequence[int], within_limit: bool
) -> Automaton:
    tokens = tokenizer if isinstance(tokenizer, list | tuple) else token_bytes(tokenizer)
    form = byte_automaton(regex)
    table, classes = spelled(form.table, tokens)
    try:
        return Automaton(
            table, classes, form.final, stop=stop, start=form.start, within_limit=within_limit
        )
    except NoWay:
        raise ValueError(f"No tokens spell a text of {name}.") from None
