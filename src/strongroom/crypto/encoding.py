"""Base64 and hexadecimal that have one spelling for each value, so that no changed text passes for the same."""

from __future__ import annotations

import base64


def base64_bytes(text: str) -> bytes:
    """What standard, padded base64 (RFC 4648, section 4) says.

    Raises:
        ValueError: it is not base64, or not in its one spelling: the standard library's decoder forgives stray bits in
            the last character (section 3.5).
    """
    value = base64.b64decode(text, validate=True)  # binascii.Error is a ValueError
    if base64.b64encode(value).decode() != text:
        raise ValueError("stray bits in the last character of base64")
    return value


def hex_bytes(text: str) -> bytes:
    """What lower-case hexadecimal says.

    Raises:
        ValueError: it is not hexadecimal, or has capitals or white space.
    """
    value = bytes.fromhex(text)
    if value.hex() != text:
        raise ValueError("hexadecimal with capitals or white space")
    return value
