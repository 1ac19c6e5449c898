"""The root secret by shares: some of its holders, each with a share, unseal the CAS at every start."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from strongroom.attest.attester import Attester
from strongroom.cas.files import replace
from strongroom.cas.state.way import Record
from strongroom.cas.unseal.locked import unseal_by_shares
from strongroom.cas.unseal.share_files import ShareFile, ShareSet, make_shares, public_text
from strongroom.errors import UsageError
from strongroom.storage import LocalDirectory


@dataclass(frozen=True)
class Shares:
    """`threshold` of the holders' shares give the secret.

    Attributes:
        directory: the CAS's; new shares are written to a directory of their own in it, ``shares-<name of the set>``.
        holders: of new shares: their public keys by name.
        sock: a bound socket at which a sealed CAS waits for shares.
        attester: makes the evidence by which holders know the CAS; None where it has none.
        tell: is given a line for the operator.
        then: how the secret will be kept once it is there, if that is to change, as `plan` says it: holders who do not
            agree to just that give nothing.
    """

    directory: Path
    holders: Mapping[str, bytes] = field(default_factory=dict)
    threshold: int | None = None
    sock: socket.socket | None = None
    attester: Attester | None = None
    tell: Callable[[str], None] = lambda line: None
    then: str = ""

    way: ClassVar[str] = "shares"
    creates: ClassVar[bool] = True

    def at(self, sock: socket.socket) -> Shares:
        """The same, waiting at that socket."""
        return dataclasses.replace(self, sock=sock)

    def keep(self, secret: bytes) -> Record:
        if not self.holders or self.threshold is None:
            raise UsageError(
                "shares: whose, and how many of them unseal it?",
                hint="--holder NAME=x25519:..., once for each holder, and --threshold NUMBER",
            )
        shared, shares = make_shares(secret, self.threshold, len(self.holders))
        directory = self.directory / f"shares-{shared.name[:16]}"
        directory.mkdir(mode=0o700)
        for (index, share), (holder, key) in zip(shares.items(), self.holders.items(), strict=True):
            path = directory / f"{holder}.share"
            replace(path, ShareFile.seal(shared, index, share, holder, key).to_bytes())
        LocalDirectory(directory).sync()
        LocalDirectory(self.directory).sync()
        self.tell(
            f"shares written to {directory}: hand each to its holder, then remove them; "
            f"{self.threshold} of {len(shares)} unseal this CAS"
        )
        return shared.to_wire()

    @property
    def plan(self) -> str:
        """Whose shares are to be made, in words that nobody can take for others."""
        return f"shares {self.threshold} of " + " ".join(
            f"{name}={public_text(key)}" for name, key in self.holders.items()
        )

    def recover(self, record: Record) -> bytes:
        shared = ShareSet.from_wire(record)
        if self.sock is None:
            raise UsageError(
                f"unseal: this CAS is opened by {shared.threshold} of {shared.count} shares, and it listens nowhere"
            )
        return unseal_by_shares(shared, self.sock, attester=self.attester, tell=self.tell, then=self.then)
