"""Walk a model back: from its bytes to the statement, its signer, the policy, the enclave and the data.

Two verbs, as for evidence: `verify_lineage` checks what nobody has to judge, and gives a `Lineage`; its methods compare
that with what the caller wants. Pure: no clock, no network, no file. The order of the steps is part of the contract.

1. The envelope parses, and its leaf signed the payload as an in-toto statement.
2. The statement is one of ours.
3. The leaf is a CAS's, issued by the root key that the caller pinned; both were valid when the statement was signed.
4. The statement names that CAS, and the enclave was launched for it and for the policy that it names.
5. Its subject is the content at hand, by both digests.
6. A simulated enclave counts only under the vendor root that the caller named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from strongroom.attest.dsse import Envelope
from strongroom.attest.issuer import issuer_key
from strongroom.crypto import ContentDigest
from strongroom.errors import (
    AttestationError,
    BindingError,
    MeasurementError,
    SimulatedEnclaveError,
    StrongroomError,
    TamperedError,
    VerificationError,
)
from strongroom.lineage.statement import PAYLOAD_TYPE, DataSet, Endorsement, Output, Run, Statement
from strongroom.lineage.tree import Tree

_ISSUED_BY_VERIFY = object()


@dataclass(frozen=True)
class Lineage:
    """Where some content comes from, as a CAS that the caller trusts has said. Only `verify_lineage` makes one."""

    output: Output
    run: Run
    by: Endorsement
    _token: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._token is not _ISSUED_BY_VERIFY:
            raise TypeError("Lineage: only verify_lineage makes one")

    def require_policy(self, names: Collection[str], *, digest: str | None = None) -> None:
        """The policy is one of these and, with `digest`, in exactly that version.

        Raises:
            BindingError: it is another.
        """
        if self.by.policy not in names:
            raise BindingError(
                f"lineage: policy {self.by.policy}, wanted {' or '.join(sorted(names)) or 'one, but none is named'}",
                hint="it was trained under another policy than the one meant",
            )
        if digest is not None and self.by.policy_digest != digest:
            raise BindingError(
                f"lineage: policy {self.by.policy} version {self.by.policy_version}, {self.by.policy_digest}, "
                f"wanted {digest}",
                hint="it was trained under another version of the policy",
            )

    def require_measurement(self, measurements: Collection[str]) -> None:
        """Raises MeasurementError unless the program's measurement is one of these."""
        if self.by.measurement not in measurements:
            raise MeasurementError(
                f"lineage: measurement {self.by.measurement}, wanted {' or '.join(sorted(measurements)) or 'none'}",
                hint="another program, configuration or version wrote it",
            )

    def require_data(self, tree: Tree, what: str, *, name: str | None = None) -> DataSet:
        """The data set that the run read with exactly this content.

        Args:
            name: which one it must be; by default one that the run could only read, so that what lay in an output vault
                before, most often nothing, stands for no data.

        Raises:
            TamperedError: it read none of that content.
        """
        meant = [one for one in self.run.data if (one.access == "read-only" if name is None else one.name == name)]
        for one in meant:
            if one.tree == tree.digest.hex():
                return one
        stated = ", ".join(f"{one.name} {one.tree[:16]}..." for one in meant) or f"no {name or 'read-only data'}"
        raise TamperedError(
            f"data: {what} holds {tree.digest.hex()[:16]}..., the lineage names {stated}",
            hint="the model was made from other data, or the data has changed since",
        )


def verify_lineage(raw: bytes, content: ContentDigest, *, cas_root: str, allow_simulated: str | None = None) -> Lineage:
    """Decide whether a CAS said where `content` comes from.

    Args:
        raw: the file with the statement.
        content: the digests of the output, SHA-256 included, computed by the caller from the bytes it will use.
        cas_root: ``sha256:<hex>``, the fingerprint of the root key of the CAS to believe.
        allow_simulated: ``sha256:<hex>`` of the one simulated vendor root to accept. A simulated enclave protects
            nothing against its machine's owner.

    Raises:
        VerificationError, ExpiredError: steps 1 to 4.
        TamperedError: step 5.
        SimulatedEnclaveError: step 6.
    """
    with _only_attestation_errors():
        # 1
        envelope = Envelope.parse(raw)
        payload = envelope.verify(envelope.chain[0].key, PAYLOAD_TYPE)
        # 2
        statement = Statement.parse(payload)
        by, boot = statement.endorsement, statement.run.boot
        # 3
        issuer_key(envelope.chain, cas_root, now=by.signed)
        # 4
        for name, got, wanted in (
            ("CAS", by.cas_root, cas_root),
            ("boot.cas_root", boot.get("cas_root"), cas_root),
            ("boot.policy", boot.get("policy"), by.policy),
        ):
            if got != wanted:
                raise VerificationError(f"lineage: {name} is {got!r:.100}, wanted {wanted}")
    # 5
    output = statement.output
    for name, digest, stated in (
        ("sha256", content.sha256.hex(), output.sha256),
        ("blake3", content.blake3.hex(), output.blake3),
    ):
        if digest != stated:
            raise TamperedError(
                f"{output.name}: {name} is {digest or 'missing'}, its lineage says {stated}",
                hint="it was changed after the run, or the lineage is another file's",
            )
    # 6
    if by.tee == "simulated" and by.vendor_root != allow_simulated:
        raise SimulatedEnclaveError(
            f"lineage: of a simulated enclave, vendor root {by.vendor_root}, "
            f"wanted {allow_simulated or 'no simulated enclave'}",
            hint="its machine's owner could have made it up; name that vendor root to accept it all the same",
        )
    return Lineage(output, statement.run, by, _ISSUED_BY_VERIFY)


@contextmanager
def _only_attestation_errors() -> Iterator[None]:
    """What does not parse does not convince."""
    try:
        yield
    except AttestationError:
        raise
    except StrongroomError as error:
        raise VerificationError(f"lineage: {error.message}", hint=error.hint) from error
