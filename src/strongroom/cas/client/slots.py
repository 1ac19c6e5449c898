"""The CAS as the keeper of a vault's key slot: it holds the slot's key, and forgets it when the slot goes.

`CasSlot` is a key source as `vault.open` takes one (`strongroom.vault.keys.KeySource`); the vault knows nothing of a
CAS. The slot's data names the policy and the slot, and neither the CAS nor whom it believes: those the caller has.

::

    data, key = keep_slot(client, "acme/train")
    ring.add(vault_key, SourceKey(SCHEME, data, key), label="cas", now=now)
    ...
    vault.open(path, key=CasSlot(client, "acme/train"), anchor=anchor)
"""

from __future__ import annotations

from typing import Final, Protocol

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.wire import SLOT_NAME
from strongroom.crypto import random_bytes, random_key
from strongroom.errors import FormatError, WrongKeyError

SCHEME: Final = "cas"


class SlotKeeper(Protocol):
    """An administrator's or an attested enclave's way to a CAS: an `OwnerClient` or an `EnclaveSession`."""

    def slot_key(self, policy: str, slot: str) -> bytes | None: ...


class CasSlot:
    """Opens the slots whose keys a CAS keeps under one policy.

    Args:
        keeper: asks that CAS, as somebody who may.
        policy: the only one whose slots it asks for, whatever a vault's `keys` file says.
    """

    scheme: Final = SCHEME

    def __init__(self, keeper: SlotKeeper, policy: str) -> None:
        self._keeper, self._policy = keeper, policy

    def unwrap(self, data: bytes) -> bytes:
        """The slot's key.

        Raises:
            WrongKeyError: the slot is another policy's, or the CAS has forgotten its key.
            StrongroomError: the CAS refused, or could not be reached.
        """
        try:
            policy, slot = slot_of(data)
        except FormatError as error:
            raise WrongKeyError(f"key slot: {error.message}") from None
        key = self._keeper.slot_key(policy, slot) if policy == self._policy else None
        if key is None:
            raise WrongKeyError(f"key slot: the CAS keeps no such key for {self._policy}")
        return key

    def __repr__(self) -> str:
        return f"CasSlot({self._policy})"


def keep_slot(client: OwnerClient, policy: str) -> tuple[bytes, bytes]:
    """Have the CAS keep a new slot's key; the slot's data, and the key to make the slot with.

    Raises:
        UnauthorizedError: the caller may not store secrets of that policy.
    """
    name, key = random_bytes(16).hex(), random_key()
    client.put_slot_key(policy, name, key)
    return canonical({"policy": policy, "slot": name}), key


def slot_of(data: bytes) -> tuple[str, str]:
    """The policy and the name in a slot's data. Raises FormatError."""
    value = parse_canonical(data)
    policy, slot = value.get("policy"), value.get("slot")
    if set(value) != {"policy", "slot"} or not isinstance(policy, str) or not isinstance(slot, str):
        raise FormatError("data: wanted exactly a policy and a slot")
    if not SLOT_NAME.fullmatch(slot):
        raise FormatError("data.slot: wanted 32 hexadecimal digits")
    return policy, slot
