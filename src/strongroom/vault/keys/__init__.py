"""The key slots of a vault: one random vault key, wrapped for each of its holders.

::

    ring = KeyRing.create(vault_key, KeyFile.load("me.key"), label="me", now=now)
    ring.add(vault_key, Passphrase(read_passphrase("new passphrase: ", confirm=True)), label="recovery", now=now)
    ring.save(directory)
    ...
    vault_key = KeyRing.load(directory).unlock(Passphrase(read_passphrase("passphrase: ")))

Holders come and go without any data being encrypted again. So a holder who goes keeps what they had: the vault key, if
they ever took it, and an old copy of the `keys` file, which works for them still. Only a new vault key, and the data
encrypted anew, revokes. The format, and what it does not protect, is specified in docs/spec/vault-keys.md.
"""

from strongroom.crypto.password import DEFAULT_COST, PasswordCost
from strongroom.vault.keys.ask import read_passphrase
from strongroom.vault.keys.holders import (
    AgeIdentity,
    AgeRecipient,
    Holder,
    KeyFile,
    KeySource,
    Passphrase,
    Secret,
    SourceKey,
)
from strongroom.vault.keys.ring import KEYS, KeyRing, SlotInfo

__all__ = [
    "DEFAULT_COST",
    "KEYS",
    "AgeIdentity",
    "AgeRecipient",
    "Holder",
    "KeyFile",
    "KeyRing",
    "KeySource",
    "Passphrase",
    "PasswordCost",
    "Secret",
    "SlotInfo",
    "SourceKey",
    "read_passphrase",
]
