"""Going back: what the owners of a policy sign, so that an anchor may leave a root for an older or another one.

Rules:

- An anchor goes back if its new root has another epoch than the one it holds, or does not come after it.
- Nothing goes back without a reason, and no enclave lets anything go back.
- Where the policy has owners, as many of them as sign its versions sign the restore: this CAS, policy and vault, both
  roots, the reason, and the log entry that moved the anchor last. So no signature serves a second time, or elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from strongroom.attest.binding import canonical
from strongroom.cas.policy.grant_files import read_object
from strongroom.cas.policy.owners import Owners, OwnerSignature, read_signatures
from strongroom.cas.policy.version import MAX_PURPOSE
from strongroom.cas.wire import text_field
from strongroom.crypto import Signer
from strongroom.errors import FormatError, UnauthorizedError, VerificationError
from strongroom.sealed import Root

FORMAT = "strongroom/restore/v1"
MAX_REASON = MAX_PURPOSE
_LABEL = b"strongroom/restore/owner/v1\0"


def goes_back(old: Root | None, new: Root) -> bool:
    """Whether a move from one root to another is a restore."""
    return old is not None and (new.epoch != old.epoch or not new.comes_after(old))


def check_reason(text: str) -> str:
    """Raises FormatError unless it is one line of printable text that says something."""
    if not text.strip() or not text.isprintable() or len(text) > MAX_REASON:
        raise FormatError(f"reason: wanted 1 to {MAX_REASON} printable characters in one line")
    return text


@dataclass(frozen=True)
class Restored:
    """An authorised restore, for the log: why, and the fingerprints of the owners who signed it."""

    reason: str
    signed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Restore:
    """One anchor's going back.

    Attributes:
        cas_root: of which CAS, as its root key is named.
        vault: the vault's or sealed file's name in the policy.
        old: what the anchor holds.
        new: what it will hold.
        entry: the number of the log entry that moved it to `old`.
    """

    cas_root: str
    policy: str
    vault: str
    old: Root
    new: Root
    reason: str
    entry: int

    def to_wire(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "cas_root": self.cas_root,
            "policy": self.policy,
            "vault": self.vault,
            "old": str(self.old),
            "new": str(self.new),
            "reason": self.reason,
            "entry": self.entry,
        }

    @classmethod
    def from_wire(cls, wire: object) -> Restore:
        """What `to_wire` gave. Raises FormatError."""
        names = {"format", "cas_root", "policy", "vault", "old", "new", "reason", "entry"}
        if not isinstance(wire, dict) or set(wire) != names or wire["format"] != FORMAT:
            raise FormatError(
                "restore: not a restore's statement of version 1", hint="`cas entrust --restore` writes it"
            )
        if type(wire["entry"]) is not int or not 1 <= wire["entry"] < 1 << 53:
            raise FormatError("restore.entry: wanted a log entry's number")
        return cls(
            cas_root=text_field(wire, "cas_root"),
            policy=text_field(wire, "policy"),
            vault=text_field(wire, "vault"),
            old=Root.parse(text_field(wire, "old")),
            new=Root.parse(text_field(wire, "new")),
            reason=check_reason(text_field(wire, "reason")),
            entry=wire["entry"],
        )

    def signed_bytes(self) -> bytes:
        """What an owner signs: canonical JSON under a label."""
        return _LABEL + canonical(self.to_wire())

    def sign(self, key: Signer) -> OwnerSignature:
        return OwnerSignature(key.public.fingerprint, key.sign(self.signed_bytes()))

    def check_each(self, signatures: Sequence[OwnerSignature], owners: Owners) -> list[str]:
        """Which owners have signed, by name.

        Raises:
            UnauthorizedError: a key is none of an owner's.
            VerificationError: a signature does not match: it is of another restore.
        """
        signed, raw = [], self.signed_bytes()
        for one in signatures:
            name = owners.name_of(one.key)
            if name is None:
                raise UnauthorizedError(
                    f"restore: {one.key} is the key of no owner of {self.policy} now", hint="take that signature out"
                )
            try:
                owners.keys[name].verify(one.signature, raw)
            except VerificationError:
                raise VerificationError(
                    f"restore: {name}'s signature does not match",
                    hint="it is of another vault, root, reason or CAS, or the anchor has moved since: sign this one",
                ) from None
            signed.append(name)
        return signed

    def check(self, signatures: Sequence[OwnerSignature], owners: Owners) -> None:
        """Raises as `check_each`, and UnauthorizedError if too few have signed."""
        signed = self.check_each(signatures, owners)
        if len(set(signed)) < owners.threshold:
            missing = [name for name in owners.keys if name not in signed]
            raise UnauthorizedError(
                f"restore of {self.vault[:80]}: signed by {len(set(signed))} of the {owners.threshold} owners of "
                f"{self.policy} that it takes; not yet: {', '.join(missing)}",
                hint="`strongroom cas entrust --restore` writes what they sign with `strongroom cas sign-restore`",
            )


@dataclass(frozen=True)
class RestoreFile:
    """What owners sign one after the other."""

    restore: Restore
    signatures: tuple[OwnerSignature, ...] = ()

    @classmethod
    def parse(cls, text: str) -> RestoreFile:
        """Raises FormatError."""
        value = read_object(text, "restore")
        if set(value) != {"restore", "signatures"}:
            raise FormatError("restore: wanted an object of exactly restore and signatures")
        return cls(Restore.from_wire(value["restore"]), read_signatures(value["signatures"]))

    def to_text(self) -> str:
        wire = {"restore": self.restore.to_wire(), "signatures": [one.to_wire() for one in self.signatures]}
        return json.dumps(wire, indent=2, ensure_ascii=False) + "\n"

    def signed_by(self, key: Signer) -> RestoreFile:
        """The same with that key's signature, once."""
        if key.public.fingerprint in {one.key for one in self.signatures}:
            return self
        return RestoreFile(self.restore, (*self.signatures, self.restore.sign(key)))
