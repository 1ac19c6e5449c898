"""What a dealer's enclave does once it has booted: it convinces both servers, and then deals.

The boot configuration's command is the computation's settings, and then the program's words as `strongroom mpc run`
takes them. Nothing is received but what passes between the parties: the dealer's key is made here, and so is all
randomness that it deals.
"""

from __future__ import annotations

import datetime as dt
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from strongroom.channel import Expect, Identity, TlsChannel, TlsStream, connect
from strongroom.crypto import Certificate
from strongroom.enclave.boot import HostAttester
from strongroom.enclave.control import Control
from strongroom.enclave.dealer_evidence import show
from strongroom.errors import PeerIdentityError, StrongroomError
from strongroom.mpc.certificates import named, uri
from strongroom.mpc.peer import NAMES
from strongroom.mpc.script import RANK, Script, run_program

if TYPE_CHECKING:
    from strongroom.mpc.party import Party
    from strongroom.mpc.ring import Settings

_SERVERS, _DEALER = (0, 1), 2


def deal(control: Control, command: Sequence[str], layout: Mapping[str, Any]) -> int:
    """Deal to the end of the program; its exit status."""
    signal.signal(signal.SIGTERM, _terminated)  # a process 1 has no default for it
    chosen, *words = command
    script = Script.find(words[1:] if words[:1] == ["-m"] else words, module=words[:1] == ["-m"])
    for name, value in _environment(layout.get("threads")).items():
        os.environ[name] = value
    from strongroom import mpc  # PyTorch, which reads these, only now
    from strongroom.mpc.peers import make_settings, settings_of

    seconds = layout.get("seconds")  # how patient it is, the host may say
    settings = make_settings(settings_of(chosen), {"seconds": float(seconds)} if seconds else {})
    party = meet(control, settings, script.digest)
    try:
        return run_program(party, mpc.World(party), script)
    except StrongroomError as error:
        if line := script.line(error):
            control.event("notice", text=f"{NAMES[_DEALER]} was at {script.path}:{line}")
        raise


def _environment(threads: object) -> dict[str, str]:
    found = {RANK: str(_DEALER)}
    if isinstance(threads, int):
        found["OMP_NUM_THREADS"] = str(threads)
    return found


def meet(control: Control, settings: Settings, program: bytes) -> Party:
    """Connect to both servers, through sockets of the host's making, and convince them.

    Who they are, this enclave need not know: each server knows the other and this channel, and all three certificates
    go into the epoch that all three must agree on.
    """
    from strongroom.mpc.party import Party

    identity = Identity.fresh(NAMES[_DEALER], now=dt.datetime.now(dt.UTC), uri=uri(_DEALER))
    attester, key = HostAttester(control), identity.key.public.fingerprint
    streams: dict[int, TlsStream] = {}
    try:
        for server in _SERVERS:
            sock = control.ask_socket("dial", peer=NAMES[server])
            sock.settimeout(settings.seconds)
            streams[server] = stream = connect(sock, expect=_expect(server), identity=identity)
            show(stream, server, attester, key)
            control.event("appraised", server=NAMES[server])
    except BaseException:
        for stream in streams.values():
            stream.close()
        raise
    leaves = [stream.peer[0] for stream in streams.values() if named(stream.peer) is not None]
    identities = b"".join(leaf.der for leaf in [*leaves, identity.chain[0]])
    channels = {
        server: TlsChannel(stream, NAMES[server], seconds=settings.seconds) for server, stream in streams.items()
    }
    return Party(_DEALER, channels, settings, identities=identities, program=program)


def _expect(server: int) -> Expect:
    def check(chain: Sequence[Certificate]) -> None:
        """On a Unix socket a server has no name; over TCP, its own."""
        found = named(chain)
        if found not in (None, server):
            raise PeerIdentityError(f"peer name: got {', '.join(chain[0].uris)}, wanted {uri(server)}")

    return check


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
