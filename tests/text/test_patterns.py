"""Texts made under a form have that form, whatever the logits and however tokens cut them."""

import functools
import itertools
import json
import re
import uuid

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqxformer as ef
from eqxformer.text import _byte_automaton
from tests.helpers.models import filled
from tests.text.made import size_of, tokenizer_of

ROWS, SPARE = 24, 9
# As many logits for every tokenizer, of which some belong to no token.
VOCAB = SPARE + max(size_of(tokenizer_of(kind)) for kind in ("byte level", "gemma", "only bytes"))


@functools.cache
def parts_of(kind):
    """The bytes of each id, as many for every tokenizer, so that they share what is compiled."""
    parts = ef.token_bytes(tokenizer_of(kind))
    return parts + (None,) * (VOCAB - SPARE - len(parts))


def stop_of(kind):
    return tokenizer_of(kind).token_to_id("</s>")


@eqx.filter_jit
def masked(form, logits, seen):
    return form(logits, seen)


@eqx.filter_jit
def after(form, seen, tokens):
    return form.after(tokens), seen.add(tokens)


def written(form, kind, limit):
    """The texts of as many rows under random logits, each to its end or to the limit."""
    form, seen = form.begin(ROWS), ef.Seen.start(jnp.ones((ROWS, 1), int), None, limit)
    random = np.random.default_rng(0)
    for _ in range(limit):
        logits = random.gumbel(size=(ROWS, VOCAB)).astype(np.float32)
        left = np.asarray(masked(form, logits, seen))
        assert np.isfinite(left).any(-1).all()
        form, seen = after(form, seen, left.argmax(-1).astype(np.int32))
    return [text_of(row.tolist(), kind) for row in np.asarray(seen.tokens)[:, 1:]]


def text_of(ids, kind):
    """The bytes before the end id, read as UTF-8; after it there is nothing else."""
    parts, stop = parts_of(kind), stop_of(kind)
    end = ids.index(stop) if stop in ids else len(ids)
    assert set(ids[end:]) <= {stop}
    return b"".join(parts[number] for number in ids[:end]).decode()


@pytest.mark.parametrize(
    ("regex", "once"),
    [
        (r"(a)|b", True),
        (r"(a|(b))c", True),
        (r"a\)|(b)", True),
        (r"[^a](b[a-c\]])", True),
        (r"(?i)(yes|no)", True),
        (r"[)]|(b)", False),  # where a glance won't tell
        (r"([a[b]])", False),
        (r"[]a](b)", False),
        (r"(?x)(a) b", False),
    ],
)
def test_an_expression_whose_brackets_are_plainly_its_own_is_made_an_automaton_once(
    regex, once, monkeypatch
):
    made, index = [], _byte_automaton._index
    monkeypatch.setattr(_byte_automaton, "_index", lambda *a: made.append(a) or index(*a))
    ef.Pattern(regex, (b"", b"a", b"b", b"c", b"yes"), stop=0, within_limit=False)
    assert len(made) == (1 if once else 2)


@pytest.mark.parametrize(
    "regex",
    [
        r"a)|(b",
        r"a\\)|(b",
        r"[a])|(b",
        r"(a))|((b",
        r"[]]a)|([b]",
        r"(?x)a)|(b # (",
        r"[^]])|(b",
        "a)|b\\",
    ],
)
def test_what_is_an_expression_only_in_brackets_is_refused(regex):
    with pytest.raises(ValueError, match="must be a regular expression"):
        ef.Pattern(regex, (b"", b"a", b"b"), stop=0)


REGEXES = [
    "[0-9]{3}-[0-9]{4}",
    r"(yes|no|maybe)",
    r"[a-z]{1,12}( [a-z]+)*\.",
    r"^(the|a) (quick )?(brown )*fox$",
    r"(你|好|世界|😀)+。?",
    r"[^a-z]{2,5}",
    r"(?i)the end",
    r"(ab|a)(c|bcd)*",
    r"-?(0|[1-9][0-9]*)(\.[0-9]+)?",
    r"",
]


@pytest.mark.parametrize("kind", ["byte level", "gemma", "only bytes"])
def test_every_text_matches_the_expression_within_the_limit(kind):
    several = 0
    for regex in REGEXES:
        pattern = ef.Pattern(regex, parts_of(kind), stop=stop_of(kind))
        texts = written(pattern, kind, limit=20)
        assert all(re.fullmatch(regex, text) for text in texts), (regex, texts)
        several += len(set(texts)) > 2
    assert several >= 7


def sentences(automaton, count, longest):
    """All lists of at most so many of the first ids that the automaton takes as a whole text."""
    table, classes = np.asarray(automaton.table), np.asarray(automaton.classes)
    found = set()
    for ids in itertools.chain.from_iterable(
        itertools.product(range(1, count), repeat=size) for size in range(longest + 1)
    ):
        state = 1
        for number in ids:
            state = table[state, classes[number]] if state >= 0 else -1
        if state >= 0 and table[state, classes[0]] >= 0:
            found.add(ids)
    return found


@pytest.mark.parametrize(
    "regex",
    ["(ab)+", "a|ab", "a+?b", "(a|ab)(b|ba)*", "[aé]+", ".{2,3}", "(..)+", "(a*b|é)*", "(abé|b)a?"],
)
def test_token_lists_are_taken_just_where_their_text_matches(regex):
    """Also those that cut a character in two, and those that other tokens could spell."""
    tokens = (b"", b"a", b"ab", b"b", b"ba", b"\xc3", b"\xa9", "é".encode(), b"\xa9a", None)
    automaton = ef.Pattern(regex, tokens, stop=0).automaton
    expected = set()
    for size in range(5):
        for ids in itertools.product(range(1, 9), repeat=size):
            try:
                text = b"".join(tokens[number] for number in ids).decode()
            except UnicodeDecodeError:
                continue
            if re.fullmatch(regex, text):
                expected.add(ids)
    assert sentences(automaton, 10, 4) == expected


PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "a person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer"},
        "born": {"type": "string", "format": "date"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", 3, None]}, "maxItems": 3},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "home"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"at": {"$ref": "#/$defs/pair"}},
            "required": ["at"],
        },
        "pair": {"prefixItems": [{"type": "number"}, {"type": ["boolean", "null"]}]},
    },
}
SCHEMAS = {
    "person": PERSON,
    "text of a person": json.dumps(PERSON),
    "choice": {"anyOf": [{"const": {"kind": "x", "of": [1, 2.5]}}, {"type": "integer"}]},
    "digits": {"type": "string", "pattern": r"^[\d-]{2}\w$"},
    "one": {"allOf": [{"type": "string", "pattern": "^[a-c]{2}|é+$"}]},
    "id": {"type": "string", "format": "uuid"},
    "few": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "numbers": {"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 1},
    "optional": {"properties": {"a": {"type": "null"}, "b": {"type": "boolean"}}},
    "anything": {"type": "array"},
}
DATE = re.compile("[0-9]{4}-[01][0-9]-[0-3][0-9]")
FORMATS = {"uuid": uuid.UUID, "date": DATE.fullmatch}
TYPES = {
    "string": str,
    "array": list,
    "object": dict,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def valid(value, schema, root):
    """Whether a value is of a schema, in the words of the standard."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    kinds = schema.get("type", list(TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    fits = any(isinstance(value, TYPES[kind]) for kind in kinds)
    checks = [fits and not (isinstance(value, bool) and "boolean" not in kinds)]
    checks += [json.dumps(value) in map(json.dumps, schema["enum"])] if "enum" in schema else []
    checks += [value == schema["const"]] if "const" in schema else []
    checks += [any(valid(value, s, root) for s in schema["anyOf"])] if "anyOf" in schema else []
    checks += [valid(value, each, root) for each in schema.get("allOf", ())]
    if isinstance(value, str):
        checks.append(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 999))
        checks.append(re.search(schema.get("pattern", ""), value, re.ASCII))
        checks.append(FORMATS[schema["format"]](value) if "format" in schema else True)
    if isinstance(value, list):
        checks.append(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 999))
        items = schema.get("prefixItems") or [schema.get("items", {})] * len(value)
        checks += [valid(each, item, root) for each, item in zip(value, items, strict=True)]
    if isinstance(value, dict):
        checks.append(set(schema.get("required", ())) <= set(value))
        checks.append(len(value) >= schema.get("minProperties", 0))
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        for name, each in value.items():
            other = name in known or others is not False
            checks.append(other and valid(each, known.get(name, others), root))
    return all(checks)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_text_is_json_of_the_schema_within_the_limit(name):
    schema, kind = SCHEMAS[name], "byte level"
    form = ef.JsonSchema(schema, parts_of(kind), stop=stop_of(kind))
    texts = written(form, kind, limit=90)
    schema = json.loads(schema) if isinstance(schema, str) else schema
    assert all(valid(json.loads(text), schema, schema) for text in texts), texts
    assert len(set(texts)) > 1


def test_without_space_texts_are_as_json_writes_them_at_its_shortest():
    kind = "byte level"
    schema = {"properties": {"a": {"enum": [1, 2]}, "b": {"enum": [[3, 4]]}}, "required": ["b"]}
    form = ef.JsonSchema(schema, parts_of(kind), stop=stop_of(kind), space="")
    texts = set(written(form, kind, limit=40))
    assert texts == {'{"b":[3,4]}', '{"a":1,"b":[3,4]}', '{"a":2,"b":[3,4]}'}


def test_a_model_writes_json_and_its_vocabulary_may_be_larger_than_the_tokenizers():
    kind = "byte level"
    tokenizer, stop = tokenizer_of(kind), stop_of(kind)
    model = filled(ef.families.gpt(vocab=VOCAB, dim=8, layers=1, heads=2, context=64))
    schema = {"properties": {"the": {"type": "integer"}, "end": {"type": "boolean"}}}
    form = ef.JsonSchema(schema, tokenizer, stop=stop)
    prompts = [tokenizer.encode("the end").ids, [5]] * 8
    options = {"max_new_tokens": 24, "stop": stop, "key": jax.random.key(0)}
    made = ef.generate(model, prompts, sampler=form | ef.Temperature(3.0), **options)
    texts = [tokenizer.decode(ids) for ids in made]
    assert all(valid(json.loads(text), schema, schema) for text in texts), texts
    assert len(set(texts)) > 3


def test_a_large_vocabulary_and_many_states_take_a_few_megabytes():
    random = np.random.default_rng(0)
    letters = random.integers(97, 123, (250_000, 7), np.uint8)
    sizes = random.integers(2, 8, 250_000)
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [row[:size].tobytes() for row, size in zip(letters, sizes, strict=True)]
    automaton = ef.JsonSchema(PERSON, tokens, stop=0).automaton
    arrays = jax.tree.leaves(automaton)
    dense = automaton.table.shape[0] * len(tokens) * 4
    assert sum(array.nbytes for array in arrays) < 4e6 < dense / 60
