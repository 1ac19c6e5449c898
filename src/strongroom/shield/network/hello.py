"""The first messages of TLS, which go in clear: what a relay can know of a connection whose keys it has not.

Layouts: RFC 8446, sections 4 and 5.1 (records and handshake messages), 4.1.2, 4.1.3 and 4.2.1 (hellos and versions);
RFC 6066, section 3 (the server's name). Extension 0xfe0d is Encrypted Client Hello, whose outer name says nothing.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from strongroom.errors import ChannelError

MAX_HELLO: Final = 1 << 14
"""Bytes within which a hello has to end; those of clients take hundreds, or some 1,800 with post-quantum keys."""
TLS_1_3: Final = 0x0304
ALERT_SIZE: Final = 7
"""Of its record, level and description included."""
CHANGE_CIPHER: Final = 20
APPLICATION: Final = 23
_ALERT, _HANDSHAKE = 21, 22
HANDSHAKE_BEGINS: Final = bytes([_HANDSHAKE, 3])
_MAX_RECORD: Final = (1 << 14) + 256
_CLIENT, _SERVER = 1, 2
_SERVER_NAME, _VERSIONS, _ENCRYPTED = 0, 43, 0xFE0D
_RETRY: Final = hashlib.sha256(b"HelloRetryRequest").digest()  # RFC 8446, section 4.1.3


@dataclass(frozen=True)
class ClientHello:
    """What a client says first.

    Attributes:
        name: the server's name, in lower case; empty if it names none.
        versions: of TLS that it offers.
        encrypted: whether the real hello may be hidden in this one.
    """

    name: str
    versions: tuple[int, ...]
    encrypted: bool


@dataclass(frozen=True)
class ServerHello:
    """What a server says first.

    Attributes:
        version: the one that it chose.
        retry: whether it asks for another hello (HelloRetryRequest).
    """

    version: int
    retry: bool


def is_handshake(data: bytes) -> bool:
    """Whether bytes begin as TLS does."""
    return data.startswith(HANDSHAKE_BEGINS)


def is_alert(data: bytes) -> bool:
    """Whether they begin as an alert, which ends a handshake."""
    return data[:1] == bytes([_ALERT])


def client_hello(data: bytes) -> ClientHello | None:
    """A client's first message; None while it has not all come.

    Raises:
        ChannelError: ``hello``: these bytes are not TLS, or the message is malformed or too long.
    """
    found = _message(data, _CLIENT)
    if found is None:
        return None
    body, _ = found
    try:
        rest = body[34:]  # version and random
        for width in (1, 2, 1):  # session, cipher suites, compression
            _, rest = _vector(rest, width)
        name, versions, encrypted = "", (), False
        for kind, value in _extensions(rest):
            if kind == _SERVER_NAME:
                name = _server_name(value)
            elif kind == _VERSIONS:
                offered, _ = _vector(value, 1)
                versions = tuple(each for (each,) in struct.iter_unpack(">H", offered))
            elif kind == _ENCRYPTED:
                encrypted = True
    except (struct.error, UnicodeDecodeError, ValueError):
        raise ChannelError("hello") from None
    return ClientHello(name, versions, encrypted)


def server_hello(data: bytes) -> ServerHello | None:
    """A server's first message; None while it has not all come.

    Raises:
        ChannelError: ``hello``: as `client_hello`.
    """
    found = _message(data, _SERVER)
    if found is None:
        return None
    body, _ = found
    retry = body[2:34] == _RETRY
    try:
        (legacy,) = struct.unpack_from(">H", body)
        _, rest = _vector(body[34:], 1)
        for kind, value in _extensions(rest[3:]):  # cipher suite, compression
            if kind == _VERSIONS:
                (chosen,) = struct.unpack(">H", value)
                return ServerHello(int(chosen), retry)
    except (struct.error, ValueError):
        raise ChannelError("hello") from None
    return ServerHello(int(legacy), retry)


def first_size(data: bytes) -> int:
    """Of the records of the first handshake message, which has all come.

    Raises:
        ChannelError: ``hello``: the last of them holds more, as none does before keys change (RFC 8446, section 5.1).
    """
    found = _message(data, data[5])
    if found is None or found[1] is None:
        raise ChannelError("hello")
    return found[1]


def begins_with(data: bytes, kinds: Collection[int]) -> bool:
    """Whether a record of these kinds comes first."""
    return bool(data) and data[0] in kinds


def skipped(data: bytes, kinds: Collection[int]) -> int:
    """Of all records of these kinds that come first, and have come as a whole. Raises ChannelError: ``hello``."""
    at = 0
    while begins_with(data[at : at + 1], kinds) and len(data) >= at + 5:
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if data[at + 1] != 3 or not 0 < length <= _MAX_RECORD:
            raise ChannelError("hello")
        if len(data) < at + 5 + length:
            break
        at += 5 + length
    return at


def _message(data: bytes, wanted: int) -> tuple[bytes, int | None] | None:
    """The body of the first handshake message, of one record or several; None while it has not all come.

    And where its last record ends, if nothing else is in that, and it has all come.
    """
    message, at = b"", 0
    while True:
        if message and message[0] != wanted:
            raise ChannelError("hello")
        if len(message) >= 4:
            size = int.from_bytes(message[1:4], "big")
            if size > MAX_HELLO:
                raise ChannelError("hello")
            if len(message) >= 4 + size:
                return message[4 : 4 + size], at if len(message) == 4 + size and at <= len(data) else None
        header = data[at : at + 5]
        if not bytes([_HANDSHAKE, 3]).startswith(header[:2]) or at > 2 * MAX_HELLO:
            raise ChannelError("hello")
        length = int.from_bytes(header[3:], "big")
        if len(header) == 5 and not 0 < length <= MAX_HELLO:
            raise ChannelError("hello")
        if len(header) < 5 or at + 5 >= len(data):
            return None
        message += data[at + 5 : at + 5 + length]
        at += 5 + length


def _vector(data: bytes, width: int) -> tuple[bytes, bytes]:
    """A vector with a length of that many bytes before it, and what follows. Raises ValueError."""
    size = int.from_bytes(data[:width], "big")
    if len(data) < width + size:
        raise ValueError
    return data[width : width + size], data[width + size :]


def _extensions(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each once. Raises ValueError, struct.error."""
    if not data:
        return
    some, rest = _vector(data, 2)
    if rest:
        raise ValueError
    seen: set[int] = set()
    while some:
        (kind,) = struct.unpack_from(">H", some)
        value, some = _vector(some[2:], 2)
        if kind in seen:
            raise ValueError
        seen.add(kind)
        yield kind, value


def _server_name(value: bytes) -> str:
    """The one name of type host_name. Raises ValueError."""
    names, rest = _vector(value, 2)
    name, more = _vector(names[1:], 2)
    if rest or more or names[:1] != b"\0":
        raise ValueError
    return name.decode("ascii").lower()
