"""JSON schemas as regular expressions, and a refusal of all that would be lost on the way.

outlines-core writes the expression. It looks at some keywords of each part of a schema and passes
over the others, so that what it writes may allow too much; whatever it would pass over is an error
here that names the place.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from eqxformer.strict_json import json_value
from eqxformer.text._byte_automaton import byte_automaton, check_expression, outlines_core

_NOTES = frozenset(
    [
        "$schema",
        "$id",
        "$comment",
        "$defs",
        "definitions",
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
    ]
)
# What is looked at beside the first keyword of these that a part has, in the order of precedence.
_BESIDE = {
    "properties": ("type", "required", "additionalProperties"),
    "allOf": (),
    "anyOf": (),
    "prefixItems": ("type", "items"),
    "enum": ("type",),
    "const": ("type",),
}
_OF_TYPE = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "array": ("items", "minItems", "maxItems"),
    "object": ("additionalProperties", "minProperties", "maxProperties"),
    "number": (),
    "integer": (),
    "boolean": (),
    "null": (),
}
_KINDS = {
    "string": str,
    "array": list,
    "object": dict,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
_SCHEMAS = (list | tuple, "a list of at least one schema")
_SCHEMA = (dict | bool, "a schema, a JSON object or true or false")
# What else but a count a keyword must be.
_FORMS = {
    "type": (str | list, "a type or a list of at least one"),
    "enum": (list | tuple, "a list of at least one value"),
    "properties": (dict, "a JSON object"),
    "required": (list | tuple, "a list of names"),
    "pattern": (str, "text"),
    "format": (str, "text"),
    **dict.fromkeys(("allOf", "anyOf", "prefixItems"), _SCHEMAS),
    **dict.fromkeys(("items", "additionalProperties"), _SCHEMA),
}
_NONE = {"items": "maxItems", "additionalProperties": "maxProperties"}  # where they are false
_WHOLE = {"properties": "object", "prefixItems": "array"}  # keywords of one type alone
_MOST = 2**31
# Where anything goes, it goes two deep: a third level would take a minute to work out.
_OPEN = {"depth": 1}
_ANYTHING = {
    "anyOf": [
        *({"type": kind} for kind in ("string", "number", "boolean", "null")),
        *({"type": kind, **_OPEN} for kind in ("object", "array")),
    ]
}
_PLAIN = {"d": "[0-9]", "w": "[0-9A-Za-z_]"}  # of patterns in JSON, where Rust's are of Unicode
_UNSAFE = [*range(0x20), ord('"'), ord("\\")]  # bytes that a string of JSON cannot just hold


def pattern_of(schema: Mapping[str, Any] | str, space: str) -> str:
    """The expression of the JSON texts of a schema, with `space` between their parts.

    Raises `ValueError` for what is no schema, and `NotImplementedError` with the place of a keyword
    that would not be followed.
    """
    schema = json_value(schema) if isinstance(schema, str) else schema
    if not isinstance(schema, Mapping):
        raise ValueError(f"A schema must be a JSON object; got {type(schema).__name__}.")
    whole = _followed(dict(schema), dict(schema), "#", ())
    build = outlines_core().json_schema.build_regex_from_schema
    try:
        regex = build(json.dumps(whole, allow_nan=False), space)
        return re.sub(r"\\(.)", lambda found: _PLAIN.get(found[1], found[0]), regex)
    except ValueError as error:
        raise ValueError(f"The schema has no expression: {str(error).splitlines()[0]}") from None


def _followed(part: Any, root: dict[str, Any], place: str, inside: tuple[str, ...]) -> Any:
    """A part of a schema with its references in full, all of whose keywords will be followed."""
    part = {} if part is True else part
    if not isinstance(part, dict):
        raise ValueError(f"{place} must be a schema, a JSON object; got {part!r}.")
    part = {key: value for key, value in part.items() if key not in _NOTES}
    if not part:
        return _ANYTHING
    _check_forms(part, place)
    if "$ref" in part:
        return _referred(part, root, place, inside)
    if "allOf" in part and len(part) == len(part["allOf"]) == 1:
        return _followed(part["allOf"][0], root, f"{place}/allOf/0", inside)
    _check_keywords(part, place)
    part = _with_none(part, place)
    if several := _kinds_apart(part):
        return _followed({"anyOf": several}, root, place, inside)

    def inner(value: Any, *way: Any) -> Any:
        return _followed(value, root, "/".join((place, *map(str, way))), inside)

    for key in ("anyOf", "prefixItems"):
        if key in part:
            part[key] = [inner(value, key, i) for i, value in enumerate(part[key])]
    if "properties" in part:
        each = part["properties"].items()
        part["properties"] = {name: inner(value, "properties", name) for name, value in each}
        part.pop("additionalProperties", None)  # there will be none
    for key in ("items", "additionalProperties"):
        if key in part and "prefixItems" not in part:
            part[key] = inner(part[key], key)
    if "pattern" in part:
        part["pattern"] = _of_string(part["pattern"], place)
    return part | _OPEN


def _lead(part: dict[str, Any]) -> str:
    """The keyword that says most about a part of a schema."""
    return next((key for key in _BESIDE if key in part), "type")


def _with_none(part: dict[str, Any], place: str) -> dict[str, Any]:
    """The part, which has no items or properties where it allows none of any kind."""
    none = [key for key in _NONE if part.get(key) is False and _lead(part) == "type"]
    part = {key: value for key, value in part.items() if key not in none}
    part |= {_NONE[key]: 0 for key in none}
    _check_counts(part, place)
    return part


def _kinds_apart(part: dict[str, Any]) -> list[dict[str, Any]]:
    """One schema per type of several, where outlines-core would see that of the keyword alone."""
    whole = next((kind for key, kind in _WHOLE.items() if key in part), None)
    kinds = part.get("type")
    if whole is None or not isinstance(kinds, list) or len(kinds) == 1:
        return []
    return [{**part, "type": kind} if kind == whole else {"type": kind} for kind in kinds]


def _referred(
    part: dict[str, Any], root: dict[str, Any], place: str, inside: tuple[str, ...]
) -> Any:
    """What a reference refers to."""
    name = part["$ref"]
    if len(part) > 1:
        raise _refusal(place, f"what is beside `$ref`, {', '.join(sorted(set(part) - {'$ref'}))}")
    if name in inside:
        raise _refusal(place, f"a schema within itself, {name}")
    if not isinstance(name, str) or not name.startswith("#"):
        raise _refusal(place, f"references to other documents, {name!r}")
    found: Any = root
    for step in name.removeprefix("#").strip("/").split("/") if name != "#" else ():
        step = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or step not in found:
            raise ValueError(f"{place} refers to {name}, which is not there.")
        found = found[step]
    return _followed(found, root, name, (*inside, name))


def _check_keywords(part: dict[str, Any], place: str) -> None:
    """Raises for what is not followed in a part of a schema."""
    lead = _lead(part)
    kinds = part.get("type", "object" if lead == "properties" else [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    for kind in kinds:
        if not isinstance(kind, str) or kind not in _OF_TYPE:
            raise ValueError(f"{place}: `type` must be of {', '.join(_OF_TYPE)}; got {kind!r}.")
    known = {lead, *_BESIDE.get(lead, ())}
    if lead == "type":
        known |= {key for kind in kinds for key in _OF_TYPE[kind]}
    left = ["allOf of several"] if lead == "allOf" else sorted(set(part) - known)
    if left:
        raise _refusal(place, ", ".join(left))
    whole = _WHOLE.get(lead)
    if kinds and whole not in (None, *kinds):
        raise ValueError(f"{place}: `{lead}` is of type {whole}; got {' or '.join(kinds)}.")
    _check_names(part, place)
    for value in part.get("enum", [part["const"]] if "const" in part else []):
        _check_constant(value, place, kinds)


def _check_forms(part: dict[str, Any], place: str) -> None:
    """Raises for a keyword that is something else than it must be."""
    for key, (kind, must) in _FORMS.items():
        if key not in part:
            continue
        value = part[key]
        right = isinstance(value, kind)
        if right and key == "required":
            right = all(isinstance(each, str) for each in value)
        elif right and isinstance(value, list | tuple):
            right = len(value) > 0
        if not right:
            raise ValueError(f"{place}: `{key}` must be {must}; got {value!r}.")


def _check_counts(part: dict[str, Any], place: str) -> None:
    for what in ("Length", "Items", "Properties"):
        least, most = part.get(f"min{what}", 0), part.get(f"max{what}", _MOST)
        if not all(type(each) is int and each >= 0 for each in (least, most)) or least > most:
            raise ValueError(
                f"{place}: `min{what}` and `max{what}` must be whole numbers, the first not above "
                f"the other; got {least!r} and {most!r}."
            )
    if part.get("minProperties", 0) > 1 or part.get("maxProperties", 0) > 0:
        raise _refusal(place, "`minProperties` above 1 and `maxProperties` above 0")
    groups = [{"pattern"}, {"format"}, {"minLength", "maxLength"}]
    if sum(not group.isdisjoint(part) for group in groups) > 1:
        raise _refusal(place, "`pattern`, `format` and lengths together")


def _check_names(part: dict[str, Any], place: str) -> None:
    names = part.get("properties", {})
    missing = sorted(set(part.get("required", ())) - set(names))
    if missing and "properties" in part:
        raise _refusal(place, f"`required` names that `properties` lacks, {', '.join(missing)}")
    for name in names:
        if json.dumps(name, ensure_ascii=False) != f'"{name}"':
            raise _refusal(place, f"property names that JSON must escape, {name!r}")


def _check_constant(value: Any, place: str, kinds: list[str]) -> None:
    numbers = isinstance(value, bool) and "boolean" not in kinds
    if kinds and (numbers or not any(isinstance(value, _KINDS[kind]) for kind in kinds)):
        raise ValueError(f"{place} must be of type {' or '.join(kinds)}; {value!r} is not.")
    inner = [value]
    while inner:
        each = inner.pop()
        if isinstance(each, dict):
            if not all(re.fullmatch(r"[\w ]*", name) for name in each):
                raise _refusal(place, f"constant objects with names beyond letters, {each!r}")
            inner.extend(each.values())
        elif isinstance(each, list):
            inner.extend(each)


def _of_string(pattern: str, place: str) -> str:
    """The pattern of a string, in brackets; one that JSON would have to escape is refused."""
    pattern = pattern.removeprefix("^")
    if re.search(r"(?<!\\)(\\\\)*\$$", pattern):
        pattern = pattern[:-1]
    check_expression(pattern)
    if (byte_automaton(pattern).table[:, _UNSAFE] >= 0).any():
        raise _refusal(
            place, f"patterns that match quotes, backslashes or control characters, {pattern!r}"
        )
    return f"^(?:{pattern})$"


def _refusal(place: str, what: str) -> NotImplementedError:
    beside = "; ".join(f"of {kind}, {', '.join(keys)}" for kind, keys in _OF_TYPE.items() if keys)
    return NotImplementedError(
        f"{place}: `JsonSchema` does not follow {what}. It does follow `type`, and with it: "
        f"{beside}; and else {', '.join(_BESIDE)}, where allOf has one part, and $ref within the "
        "schema."
    )
