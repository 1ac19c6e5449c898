"""The root secret from an instance of the CAS that runs: it gives it to whom `strongroom/cas` accepts.

A new instance attests, kind 1, under that policy, whose owners approved its measurement; the configuration that it
receives, sealed to the HPKE key in its claims, holds the root secret and the sealed key of the CA. So a new version of
the CAS's program takes over from the old one when enough owners have signed a version of the policy that names it, and
nobody carries a secret from one to the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from strongroom.attest.attester import Attester
from strongroom.cas.client.address import dial_cas, split_address
from strongroom.cas.client.enclave import EnclaveSession
from strongroom.cas.files import create_once
from strongroom.cas.start.authority import AUTHORITY_FILE
from strongroom.cas.start.mode import RESERVED
from strongroom.cas.start.reserved import CAS_ROLE
from strongroom.cas.state.way import SECRET_SIZE, Record
from strongroom.errors import CasError, UsageError


class Peer:
    """Another instance of the same CAS, which must run at each start.

    Args:
        directory: the new instance's; the sealed key of the CA is put there if it has none.
        url, cas_root: the instance; None takes those that the record says.
        attester: makes this instance's evidence; None where it has none, which is refused.
        clock: seconds since 1970.
    """

    way: ClassVar[str] = "peer"
    creates: ClassVar[bool] = False

    def __init__(
        self,
        directory: Path,
        url: str | None,
        cas_root: str | None,
        *,
        attester: Attester | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directory, self._url, self._cas_root = directory, url, cas_root
        self._attester, self._clock = attester, clock

    def keep(self, secret: bytes) -> Record:
        """Only where it comes from: `secret` is the one that it gave."""
        del secret
        return {"peer": self._url, "cas_root": self._cas_root}

    def recover(self, record: Record) -> bytes:
        url, cas_root = self._url or record.get("peer"), self._cas_root or record.get("cas_root")
        if not isinstance(url, str) or not isinstance(cas_root, str):
            raise UsageError("unseal peer: which?", hint="--peer https://HOST:PORT --cas-root sha256:...")
        if self._attester is None:
            raise UsageError(
                "unseal peer: this CAS has no evidence to show",
                hint="--evidence here, in an enclave, or simulated; or unseal it in another way",
            )
        self._url, self._cas_root = url, cas_root
        host, port = split_address(url)
        session = EnclaveSession(
            lambda: dial_cas(host, port),
            cas_root=cas_root,
            policy=RESERVED,
            role=CAS_ROLE,
            attester=self._attester,
            clock=self._clock,
        )
        try:
            given = session.attest()
        finally:
            session.close()
        if len(given.root_secret) != SECRET_SIZE or not given.root_key:
            raise CasError("configuration: the peer gave no root secret", hint="is it of an older version?")
        create_once(self._directory / AUTHORITY_FILE, given.root_key)
        return given.root_secret
