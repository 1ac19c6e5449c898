"""A CAS as a running service: what it is started with, its state directory, and what serves and watches it.

`prepare` takes these steps, and whatever fails in one leaves the address free and the state as it was:

1. bind the address;
2. recover the root secret (`unseal/`), which may wait for others;
3. open the database and the CA key;
4. the start mode: what the database says, or, for a new CAS, what it is created with (`start/mode.py`);
5. a gate that is closed until the log's head is confirmed in that mode (`start/gate.py`); a TPM confirms it here.

`Service.run` serves and, beside that, asks the peers and tells the TPM. After SIGTERM or SIGINT it answers what it has
begun, tells the TPM the last head and closes the database; after a second one it does not wait for answers.
"""

from __future__ import annotations

import datetime as dt
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from strongroom.attest.attester import Attester
from strongroom.cas.api.operation import Operation
from strongroom.cas.api.peers import PeerWatch
from strongroom.cas.client.address import CasAddress
from strongroom.cas.enclaves.completion import Complete
from strongroom.cas.log.note import WitnessKey
from strongroom.cas.service.app import cas_application
from strongroom.cas.start.authority import AUTHORITY_FILE, Authority
from strongroom.cas.start.gate import Gate
from strongroom.cas.start.mode import TRUST_DISK, Restart, agree, read_restart, write_restart
from strongroom.cas.start.tpm_head import TpmHead, keep_head
from strongroom.cas.state.root_secret import open_root_secret
from strongroom.cas.state.store import Store
from strongroom.cas.state.trust_disk import TrustDisk
from strongroom.cas.state.way import Unsealer
from strongroom.cas.unseal.shares import Shares
from strongroom.channel import Server, bind
from strongroom.errors import StrongroomError, UsageError

_log = logging.getLogger("strongroom.cas")


@dataclass(frozen=True)
class Settings:
    """What a CAS is started with. What is part of its state is only compared with it.

    Attributes:
        database: the URL of a database that several instances share; None is the one in its directory.
        unsealer: how its root secret is kept; None is `trust-disk`. With `Shares` the start waits until they are there.
        restart: its start mode; None is the one that it has.
        witnesses: whose cosignatures of the log's head it keeps, besides those that its start mode waits for.
        peers: the URLs of the other instances of this CAS.
        attester: makes the evidence that it shows of itself; None shows none.
        complete: gives evidence its vendor's endorsements; None leaves it with those that it brings.
        operation: whom it lets log in, what it limits and counts.
    """

    host: str = "127.0.0.1"
    port: int = 0
    database: str | None = None
    unsealer: Unsealer | None = None
    restart: Restart | None = None
    witnesses: Sequence[WitnessKey] = ()
    peers: tuple[str, ...] = ()
    attester: Attester | None = None
    complete: Complete | None = None
    operation: Operation | None = None
    clock: Callable[[], float] = time.time


class Service:
    """A CAS that is bound to its address and may be run. Used as a context manager it serves from a thread of its own.

    Attributes:
        gate: what it may serve.
        at_end: what uses it besides, and is ended first.
    """

    def __init__(
        self,
        server: Server,
        address: CasAddress,
        store: Store,
        gate: Gate,
        *,
        sock: socket.socket,
        authority: Authority,
        peers: PeerWatch,
        tpm: TpmHead | None,
    ) -> None:
        self._server, self.address, self.store, self.gate = server, address, store, gate
        self.authority, self.peers, self.tpm = authority, peers, tpm
        self.at_end = ExitStack()
        self._socket = sock
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        return int(self._server.port)

    def run(self) -> None:
        """Serve until `stop`, or until SIGINT or SIGTERM where this is the main thread; then close all."""
        try:
            self.peers.start()
            if self.tpm is not None:
                self.tpm.start()
            self._server.run()
        finally:
            self.close()

    def stop(self) -> None:
        """Ask it to answer what it has begun, and to end. Returns at once."""
        self._server.stop()

    def close(self) -> None:
        """End the watches, tell the TPM the last head, and close the database."""
        with ExitStack() as last:  # each of them, whatever becomes of those before it
            last.callback(self._socket.close)
            last.callback(self.store.close)
            if self.tpm is not None:
                last.callback(self.tpm.close)
            last.callback(self.peers.close)
            last.callback(self.at_end.close)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self.run, name=f"cas-{self.port}", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()


def prepare(directory: Path, settings: Settings | None = None, **changes: Any) -> Service:
    """Open the state in `directory` and bind the address, by the steps at the top of this file.

    Args:
        changes: fields of `Settings`.

    Raises:
        PortInUseError: the address is taken.
        IntegrityError: the state is damaged, or its keys are not the ones that it was made with.
        RollbackError: the TPM remembers a head that the log does not extend.
        UnauthorizedError: the state has another start mode than the one that was asked for.
    """
    chosen = changed(settings or Settings(), **changes)
    with ExitStack() as undo:
        # 1
        sock = undo.enter_context(bind(chosen.host, chosen.port))
        # 2
        unsealer = chosen.unsealer.at(sock) if isinstance(chosen.unsealer, Shares) else chosen.unsealer
        root_secret = open_root_secret(directory, unsealer)
        # 3
        store = Store(directory, secret=root_secret, database=chosen.database)
        undo.callback(store.close)
        new = not (directory / AUTHORITY_FILE).exists() and _holds_nothing(store)
        now = dt.datetime.fromtimestamp(chosen.clock(), dt.UTC)
        marked = new and (chosen.restart not in (None, TRUST_DISK) or read_restart(store) is not None)
        # 4, before the CA key of a new CAS: nobody knows by that key a CAS whose database holds no mode yet.
        restart = _start_mode(store, chosen, root_secret, marked=False, now=now) if marked else None
        hosts = sorted({chosen.host, "localhost", "127.0.0.1"})
        unseal = TrustDisk.way if unsealer is None else unsealer.way
        authority = Authority(directory, root_secret, now=now, hosts=hosts, unseal=unseal, marked=marked, new=new)
        restart = restart or _start_mode(store, chosen, root_secret, marked=authority.holds_mode, now=now)
        if read_restart(store) is not None:
            authority.mark()
        # 5
        gate = Gate(store, authority)
        gate.define = lambda wanted: _defined(wanted, store, root_secret)
        tpm = None
        if store.kind == "SQLite":  # `_defined` makes no other's
            tpm = TpmHead(
                lambda: gate.restart,
                root_secret,
                lambda: store.head() if gate.ready else None,
                hold_to=gate.hold_to,
            )
        if new:
            gate.open()
        elif tpm is not None and restart.mode == "tpm":
            _confirm_by_tpm(gate, tpm)
        witnesses = _union(chosen.witnesses, tuple(WitnessKey.parse(vkey) for vkey in restart.witnesses))
        about = {
            "unseal": unseal,
            "database": store.kind,
            "endorsements": chosen.complete is not None,
        }
        peers = PeerWatch(store, gate, authority, chosen.peers, clock=chosen.clock)
        application = cas_application(
            store,
            authority,
            witnesses=witnesses,
            complete=chosen.complete,
            clock=chosen.clock,
            gate=gate,
            attester=chosen.attester,
            operation=changed(chosen.operation or Operation(), about=about),
            peers=peers,
        )
        server = Server(application, sock, authority.identity, ending=application.end_waits)
        shown = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
        address = CasAddress(f"https://{shown}:{server.port}", authority.cas_root)
        address.save(directory)
        undo.pop_all()
    return Service(server, address, store, gate, sock=sock, authority=authority, peers=peers, tpm=tpm)


def _holds_nothing(store: Store) -> bool:
    """Whether it was made just now; by a start that was killed, perhaps, after it wrote down the mode."""
    return store.head().size == (0 if read_restart(store) is None else 1)


def _start_mode(store: Store, chosen: Settings, root_secret: bytes, *, marked: bool, now: dt.datetime) -> Restart:
    recorded = read_restart(store)
    restart = agree(recorded, chosen.restart, marked=marked)
    if restart == (recorded or TRUST_DISK):
        return restart
    restart = _defined(restart, store, root_secret)
    write_restart(store, restart, now=int(now.timestamp()))
    return restart


def _defined(restart: Restart, store: Store, root_secret: bytes) -> Restart:
    """With the index of this machine's TPM made, if the mode wants one.

    Raises:
        UsageError: other machines use the database too.
    """
    if restart.mode != "tpm":
        return restart
    if store.kind != "SQLite":
        raise UsageError(
            "restart tpm: is for a CAS whose database is its own, and this one is shared",
            hint="instances on several machines take the mode owner or witness",
        )
    return keep_head(restart, root_secret, store.head())


def _confirm_by_tpm(gate: Gate, tpm: TpmHead) -> None:
    """Open the gate, or leave it to the operators where the TPM remembers nothing.

    Raises:
        RollbackError: the log does not extend what it remembers; or it remembers nothing, and there are no operators.
    """
    try:
        seen = tpm.read()
    except StrongroomError as error:
        if not gate.operators().keys:
            raise
        _log.error("%s; its operators are waited for", error.message)
        return
    gate.hold_to(seen)
    gate.open()


def _union(one: Sequence[WitnessKey], other: Sequence[WitnessKey]) -> tuple[WitnessKey, ...]:
    return (*one, *(key for key in other if key not in one))


@contextmanager
def running_cas(directory: Path, settings: Settings | None = None, **changes: Any) -> Iterator[CasAddress]:
    """A CAS in a thread of this process, on a free port of the loopback interface: for development and tests.

    Args:
        changes: fields of `Settings`.
    """
    with prepare(directory, settings, **changes) as service:
        yield service.address
