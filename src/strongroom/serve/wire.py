"""Read JSON from a peer strictly: every field named, typed and capped, nothing ignored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from strongroom.errors import FormatError

# JSON grows up to twentyfold when it is parsed, so that its share of a body has a cap of its own.
MAX_JSON = 16 << 20
MAX_ITEMS = 1024
MAX_NAME = 1024


def read_json(raw: bytes | bytearray, what: str) -> object:
    """A JSON value, in UTF-8, without duplicate keys, NaN or infinities.

    Raises:
        FormatError: it is none, or is longer than the cap.
    """
    if len(raw) > MAX_JSON:
        raise FormatError(f"{what}: {len(raw)} bytes of JSON, wanted at most {MAX_JSON}")
    try:
        return json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise FormatError(f"{what}: is not JSON") from None


def an_object(
    value: object, what: str, *, required: Sequence[str] = (), optional: Sequence[str] = ()
) -> Mapping[str, Any]:
    """An object with these fields and no others. Raises FormatError otherwise, as all below do."""
    if not isinstance(value, dict):
        raise FormatError(f"{what}: got {kind_of(value)}, wanted an object")
    for key in required:
        if key not in value:
            raise FormatError(f"{what}: has no {key}")
    for key in value:
        if key not in required and key not in optional:
            raise FormatError(f"{what}: got an unknown field {show(key)}")
    return value


def a_list(value: object, what: str, *, cap: int = MAX_ITEMS) -> list[Any]:
    """A list of at most `cap` items."""
    if not isinstance(value, list):
        raise FormatError(f"{what}: got {kind_of(value)}, wanted a list")
    if len(value) > cap:
        raise FormatError(f"{what}: got {len(value)} items, wanted at most {cap}")
    return value


def a_name(value: object, what: str, *, cap: int = MAX_NAME) -> str:
    """A string that is not empty and has at most `cap` characters."""
    if not isinstance(value, str) or not value or len(value) > cap:
        raise FormatError(f"{what}: got {show(value)}, wanted a string of 1 to {cap} characters")
    return value


def a_bool(value: object, what: str) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise FormatError(f"{what}: got {show(value)}, wanted true or false")
    return value


def show(value: object) -> str:
    """A value from a peer, short enough for a message: of a list or an object the kind only."""
    if isinstance(value, dict | list):
        return kind_of(value)
    if isinstance(value, int) and abs(value) > 2**64:
        return "a huge integer"
    return repr(value)[:60]


def kind_of(value: object) -> str:
    """JSON's word for the kind of a value."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise FormatError("JSON: a key occurs twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise FormatError(f"JSON: {name} is not a JSON number")
