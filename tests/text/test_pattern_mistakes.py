"""What is no form, or none that is followed, is refused; what types and `items` leave is taken."""

import re
import sys

import pytest

import eqxformer as ef
from eqxformer.text._schema import pattern_of


@pytest.mark.parametrize(
    ("regex", "message"),
    [
        ("(a", r"`\(a` must be a regular expression of Rust's crate `regex`"),
        ("a(?=b)", "without look-around"),
        (r"(a)\1", "references back"),
        (r"\ba", r"must be a regular expression .* `\\b` inside"),
        (r"[^\x00-\x{10FFFF}]", "has a part that no text matches"),
        ("z+", r"No tokens spell a text of `z\+`"),
        ("aé", "No tokens spell a text of `aé`"),
        ("a)|(b", r"`a\)\|\(b` must be a regular expression"),
    ],
)
def test_an_expression_that_nothing_can_match_or_that_is_none_is_refused(regex, message):
    with pytest.raises(ValueError, match=message):
        ef.Pattern(regex, (b"", b"a", b"ab", b"\xc3"), stop=0)


def test_a_type_of_several_is_a_choice_beside_the_keywords_of_one():
    person = {"type": ["object", "null"], "properties": {"a": {"type": "null"}}, "required": ["a"]}
    pair = {"type": ["string", "array"], "prefixItems": [{"type": "null"}, {"type": "boolean"}]}
    for schema, texts in ((person, ("null", '{"a":null}')), (pair, ('"b"', "[null,true]"))):
        expression = re.compile(pattern_of(schema, ""))
        assert all(expression.fullmatch(text) for text in texts)
        assert not expression.fullmatch("1")


@pytest.mark.parametrize(
    ("schema", "texts", "others"),
    [
        ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a":1}', "[]"]),
        ({"type": "array", "items": False, "maxItems": 2}, ["[]"], ["[1]"]),
        ({"type": ["null", "array"], "items": False}, ["[]", "null"], ["[1]"]),
        ({"prefixItems": [{"type": "null"}], "items": False}, ["[null]"], ["[]", "[null,1]"]),
        (
            {"properties": {"a": {"const": 1}}, "additionalProperties": False},
            ["{}", '{"a":1}'],
            ['{"b":1}'],
        ),
    ],
)
def test_where_no_items_or_properties_are_allowed_there_are_none(schema, texts, others):
    expression = re.compile(pattern_of(schema, ""))
    assert all(expression.fullmatch(text) for text in texts)
    assert not any(expression.fullmatch(text) for text in others)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "integer", "minimum": 3}, "^#: `JsonSchema` does not follow minimum. It does"),
        ({"properties": {"a": {"oneOf": [{}]}}}, "#/properties/a: .* does not follow oneOf"),
        ({"allOf": [{"type": "null"}, {"type": "null"}]}, "allOf of several"),
        ({"items": {}}, "does not follow items"),
        ({"type": "string", "pattern": ".+"}, "patterns that match quotes, backslashes"),
        ({"type": "string", "pattern": "a", "maxLength": 2}, "`pattern`, `format` and lengths"),
        ({"type": "object", "maxProperties": 2}, "`maxProperties` above 0"),
        ({"properties": {'a"': {}}}, "property names that JSON must escape"),
        ({"properties": {}, "required": ["a"]}, "`required` names that `properties` lacks, a"),
        ({"const": {"a.b": 1}}, "constant objects with names beyond letters"),
        ({"$ref": "other.json"}, "references to other documents, 'other.json'"),
        ({"$ref": "#/$defs/a", "type": "null"}, r"what is beside `\$ref`, type"),
        (
            {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b": {"$ref": "#/$defs/a"}}}}},
            r"^#/\$defs/a/properties/b: .* a schema within itself, #/\$defs/a",
        ),
    ],
)
def test_what_would_not_be_followed_is_refused_with_its_place(schema, message):
    with pytest.raises(NotImplementedError, match=message):
        ef.JsonSchema(schema, (b"", b"a"), stop=0)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "This is not JSON"),
        ("[1]", "A schema must be a JSON object; got list"),
        ({"enum": []}, "#: `enum` must be a list of at least one value; got"),
        ({"enum": 5}, "#: `enum` must be a list of at least one value; got 5"),
        ({"type": []}, "#: `type` must be a type or a list of at least one; got"),
        ({"anyOf": []}, "#: `anyOf` must be a list of at least one schema; got"),
        ({"allOf": {"type": "null"}}, "#: `allOf` must be a list of at least one schema; got {"),
        ({"properties": {}, "required": "a"}, "#: `required` must be a list of names; got 'a'"),
        ({"type": "string", "pattern": 5}, "#: `pattern` must be text; got 5"),
        ({"type": "string", "pattern": "a)|(b"}, r"`a\)\|\(b` must be a regular expression"),
        ({"type": "array", "items": 5}, "#: `items` must be a schema, .* or false; got 5"),
        ({"type": "array", "items": False, "minItems": 1}, "the first not above .* got 1 and 0"),
        ({"anyOf": [3]}, "#/anyOf/0 must be a schema, a JSON object; got 3"),
        ({"type": "text"}, "#: `type` must be of string, array, .*; got 'text'"),
        ({"type": "string", "enum": ["a", 1]}, "# must be of type string; 1 is not"),
        ({"type": "integer", "const": True}, "# must be of type integer; True is not"),
        ({"type": "string", "properties": {}}, "`properties` is of type object; got string"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "`maxItems` must be whole"),
        ({"type": "string", "minLength": 1.5}, "must be whole numbers, .*; got 1.5"),
        ({"$ref": "#/$defs/a"}, r"# refers to #/\$defs/a, which is not there"),
        ({"type": "string", "format": "poem"}, "The schema has no expression: .*poem"),
        ({"const": "b"}, "No tokens spell a text of the schema"),
    ],
)
def test_what_is_no_schema_or_has_no_text_is_refused(schema, message):
    with pytest.raises(ValueError, match=message):
        ef.JsonSchema(schema, (b"", b"a", b'"'), stop=0)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "outlines_core", None)
    for make in (lambda: ef.Pattern("a", (b"a",), stop=0), lambda: ef.JsonSchema({}, (), stop=0)):
        with pytest.raises(ImportError, match=r"pip install 'eqxformer\[constrain\]'"):
            make()
