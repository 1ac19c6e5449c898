"""The CAS's own identity: a root key that clients pin, a short-lived leaf under it, and the tokens that leaf signs."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from pathlib import Path

from strongroom.attest.appraise import AttestationResult
from strongroom.attest.dsse import Envelope
from strongroom.attest.result import ResultStatement, sign_result
from strongroom.attest.token import sign_token
from strongroom.cas.files import RESTORE, create_once, replace
from strongroom.cas.log.note import Note, sign_checkpoint
from strongroom.cas.policy.version import Policy
from strongroom.cas.state.trust_disk import TrustDisk
from strongroom.cas.wire import CAS_URI, RESULT_LIFETIME, TIME_TOKEN, b64
from strongroom.channel import Identity
from strongroom.crypto import (
    Certificate,
    CertificateAuthority,
    PublicKey,
    SigningKey,
    derive,
    open_box,
    random_bytes,
    seal_box,
)
from strongroom.errors import FormatError, TamperedError, WrongKeyError
from strongroom.lineage.statement import PAYLOAD_TYPE, Statement
from strongroom.storage import LocalDirectory

# The leaf's key lives as long as the process, so this is also how long a CAS may run without being started anew.
_LEAF_LIFETIME = dt.timedelta(days=365)

AUTHORITY_FILE = "root.key"
_AUTHORITY_MARK = b"strongroom/cas/root-key/v1\n"
_AUTHORITY_LABEL = "strongroom/cas/root-key/v1"
_MAX_AUTHORITY = 1 << 14
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_OF_TWO_LABELS = re.compile(rf"({_LABEL})/({_LABEL})")  # a dot within either would make two policies' names one
# After the certificate, where readers of PEM see nothing: whether the database holds a start mode, and since when.
_CREATED_MARK, _HELD_MARK = b"created with a start mode\n", b"holds a start mode\n"


class Authority:
    """Issues certificates and signs tokens for one CAS.

    Args:
        directory: holds the root key and its certificate in one file of mode 0600, made on first use.
        root_secret: under which that file is sealed. Where it is kept by `trust-disk`, one in plain, of before, is
            replaced by a sealed one; elsewhere it is refused, since anybody could have put it there.
        hosts: DNS names and IP addresses at which the CAS answers.
        unseal: how the root secret is kept from now on, for who asks.
        marked: make a new root key with the mark that this CAS's database holds a start mode from the first.
        new: make a root key where there is none.

    Attributes:
        marked: whether its database held a start mode from the first.
        holds_mode: whether it holds one by now.

    Raises:
        WrongKeyError: the file was sealed under another secret, was changed, is in plain, or is missing.
        FormatError, VerificationError: the file is not one of ours.
    """

    def __init__(
        self,
        directory: Path,
        root_secret: bytes,
        *,
        now: dt.datetime,
        hosts: list[str],
        unseal: str = "trust-disk",
        marked: bool = False,
        new: bool = True,
    ) -> None:
        path = directory / AUTHORITY_FILE
        if not path.exists():
            if not new:
                raise WrongKeyError(f"{path}: is missing, and its database is not a new CAS's", hint=RESTORE)
            _create(path, root_secret, now, marked)
        self._ca, mark = _load(path, root_secret, plain=unseal == TrustDisk.way)
        self.marked, self.holds_mode = mark == _CREATED_MARK, bool(mark)
        self._root_secret, self._path = root_secret, path
        self.unseal = unseal
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

    def mark(self) -> None:
        """Remember, beside the root key and for the instances that get it too, that the database holds a start mode."""
        if not self.holds_mode:
            pem = self._ca.key.pem() + self._ca.certificate.pem() + _HELD_MARK
            replace(self._path, _sealed(derive(self._root_secret, _AUTHORITY_LABEL), pem))
            LocalDirectory(self._path.parent).sync()
            self.holds_mode = True

    def hand_over(self) -> dict[str, str]:
        """The root secret and the sealed root key, for the configuration of another instance of this very CAS."""
        return {"root_secret": b64(self._root_secret), "root_key": b64(self._path.read_bytes())}

    def certify_enclave(self, public: PublicKey, policy: str, *, now: dt.datetime, end: int) -> Certificate:
        """A certificate that names the policy which the key's enclave was appraised under.

        Where no other policy can have it, it has the policy's name in the mesh too, for outsiders' TLS clients.

        Args:
            end: of its validity, in Unix seconds.
        """
        uri = f"spiffe://strongroom/{policy}"
        hosts = ["localhost", "127.0.0.1", "::1"]
        if found := _OF_TWO_LABELS.fullmatch(policy):
            hosts.append(f"{found[2]}.{found[1]}.mesh")
        lifetime = dt.datetime.fromtimestamp(end, dt.UTC) - now
        return self._ca.issue(public, policy, now=now, lifetime=lifetime, uris=[uri], hosts=hosts)

    def time_token(self, *, now: int) -> str:
        """A signed statement of the time: evidence made over it is no older than it."""
        jti = random_bytes(16).hex()
        return sign_token(self.identity.key, TIME_TOKEN, {"iat": now, "exp": now + RESULT_LIFETIME, "jti": jti})

    def result_token(
        self,
        result: AttestationResult,
        policy: Policy,
        *,
        fresh: bytes,
        claims: str,
        lifetime: int = RESULT_LIFETIME,
    ) -> str:
        """A signed attestation result, for whoever has pinned the root key.

        Args:
            policy: what it was appraised under.
            fresh: what the evidence was bound to.
            claims: the SHA-256 of the claims that it was bound to, in hexadecimal digits.
            lifetime: seconds for which it stands.
        """
        statement = ResultStatement.of(
            result,
            issuer=self.cas_root,
            policy=policy.name,
            policy_digest=policy.digest,
            fresh=fresh,
            claims=claims,
            lifetime=lifetime,
        )
        return sign_result(statement, self.identity.key)

    def sign_head(self, size: int, root: bytes, extension: Sequence[str] = ()) -> Note:
        """The log's head as a checkpoint, for whoever has pinned the root key."""
        return sign_checkpoint(size, root, self._ca.key, extension)

    def sign_lineage(self, statement: Statement) -> Envelope:
        """A signed statement of where an output comes from, for whoever has pinned the root key."""
        return Envelope.sign(self.identity.key, self.chain, PAYLOAD_TYPE, statement.to_bytes())


def _create(path: Path, root_secret: bytes, now: dt.datetime, marked: bool) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = CertificateAuthority.create("Strongroom CAS root", now=now)
    # One file: a key without its certificate, or with another's, would be an identity that nobody can use.
    pem = authority.key.pem() + authority.certificate.pem()
    create_once(path, _sealed(derive(root_secret, _AUTHORITY_LABEL), pem + (_CREATED_MARK if marked else b"")))


def _load(path: Path, root_secret: bytes, *, plain: bool) -> tuple[CertificateAuthority, bytes]:
    key = derive(root_secret, _AUTHORITY_LABEL)
    with path.open("rb") as file:
        content = file.read(_MAX_AUTHORITY + 1)
    if content.startswith(b"-----BEGIN "):
        if not plain:
            raise WrongKeyError(f"{path}: is in plain, as whoever has the disk could have put it there", hint=RESTORE)
        pem = content
        authority = CertificateAuthority(SigningKey.from_pem(pem), Certificate.from_pem(pem))
        # The name goes from the one in plain to the one that is sealed and durable, with nothing in between. What a
        # disk keeps of the blocks of the one in plain is its own affair.
        replace(path, _sealed(key, pem))
        LocalDirectory(path.parent).sync()
        return authority, b""
    if not content.startswith(_AUTHORITY_MARK) or len(content) > _MAX_AUTHORITY:
        raise FormatError(f"{path}: not the sealed key of a CAS", hint=RESTORE)
    try:
        pem = open_box(key, content.removeprefix(_AUTHORITY_MARK), _AUTHORITY_MARK)
    except TamperedError:
        raise WrongKeyError(f"{path}: is sealed under another root secret, or was changed", hint=RESTORE) from None
    mark = next((mark for mark in (_CREATED_MARK, _HELD_MARK) if pem.endswith(mark)), b"")
    return CertificateAuthority(SigningKey.from_pem(pem), Certificate.from_pem(pem)), mark


def _sealed(key: bytes, pem: bytes) -> bytes:
    return _AUTHORITY_MARK + seal_box(key, pem, _AUTHORITY_MARK)
