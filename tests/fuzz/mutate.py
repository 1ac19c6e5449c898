"""Mutations that reach what is encoded: the bytes behind hexadecimal digits and base64, in JSON, and JSON in that.

libFuzzer changes bytes, and a byte changed in base64 hardly ever decodes to anything that an inner parser likes.
"""

from __future__ import annotations

import base64
import binascii
import json
import random
import re
from collections.abc import Callable
from typing import Any

_HEX = re.compile(r"(?:[0-9a-fA-F]{2}){4,}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]{8,}={0,2}")
_PEM = re.compile(r"(-----BEGIN [A-Z0-9 ]+-----\r?\n)([A-Za-z0-9+/=\s]+)(-----END)")
_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 2**32, 2**64, 1.5, 1e999, "", "\0", "é", "\ud800", [], {}, [[]], {"": None}, "0" * 9, "f" * 64,
)  # fmt: skip

Mutate = Callable[[bytes, int], bytes]


def mutate(raw: bytes, longest: int, seed: int, plainly: Mutate) -> bytes:
    """`raw` changed, within what it encodes where it is text; `plainly` changes bytes."""
    chance = random.Random(seed)  # noqa: S311
    if raw.isascii() and raw and chance.random() < 0.7:
        changed = _text(raw.decode(), chance, plainly).encode("utf-8", "surrogatepass")
        if changed != raw and len(changed) <= longest:
            return changed
    return plainly(raw, longest)


def _text(text: str, chance: random.Random, plainly: Mutate) -> str:
    def bytes_changed(raw: bytes) -> bytes:
        return plainly(raw, len(raw) + 64)

    if text.lstrip()[:1] in ("{", "["):
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if document:
            written = json.dumps(_value(document, chance, plainly), separators=(",", ":"), ensure_ascii=False)
            # Some forms are JSON in its canonical spelling, which begins so.
            return written if chance.random() < 0.9 else json.dumps(json.loads(written), indent=1, sort_keys=True)
    if match := _PEM.search(text):
        matches = list(_PEM.finditer(text))
        match = chance.choice(matches)
        try:
            inner = base64.b64encode(bytes_changed(base64.b64decode("".join(match[2].split())))).decode()
        except (binascii.Error, ValueError):
            return text
        lines = "".join(line + "\n" for line in re.findall(".{1,64}", inner))
        return text[: match.start(2)] + lines + text[match.end(2) :]
    if chance.random() < 0.05:
        at = chance.randrange(len(text) + 1)
        return text[:at] + chance.choice(["\ud800", "\0", "é", '"', "\n", "٣"]) + text[at:]
    if _HEX.fullmatch(text):
        return bytes_changed(bytes.fromhex(text)).hex()
    if _BASE64.fullmatch(text) and len(text) % 4 == 0:
        raw = base64.b64decode(text)
        if raw.isascii():
            return base64.b64encode(_text(raw.decode(), chance, plainly).encode("utf-8", "surrogatepass")).decode()
        return base64.b64encode(bytes_changed(raw)).decode()
    return bytes_changed(text.encode("utf-8", "surrogatepass")).decode("latin-1")


def _value(value: Any, chance: random.Random, plainly: Mutate) -> Any:
    """A JSON value with one thing in it changed, dropped, doubled, or put in the place of another."""
    if isinstance(value, dict | list) and value and chance.random() < 0.9:
        keys = sorted(value) if isinstance(value, dict) else range(len(value))
        key = chance.choice(list(keys))
        changed = value.copy()
        match chance.randrange(12):
            case 0:
                del changed[key]
            case 1:
                changed[key] = value[chance.choice(list(keys))]
            case 2 if isinstance(changed, list):
                changed.insert(key, value[key])
            case 2:
                changed[chance.choice(["", "x", "version", key + "x"])] = value[key]
            case _:
                changed[key] = _value(value[key], chance, plainly)
        return changed
    if isinstance(value, str) and value and chance.random() < 0.8:
        return _text(value, chance, plainly)
    if isinstance(value, int) and chance.random() < 0.5:
        return value + chance.choice([-1, 1, 256, -value - 1, 1 << chance.randrange(70)])
    return chance.choice(_ODD)
