"""How a policy's versions follow each other, and what vouches for each (docs/spec/cas.md).

Rules:

- Version n+1 names the digest of version n. Its owner signs it, whom `policy.owner` names, or an administrator who has
  the right ``apply`` in both versions.
- Where version n or n+1 has owners (`[owners]`), enough of each version's owners sign version n+1.
- Without owners before, `policy.owner` stays the same, and an administrator's version leaves `[owners]` and
  `[[administrators]]` as they are: nobody gives himself a right. Owners may change all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strongroom.cas.policy.owners import OwnerSignature, check_signatures, read_signatures
from strongroom.cas.policy.version import Policy, parse_policy, verify_policy
from strongroom.cas.wire import b64, bytes_field, text_field
from strongroom.crypto import PublicKey
from strongroom.errors import (
    ConflictError,
    FormatError,
    PolicyError,
    RollbackError,
    StrongroomError,
    UnauthorizedError,
    VerificationError,
)


@dataclass(frozen=True)
class SignedPolicy:
    """A version with what vouches for it: its administrator's signature, and its owners'."""

    policy: Policy
    signature: bytes
    owner: PublicKey
    signatures: tuple[OwnerSignature, ...] = ()

    @classmethod
    def from_wire(cls, wire: object, *, parse: Callable[[str], Policy] = parse_policy) -> SignedPolicy:
        """Raises FormatError or PolicyError."""
        if not isinstance(wire, Mapping):
            raise FormatError("version: wanted an object")
        return cls(
            parse(text_field(wire, "text")),
            bytes_field(wire, "signature"),
            PublicKey(bytes_field(wire, "owner")),
            read_signatures(wire.get("signatures")),
        )

    def to_wire(self) -> dict[str, Any]:
        return {
            "text": self.policy.text,
            "signature": b64(self.signature),
            "owner": b64(self.owner.spki),
            "signatures": [one.to_wire() for one in self.signatures],
        }

    @property
    def summary(self) -> dict[str, object]:
        """What the audit log says of it: version and digest, and who signed it where it has owners."""
        said: dict[str, object] = {"version": self.policy.version, "digest": self.policy.digest}
        if not self.by_owner:
            said["by"] = self.owner.fingerprint
        return said | ({"signed": [one.key for one in self.signatures]} if self.signatures else {})

    @property
    def by_owner(self) -> bool:
        """Whether the key that it came with is the owner's."""
        return self.owner.fingerprint == self.policy.owner

    @property
    def by_administrator(self) -> bool:
        """Whether that key is an administrator's who may apply, as this version has it; the one before must too."""
        return not self.by_owner and _applies(self.policy, self.owner.fingerprint)

    def check_signature(self) -> None:
        """Raises VerificationError unless the key shown with it signed it, whosever that is."""
        verify_policy(self.policy.text, self.signature, self.owner)

    def check_administrator(self, current: Policy | None, wrong: type[StrongroomError] = UnauthorizedError) -> None:
        """Check that its owner signed it, or an administrator who may, in this version and in the one before.

        Args:
            current: the version before; None if there is none or it is not known, and then only the owner may.

        Raises:
            VerificationError: its signature does not match the key.
            StrongroomError: `wrong`, if the key is another's.
        """
        signer = self.owner.fingerprint
        before = current is not None and _applies(current, signer)
        if not (self.by_owner or (before and self.by_administrator)):
            raise wrong(
                f"policy.owner: got {self.policy.owner}, the key that signed it is {signer}",
                hint="sign it with the key that it names, or with one whose [[administrators]] may apply, in the "
                "version before too",
            )
        self.check_signature()

    def check_own(self) -> None:
        """Check what can be checked without the version before: its owner's signature, and this version's own owners.

        Signatures of owners that only the version before has are not looked at.

        Raises:
            VerificationError, UnauthorizedError, FormatError.
        """
        policy = self.policy
        self.check_administrator(None, VerificationError)
        owners = policy.owners
        mine = [one for one in self.signatures if owners is not None and owners.name_of(one.key) is not None]
        self._check_owners(mine, None)

    def check_after(self, current: Policy | None) -> None:
        """Check that this version may follow `current` (None: that it may be the first), and is signed for it.

        Raises:
            RollbackError, ConflictError, PolicyError: as `check_succession`.
            UnauthorizedError: signed by somebody else than its owner or an administrator who may, by an administrator
                who changes who may what, or by too few owners.
            VerificationError: a signature does not match.
            FormatError: a key has signed twice.
        """
        self.check_administrator(current)
        check_succession(self.policy, current)
        if not self.by_owner and current is not None and current.owners is None:
            for key in ("owners", "administrators"):
                if getattr(self.policy, key) != getattr(current, key):
                    raise UnauthorizedError(
                        f"{key}: are other ones than in version {current.version}, and an administrator signed, "
                        f"{self.owner.fingerprint}",
                        hint="who may what is changed by the key that policy.owner names, or by owners together",
                    )
        self._check_owners(self.signatures, current)

    def _check_owners(self, signatures: Sequence[OwnerSignature], current: Policy | None) -> None:
        policy = self.policy
        check_signatures(
            signatures,
            name=policy.name,
            version=policy.version,
            digest=policy.digest,
            owners=policy.owners,
            before=None if current is None else current.owners,
        )


def _applies(policy: Policy, key: str) -> bool:
    return any(each.key == key and each.allows("apply") for each in policy.administrators)


def check_succession(new: Policy, current: Policy | None) -> None:
    """Check that `new` may follow `current` (None: that it may be the first version), its signatures apart.

    Raises:
        RollbackError: its version is older.
        ConflictError: its version is the current one, and its content another: somebody else was first.
        PolicyError: a version is left out, or its previous digest is another.
        UnauthorizedError: it names another administrator than a version without owners.
    """
    version, previous = (0, "") if current is None else (current.version, current.digest)
    if new.version < version:
        raise RollbackError(
            f"policy.version: got {new.version}, and {version} is the newest",
            hint=f"to go back, apply the old content as version {version + 1}",
        )
    if current is not None and new.version == version:
        raise ConflictError(
            f"policy.version: got {version} with {new.digest}, and another document is version {version}: {previous}",
            hint="somebody else was first: read theirs, and follow it with the next version",
        )
    if new.version > version + 1:
        raise PolicyError(f"policy.version: got {new.version}, wanted {version + 1}", hint="no version may be left out")
    if new.previous != previous:
        raise PolicyError(
            f"policy.previous: got {new.previous or 'none'}, wanted {previous or 'none'}",
            hint="it is the digest of the version before, which `strongroom cas show --json` prints",
        )
    if current is not None and current.owners is None and new.owner != current.owner:
        raise UnauthorizedError(
            f"policy.owner: got {new.owner}, wanted {current.owner}",
            hint="only a version signed by the owners of the one before may name another; or store it by another name",
        )


def verify_chain(name: str, versions: Sequence[SignedPolicy], *, pinned: str | None = None) -> tuple[SignedPolicy, ...]:
    """Check a policy's versions one after the other; the newest is last.

    Nothing here tells that there is no newer one: that is the CAS's word, or the digest that another has seen.

    Args:
        versions: from the first on, without gaps.
        pinned: the digest of a version that is trusted already. What precedes it is not looked at; without it the
            first version is trusted as it is, so compare its digest with what its owners say.

    Raises:
        RollbackError: the pinned version is not among them: they end before it, or are another history.
        VerificationError, UnauthorizedError, ConflictError, PolicyError: a version does not follow.
    """
    start = 0
    if pinned is not None:
        found = next((i for i, each in enumerate(versions) if each.policy.digest == pinned), None)
        if found is None:
            newest = versions[-1].policy.version if versions else 0
            raise RollbackError(
                f"versions of {name}: {pinned} is not among them, and they end with version {newest}",
                hint="what is shown is older than what was pinned, or another history: ask the owners which is theirs",
            )
        start = found
    if not versions:
        raise PolicyError(f"versions of {name}: there are none")
    current: Policy | None = None
    for position, each in enumerate(versions[start:]):
        if each.policy.name != name:
            raise PolicyError(f"policy.name: got {each.policy.name}, wanted {name}")
        if position or pinned is None:
            each.check_after(current)
        current = each.policy
    return tuple(versions[start:])
