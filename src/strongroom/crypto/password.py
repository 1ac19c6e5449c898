"""Keys from passwords: Argon2id (RFC 9106), within bounds.

What a password costs to try is written beside what it protects, where an attacker may change it. So every cost here
lies between a floor, below which guessing would be cheap, and a ceiling, above which opening would exhaust the machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from strongroom.crypto.aead import KEY_SIZE
from strongroom.errors import MissingDependencyError, UsageError

SALT_SIZE: Final = 16
_MIN_SALT = 8
MIN_MEMORY: Final = 19 << 10  # KiB; with two passes the least that OWASP's password storage cheat sheet advises
MAX_MEMORY: Final = 1 << 20  # KiB
MIN_PASSES: Final = 2
MAX_PASSES: Final = 16
MAX_LANES: Final = 16
MAX_WORK: Final = 4 << 20  # KiB times passes: some seconds on one core


@dataclass(frozen=True, slots=True)
class PasswordCost:
    """The parameters of Argon2id. The default is RFC 9106's second recommended option, a fifth of a second or so.

    Attributes:
        memory: in KiB, 19 MiB to 1 GiB; `memory` times `passes` at most 4 GiB.
        passes: over that memory, 2 to 16.
        lanes: parallel ones, 1 to 16.

    Raises:
        UsageError: a parameter is out of these bounds.
    """

    memory: int = 64 << 10
    passes: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("memory", self.memory, MIN_MEMORY, MAX_MEMORY),
            ("passes", self.passes, MIN_PASSES, MAX_PASSES),
            ("lanes", self.lanes, 1, MAX_LANES),
        ):
            if not least <= value <= most:
                raise UsageError(f"Argon2id {name}: {value}, wanted {least} to {most}")
        if self.work > MAX_WORK:
            raise UsageError(f"Argon2id memory times passes: {self.work}, wanted at most {MAX_WORK}")

    @property
    def work(self) -> int:
        """KiB times passes: what a derivation takes grows with it."""
        return self.memory * self.passes


DEFAULT_COST: Final = PasswordCost()


def password_key(password: bytes, salt: bytes, cost: PasswordCost) -> bytes:
    """The 32-byte Argon2id tag of `password`, version 0x13, with neither a secret value nor associated data.

    Args:
        salt: `SALT_SIZE` random bytes; RFC 9106 allows 8 or more.

    Raises:
        MissingDependencyError: the installed `cryptography` was built on an OpenSSL without Argon2id.
    """
    if len(salt) < _MIN_SALT:
        raise ValueError(f"salt: {len(salt)} bytes, wanted {SALT_SIZE}")
    try:
        kdf = Argon2id(salt=salt, length=KEY_SIZE, iterations=cost.passes, lanes=cost.lanes, memory_cost=cost.memory)
    except UnsupportedAlgorithm:
        raise MissingDependencyError(
            "passphrase: this build of python package cryptography has no Argon2id",
            hint="pip install --force-reinstall --only-binary :all: cryptography",
        ) from None
    return kdf.derive(password)
