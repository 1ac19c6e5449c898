"""As much of JSON Schema, draft 2020-12, as the policy's schema uses; an unknown keyword is an error."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any

_WORDS = {"$schema", "title", "description", "format", "if", "then", "contains", "minContains", "maxContains", "items"}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
}


def is_valid(value: Any, schema: dict[str, Any] | bool) -> bool:
    """Whether `value` is valid under `schema`. A date or time counts as the string that it is in TOML."""
    if isinstance(schema, bool):
        return schema
    if isinstance(value, dt.date | dt.time):
        value = value.isoformat()
    if not all(_holds(word, said, value, schema) for word, said in schema.items() if word not in _WORDS):
        return False
    if "if" in schema and is_valid(value, schema["if"]) and not is_valid(value, schema["then"]):
        return False
    if not isinstance(value, list):
        return True
    if "items" in schema:
        first = len(schema.get("prefixItems", []))
        if not all(is_valid(item, schema["items"]) for item in value[first:]):
            return False
    if "contains" not in schema:
        return True
    count = sum(is_valid(item, schema["contains"]) for item in value)
    return schema.get("minContains", 1) <= count <= schema.get("maxContains", count)


def _holds(word: str, said: Any, value: Any, schema: dict[str, Any]) -> bool:
    match word:
        case "type":
            return isinstance(value, _TYPES[said]) and (said != "integer" or not isinstance(value, bool))
        case "const":
            return bool(value == said)
        case "enum":
            return value in said
        case "allOf":
            return all(is_valid(value, each) for each in said)
        case "anyOf":
            return any(is_valid(value, each) for each in said)
    if isinstance(value, str) and word in ("pattern", "minLength", "maxLength"):
        if word == "pattern":
            return re.search(said, value) is not None
        return said <= len(value) if word == "minLength" else len(value) <= said
    if isinstance(value, int) and word in ("minimum", "maximum"):
        return bool(said <= value if word == "minimum" else value <= said)
    if isinstance(value, list) and word in ("minItems", "maxItems", "prefixItems", "uniqueItems"):
        if word == "minItems":
            return len(value) >= int(said)
        if word == "maxItems":
            return len(value) <= int(said)
        if word == "uniqueItems":
            return not said or all(value.count(each) == 1 for each in value)
        return all(is_valid(item, each) for item, each in zip(value, said, strict=False))
    if isinstance(value, dict) and word in _OF_OBJECTS:
        return _of_object(word, said, value, schema)
    if (
        word
        in {
            "pattern",
            "minLength",
            "maxLength",
            "minimum",
            "maximum",
            "minItems",
            "maxItems",
            "prefixItems",
            "uniqueItems",
        }
        | _OF_OBJECTS
    ):
        return True  # it says nothing of values of another type
    raise ValueError(f"keyword {word}")


_OF_OBJECTS = {"required", "properties", "additionalProperties", "propertyNames", "minProperties", "maxProperties"}


def _of_object(word: str, said: Any, value: dict[str, Any], schema: dict[str, Any]) -> bool:
    match word:
        case "required":
            return set(said) <= set(value)
        case "properties":
            return all(is_valid(value[name], each) for name, each in said.items() if name in value)
        case "propertyNames":
            return all(is_valid(name, said) for name in value)
        case "minProperties":
            return len(value) >= int(said)
        case "maxProperties":
            return len(value) <= int(said)
    others = [item for name, item in value.items() if name not in schema.get("properties", {})]
    return not others if said is False else all(is_valid(item, said) for item in others)
