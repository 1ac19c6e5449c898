"""What tests of root secrets share."""

from __future__ import annotations

import datetime as dt
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strongroom.attest.attester import Attester
from strongroom.attest.binding import parse_canonical
from strongroom.cas.client.address import dial_cas, split_address
from strongroom.cas.start.authority import Authority
from strongroom.cas.state.root_secret import open_root_secret
from strongroom.cas.state.store import Store
from strongroom.cas.unseal.locked import share_info
from strongroom.cas.unseal.share_files import ShareFile
from strongroom.cas.unseal.shares import Shares
from strongroom.cas.wire import b64, bytes_field, hex_field
from strongroom.channel import HttpClient, bind
from strongroom.crypto import HpkeKey, hpke_seal
from strongroom.errors import StrongroomError

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KEYS = {name: HpkeKey() for name in ("alice", "bob", "carol")}


def cas_root(directory: Path, secret: bytes) -> str:
    """The name of the CAS with that directory."""
    return Authority(directory, secret, now=NOW, hosts=["localhost"]).cas_root


def opened(directory: Path, secret: bytes) -> tuple[str, bytes | None]:
    """Who the CAS with that directory is, and what its database holds; written at first."""
    store = Store(directory, secret=secret)
    try:
        if not store.head().size:
            store.put_secret("a/b", "token", b"swordfish", now=1)
        return cas_root(directory, secret), store.secret("a/b", "token")
    finally:
        store.close()


def holders(*names: str) -> dict[str, bytes]:
    return {name: KEYS[name].public for name in names}


def shared_cas(directory: Path) -> bytes:
    """A new CAS that two of three open, without a database yet; its root secret."""
    return open_root_secret(directory, Shares(directory, holders(*KEYS), 2))


def share_of(directory: Path, name: str) -> ShareFile:
    """That holder's share, in a CAS that was shared out once."""
    (path,) = directory.glob(f"shares-*/{name}.share")
    return ShareFile.load(path)


class Waiting:
    """A sealed CAS in a thread."""

    def __init__(self, directory: Path, shares: Shares) -> None:
        self._told: queue.Queue[str] = queue.Queue()
        self._ended: queue.Queue[bytes | BaseException] = queue.Queue()
        self._end: bytes | BaseException | None = None
        self._directory, self._shares = directory, shares
        threading.Thread(target=self._run, daemon=True).start()
        told = self._told.get(timeout=60).split()
        self.url, self.key = told[1], told[-1]

    def _run(self) -> None:
        try:
            with bind("127.0.0.1", 0) as sock:
                shares = Shares(
                    self._directory,
                    sock=sock,
                    attester=self._shares.attester,
                    tell=self._told.put,
                    then=self._shares.then,
                )
                self._ended.put(open_root_secret(self._directory, shares))
        except BaseException as error:
            self._ended.put(error)

    def secret(self) -> bytes:
        """What it was opened with, or what it ended with is raised."""
        if self._end is None:
            self._end = self._ended.get(timeout=60)
        if isinstance(self._end, BaseException):
            raise self._end
        return self._end

    def http(self) -> HttpClient:
        host, port = split_address(self.url)
        return HttpClient(lambda: dial_cas(host, port), host=host, expect=lambda chain: None)

    def give(self, http: HttpClient, plain: bytes) -> dict[str, object]:
        """Give it those bytes, sealed to it as a share is."""
        said = bytes_field(http.post("/v1/unseal/offer", {"nonce": "00" * 32}), "claims")
        box = hpke_seal(hex_field(parse_canonical(said), "hpke"), plain, info=share_info(said))
        return http.post("/v1/unseal", {"share": b64(box)})


@contextmanager
def waiting(directory: Path, *, attester: Attester | None = None, then: str = "") -> Iterator[Waiting]:
    """A CAS that waits for shares; whatever it still lacks at the end it gets, so that its thread ends."""
    cas = Waiting(directory, Shares(directory, attester=attester, then=then))
    yield cas
    with cas.http() as http:
        for path in sorted(directory.glob("shares-*/*.share")):
            file = ShareFile.load(path)
            try:
                if http.get("/v1/unseal")["open"]:
                    break
                cas.give(http, bytes([file.index]) + file.open(KEYS[file.holder]))
            except StrongroomError:
                continue
