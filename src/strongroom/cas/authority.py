"""The CAS's own identity: a root key that clients pin, a short-lived leaf under it, and the tokens that leaf signs."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from strongroom.attest.appraise import AttestationResult
from strongroom.attest.dsse import Envelope
from strongroom.attest.result import ResultStatement, sign_result
from strongroom.attest.token import sign_token
from strongroom.cas.files import create_once
from strongroom.cas.log_note import Note, sign_checkpoint
from strongroom.cas.policy import Policy
from strongroom.cas.wire import CAS_URI, RESULT_LIFETIME, TIME_TOKEN
from strongroom.channel import Identity
from strongroom.crypto import Certificate, CertificateAuthority, PublicKey, SigningKey, random_bytes
from strongroom.lineage.statement import PAYLOAD_TYPE, Statement

# The leaf's key lives as long as the process, so this is also how long a CAS may run without being started anew.
_LEAF_LIFETIME = dt.timedelta(days=365)
_ENCLAVE_LIFETIME = dt.timedelta(hours=1)


class Authority:
    """Issues certificates and signs tokens for one CAS.

    Args:
        directory: holds the root key and its certificate in one file of mode 0600, made on first use.
        hosts: DNS names and IP addresses at which the CAS answers.

    Raises:
        FormatError, VerificationError: the file is not one of ours.
    """

    def __init__(self, directory: Path, *, now: dt.datetime, hosts: list[str]) -> None:
        self._ca = _load_or_create(directory, now)
        key = SigningKey.generate()
        leaf = self._ca.issue(
            key.public, "Strongroom CAS", now=now, lifetime=_LEAF_LIFETIME, uris=[CAS_URI], hosts=hosts
        )
        self.identity = Identity(key, (leaf, self._ca.certificate))

    @property
    def cas_root(self) -> str:
        """The fingerprint of the root key: the name by which everybody knows this CAS."""
        return self._ca.key.public.fingerprint

    @property
    def root_key(self) -> PublicKey:
        """The root key, which signs the heads of the log too."""
        return self._ca.key.public

    @property
    def chain(self) -> tuple[Certificate, ...]:
        return self.identity.chain

    def certify_enclave(self, public: PublicKey, policy: str, *, now: dt.datetime) -> Certificate:
        """A certificate that names the policy which the key's enclave was appraised under."""
        uri = f"spiffe://strongroom/{policy}"
        hosts = ["localhost", "127.0.0.1", "::1"]
        return self._ca.issue(public, policy, now=now, lifetime=_ENCLAVE_LIFETIME, uris=[uri], hosts=hosts)

    def time_token(self, *, now: int) -> str:
        """A signed statement of the time: evidence made over it is no older than it."""
        jti = random_bytes(16).hex()
        return sign_token(self.identity.key, TIME_TOKEN, {"iat": now, "exp": now + RESULT_LIFETIME, "jti": jti})

    def result_token(self, result: AttestationResult, policy: Policy, *, fresh: bytes, claims: str) -> str:
        """A signed attestation result, for whoever has pinned the root key.

        Args:
            policy: what it was appraised under.
            fresh: what the evidence was bound to.
            claims: the SHA-256 of the claims that it was bound to, in hexadecimal digits.
        """
        statement = ResultStatement.of(
            result,
            issuer=self.cas_root,
            policy=policy.name,
            policy_digest=policy.digest,
            fresh=fresh,
            claims=claims,
            lifetime=RESULT_LIFETIME,
        )
        return sign_result(statement, self.identity.key)

    def sign_head(self, size: int, root: bytes) -> Note:
        """The log's head as a checkpoint, for whoever has pinned the root key."""
        return sign_checkpoint(size, root, self._ca.key)

    def sign_lineage(self, statement: Statement) -> Envelope:
        """A signed statement of where an output comes from, for whoever has pinned the root key."""
        return Envelope.sign(self.identity.key, self.chain, PAYLOAD_TYPE, statement.to_bytes())


def _load_or_create(directory: Path, now: dt.datetime) -> CertificateAuthority:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "root.key"
    if not path.exists():
        authority = CertificateAuthority.create("Strongroom CAS root", now=now)
        # One file: a key without its certificate, or with another's, would be an identity that nobody can use.
        create_once(path, authority.key.pem() + authority.certificate.pem())
    pem = path.read_bytes()
    return CertificateAuthority(SigningKey.from_pem(pem), Certificate.from_pem(pem))
