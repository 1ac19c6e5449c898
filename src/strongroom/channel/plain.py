"""The head of a request and of the usual answer, HTTP/1.1 (RFC 9112), without a protocol's whole state machine.

Almost every answer of ours has a Content-Length and nothing that bears on framing besides. `read_head` knows that form
alone, by regular expressions over bytes; whatever else it meets is for h11 to judge, from its first byte on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from strongroom.errors import UsageError

MAX_HEAD = 1 << 14  # as h11's

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # RFC 9110, section 5.6.2
_NAME = re.compile(_TOKEN)
_TARGET = re.compile(r"[\x21-\x7e]+")
_VALUE = re.compile(r"[\x20-\x7e\t]*")
_STATUS = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) [\x20-\x7e]*")
_LINE = re.compile(rb"(" + _TOKEN.encode() + rb"):[ \t]*([\x21-\x7e]+(?:[ \t]+[\x21-\x7e]+)*)?[ \t]*")
_LENGTH = re.compile(rb"[0-9]{1,12}")
_NO_BODY = (204, 205, 304)
_FRAMING = {b"transfer-encoding", b"connection", b"upgrade", b"trailer"}


@dataclass(frozen=True)
class Head:
    """An answer's status and headers, their names in lower case; `length` bytes of body follow, and then the next."""

    status: int
    headers: Mapping[str, str]
    length: int


def request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """The bytes before a request's body.

    Raises:
        UsageError: something in it would not stay in its place.
    """
    if not _NAME.fullmatch(method) or not _TARGET.fullmatch(target):
        raise UsageError(
            f"request: got {method[:20]!r} of {target[:200]!r}, wanted a method and a path in printable ASCII"
        )
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise UsageError(f"header {name[:40]!r}: wanted printable ASCII on one line")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode("ascii")


def read_head(head: bytes) -> Head | None:
    """An answer's head, up to its empty line; None if it is of any but the usual form."""
    first, *lines = head.split(b"\r\n")
    status = _STATUS.fullmatch(first)
    if status is None or int(status[1]) in _NO_BODY or len(head) > MAX_HEAD:
        return None
    found: dict[bytes, bytes] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        name = match[1].lower() if match else b""
        if match is None or name in found or name in _FRAMING:
            return None
        found[name] = match[2] or b""
    length = found.get(b"content-length", b"")
    if not _LENGTH.fullmatch(length):
        return None
    return Head(int(status[1]), {name.decode(): value.decode() for name, value in found.items()}, int(length))
