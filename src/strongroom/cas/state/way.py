"""What the ways of keeping a root secret have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from strongroom.crypto import KEY_SIZE, derive, equal, open_box, seal_box
from strongroom.errors import FormatError, TamperedError, WrongKeyError

SECRET_SIZE = KEY_SIZE
Record = Mapping[str, Any]
"""What a way writes down in `unseal.json`, as JSON; the file's `unseal` is the way's name."""


class Unsealer(Protocol):
    """A way of keeping a root secret, on this machine or by others."""

    way: ClassVar[str]
    """Its name, as `--unseal` has it."""

    creates: ClassVar[bool]
    """Whether a new CAS may begin with it: False where the secret must be somebody else's already."""

    def keep(self, secret: bytes) -> Record:
        """Keep it durably, and say what must be written down to find it again.

        What this does takes effect with the record: without it, it leaves nothing that anybody could use.
        """

    def recover(self, record: Record) -> bytes:
        """The secret that was kept.

        Raises:
            StrongroomError: it cannot be had; the class says why.
        """


def seal_under(key: bytes, secret: bytes, way: str) -> str:
    """The secret in a box, as a record has it: under a key that the platform gives to nobody else."""
    return seal_box(derive(key, _label(way)), secret, _label(way).encode()).hex()


def open_under(key: bytes, box: str, way: str, *, hint: str) -> bytes:
    """What `seal_under` sealed.

    Raises:
        WrongKeyError: under another key, or the box was changed.
    """
    try:
        return open_box(derive(key, _label(way)), bytes.fromhex(box), _label(way).encode())
    except TamperedError:
        raise WrongKeyError(f"unseal.json: the key of {way} does not open it", hint=hint) from None


def _label(way: str) -> str:
    return f"strongroom/cas/unseal/{way}/v1"


def check_value(secret: bytes) -> str:
    """Hexadecimal digits that tell a root secret from others, and say nothing of it."""
    return derive(secret, "strongroom/cas/root-check/v1", length=16).hex()


def check_secret(secret: bytes, record: Record) -> bytes:
    """`secret`, if the record was made of it. Raises WrongKeyError."""
    if len(secret) != SECRET_SIZE or not equal(check_value(secret).encode(), text(record, "check").encode()):
        raise WrongKeyError(
            "root secret: another one than unseal.json was made of",
            hint="unseal.json is not this CAS's, or was changed; restore the CAS's directory from a copy",
        )
    return secret


def text(record: Record, name: str) -> str:
    """Raises FormatError unless the record has a string of that name."""
    value = record.get(name)
    if not isinstance(value, str) or not value.isascii():
        raise FormatError(f"unseal.json: {name}: got {type(value).__name__}, wanted a string")
    return value


def octets(record: Record, name: str) -> bytes:
    """Raises FormatError unless the record has hexadecimal digits of that name."""
    try:
        return bytes.fromhex(text(record, name))
    except ValueError:
        raise FormatError(f"unseal.json: {name}: not hexadecimal digits") from None
