"""The few forms of JSON Schema of which the policy's schema is made."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

NO_NUL, NOT_EMPTY = r"[^\u0000]*", r"[^\u0000]+"


def table(what: str, properties: Schema, *, required: tuple[str, ...]) -> Schema:
    return {
        "type": "object",
        "description": what,
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def array(items: Schema, what: str, **more: int) -> Schema:
    return {"type": "array", "description": what, "items": items, **more}


def some(pattern: str, what: str | None = None) -> Schema:
    """An array with at least one string of that form."""
    said = {} if what is None else {"description": what}
    return {"type": "array", **said, "items": string(pattern), "minItems": 1}


def text(pattern: str, what: str) -> Schema:
    return {"type": "string", "description": what, "pattern": whole(pattern)}


def string(pattern: str) -> Schema:
    return {"type": "string", "pattern": whole(pattern)}


def integer(lowest: int, highest: int, what: str | None = None) -> Schema:
    said = {} if what is None else {"description": what}
    return {"type": "integer", **said, "minimum": lowest, "maximum": highest}


def whole(pattern: str) -> str:
    """A pattern that the whole text must match, in ECMA 262 as in Python, where ``$`` lets a line break follow."""
    return rf"^(?:{pattern})$(?!\n)"
