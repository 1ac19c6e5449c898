"""A CAS as a running service: state directory, address, and the process that serves it."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from strongroom.cas.app import cas_application
from strongroom.cas.authority import Authority
from strongroom.cas.completion import Complete
from strongroom.cas.files import replace
from strongroom.cas.log_note import WitnessKey
from strongroom.cas.store import Store
from strongroom.channel import Server, bind
from strongroom.errors import FormatError

ADDRESS_FILE = "cas.json"


@dataclass(frozen=True)
class CasAddress:
    """Where a CAS answers and by which root key it is known."""

    url: str
    cas_root: str

    def save(self, directory: Path) -> None:
        text = json.dumps({"url": self.url, "cas_root": self.cas_root}) + "\n"
        replace(directory / ADDRESS_FILE, text.encode())

    @classmethod
    def load(cls, path: Path) -> CasAddress:
        """Raises FormatError if the file is not one that `save` wrote."""
        try:
            value = json.loads(path.read_text())
            return cls(str(value["url"]), str(value["cas_root"]))
        except (ValueError, KeyError, TypeError):
            raise FormatError(f"{path}: not the address of a CAS") from None


def prepare(
    directory: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    witnesses: Sequence[WitnessKey] = (),
    complete: Complete | None = None,
    clock: Callable[[], float] = time.time,
) -> tuple[Server, CasAddress, Store]:
    """Open the state in `directory` and bind the address; `Server.run` serves.

    Args:
        witnesses: whose cosignatures of the log's head the CAS keeps.
        complete: gives evidence its vendor's endorsements; None leaves it with those that it brings.

    Raises:
        PortInUseError: the address is taken.
        IntegrityError: the state is damaged, or its keys are not the ones that it was made with.
    """
    with ExitStack() as undo:
        sock = undo.enter_context(bind(host, port))
        store = Store(directory)
        undo.callback(store.close)
        now = dt.datetime.fromtimestamp(clock(), dt.UTC)
        authority = Authority(directory, now=now, hosts=sorted({host, "localhost", "127.0.0.1"}))
        application = cas_application(store, authority, witnesses=witnesses, complete=complete, clock=clock)
        server = Server(application, sock, authority.identity)
        shown = f"[{host}]" if ":" in host else host
        address = CasAddress(f"https://{shown}:{server.port}", authority.cas_root)
        address.save(directory)
        undo.pop_all()
    return server, address, store


@contextmanager
def running_cas(
    directory: Path,
    *,
    witnesses: Sequence[WitnessKey] = (),
    complete: Complete | None = None,
    clock: Callable[[], float] = time.time,
) -> Iterator[CasAddress]:
    """A CAS in a thread of this process, on a free port of the loopback interface: for development and tests."""
    server, address, store = prepare(directory, witnesses=witnesses, complete=complete, clock=clock)
    try:
        with server:
            yield address
    finally:
        store.close()
