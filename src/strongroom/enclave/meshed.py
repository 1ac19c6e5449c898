"""An enclave's network shield: a namespace of its own, whose only way out is the mesh (docs/spec/mesh.md).

1. The CAS is told where this enclave's proxy is reached, and answers with the enclave's address and who else is there.
2. Boot leaves the sandbox's empty network for one of its own, with that address and rules: what goes to members comes
   to the proxy, everything else is refused.
3. The proxy carries it; what it needs outside, a listener and unconnected sockets, the host hands in. Where the policy
   says so, a WireGuard device does in its place (`wired`).
4. The program finds names in ``/etc/hosts``, which follows who is there, and its rank in its variables.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from strongroom.cas.threads import Repeating
from strongroom.crypto import exchange_pair
from strongroom.enclave.boot import Booted
from strongroom.enclave.config import ROOT_DIRECTORY
from strongroom.enclave.control import Control
from strongroom.enclave.drop import bind
from strongroom.enclave.wired import raise_device
from strongroom.errors import EnclaveError, FormatError, StrongroomError, UnauthorizedError
from strongroom.shield.network.identity import Credentials
from strongroom.shield.network.members import MAX_MEMBERS, Directory, Member, Place, member_name
from strongroom.shield.network.namespace import enter_namespace, listen_inside, unreachable
from strongroom.shield.network.proxy import Proxy
from strongroom.shield.network.rules import Rules
from strongroom.shield.network.wired import Wired

_HOSTS: Final = Path("/run/strongroom/etc-hosts")
MASTER_PORT: Final = 29500  # torchrun's own default
TASK_PORT: Final = 2222  # TensorFlow's examples'
COORDINATOR_PORT: Final = 1234  # JAX's examples'
TELL_SECONDS: Final = 2.0
DRAIN_SECONDS: Final = 60.0
_HOST_NAME: Final = 64  # the longest, linux/utsname.h


class Meshed:
    """Raised around a program, as a context manager; without a mesh in its policy it does nothing.

    Attributes:
        rules, credentials: once it is raised.
        variables: what the program finds of its place among the replicas.
    """

    def __init__(self, booted: Booted) -> None:
        self._booted = booted
        self._wanted = "mesh" in booted.provisions.wanted
        self._wired = "mesh.transport" in booted.provisions.wanted
        self._public = b""
        self._endpoint = ""
        self._own: Member | None = None
        self._lock = threading.Lock()
        self._proxy: Proxy | Wired | None = None
        self._sockets: Control | None = None
        self._told: dict[str, Any] = {}
        self._displaced = False
        self._directory = Directory()
        self._names: Sequence[tuple[str, IPv4Address]] = ()
        self._more: Callable[[], dict[str, Any]] = dict
        self.rules: Rules | None = None
        self.credentials: Credentials | None = None
        self.variables: Mapping[str, str] = {}

    def __enter__(self) -> Self:
        """Raises EnclaveError if the host has given no listener, or the kernel makes no such network."""
        if not self._wanted:
            return self
        booted, session = self._booted, self._booted.session
        told = booted.layout.get("mesh")
        if not booted.sandboxed or not isinstance(told, dict) or not isinstance(told.get("endpoint"), str):
            raise EnclaveError("mesh: the host has given no listener for it", hint="launch it with `strongroom run`")
        self._endpoint = told["endpoint"]
        private, self._public = exchange_pair() if self._wired else (b"", b"")
        answer = booted.patiently(lambda: session.join_mesh(self._endpoint, self._public))
        own = self._own = _own(answer, booted.config.policy, session.key, self._endpoint)
        host = own.name if len(own.name) <= _HOST_NAME else f"replica-{own.number}"
        enter_namespace(own.address, host, wired=self._wired)
        self._watch = session.watch_mesh(self._news, self._join_again)
        self._identity = session.linking_identity()  # the session may be waiting for the CAS when it is asked later
        self.credentials = Credentials(lambda: self._identity)
        if self._wired:
            self._proxy, self.rules = raise_device(booted, own.address, private)
        else:
            self._raise_proxy(own, self.credentials)
        show_hosts(booted)
        self._news(answer)
        self.variables = variables(own, answer.get("instances"), answer.get("tasks") or ())
        if isinstance(self._proxy, Proxy):
            self._proxy.start()
        self._watch.start()
        self._telling = Repeating("mesh status", self._tell, first=TELL_SECONDS, retry=TELL_SECONDS)
        self._telling.start()
        booted.control.event("mesh", name=own.name, address=str(own.address), members=len(answer["members"]))
        return self

    def _raise_proxy(self, own: Member, credentials: Credentials) -> None:
        control, inside = self._booted.control, listen_inside()
        self.rules = Rules(own.address, inside.getsockname()[1])
        self._sockets = sockets = control.sockets()
        self._proxy = Proxy(
            own.address,
            inside=inside,
            outside=control.ask_socket("listener"),
            dial=lambda family: sockets.ask_socket("socket", family=int(family)),
            credentials=credentials,
            ask=self._watch.ask,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._proxy is None:
            return
        if error is None:
            self._proxy.drain(DRAIN_SECONDS)
        self._telling.close()
        self._watch.close()
        ended = self.status() if self._wired else {}  # whose device tells nothing once it is closed
        self._proxy.close()
        if self._sockets is not None:
            self._sockets.close()
        self._booted.control.event("mesh-ended", **(ended or self.status()))
        if self.rules is not None:
            self.rules.close()

    @property
    def on_revoked(self) -> Callable[[str, str], None]:
        """To be called with the policy and key of each enclave that is revoked."""

        def revoked(policy: str, key: str) -> None:
            if self._proxy is not None:
                self._proxy.revoke(key)

        return revoked

    @property
    def own(self) -> IPv4Address | None:
        """The enclave's address, once it is known."""
        return self._own.address if self._own is not None else None

    def add(self, names: Sequence[tuple[str, IPv4Address]], more: Callable[[], dict[str, Any]]) -> None:
        """From now on these names lead to these addresses too, and the status has more to tell."""
        if self._own is None:
            return
        with self._lock:
            self._names, self._more = names, more
            write_hosts(self._directory.hosts(self._own, names))

    def status(self) -> dict[str, Any]:
        """What `strongroom mesh status` shows."""
        assert self._own is not None and self._proxy is not None and self.rules is not None  # noqa: S101
        refused = self.rules.refused()
        status = self._proxy.status()
        status["refusals"] |= {"tcp": refused.tcp, "other": refused.other, "unreachable": unreachable()}
        return {"name": self._own.name, "address": str(self._own.address), **status, **self._more()}

    def _tell(self) -> float:
        """Show the newest certificate from now on, and tell the launcher where something is another than before."""
        self._identity = self._booted.session.linking_identity()
        status = self.status()
        if status != self._told:
            self._told = status
            self._booted.control.event("mesh-status", **status)
        return TELL_SECONDS

    def _news(self, told: Mapping[str, Any]) -> None:
        assert self._own is not None and self._proxy is not None and self.rules is not None  # noqa: S101
        directory = Directory() if self._displaced else _directory(told)
        with self._lock:
            self._proxy.update(directory)
            if isinstance(self._proxy, Proxy):
                self.rules.admit(directory.by_address)
            self._directory = directory
            write_hosts(directory.hosts(self._own, self._names))

    def _join_again(self) -> None:
        """The CAS has forgotten it: a lease that had run out, or a state that was put back.

        Raises:
            UnauthorizedError: it may not be a member any more.
        """
        assert self._own is not None  # noqa: S101
        try:
            answer = self._booted.session.join_mesh(self._endpoint, self._public)
            place = answer.get("number"), answer.get("address")
            if place != (self._own.number, str(self._own.address)):
                # Its address is another's: what it would send and get there is not meant for it.
                self._displaced = True
                self._news({"members": [], "places": []})
                text = "mesh: its address has gone to another; it has nobody to talk to any more: launch it again"
                self._booted.control.event("notice", text=text)
        except UnauthorizedError:
            raise
        except StrongroomError as error:
            self._booted.control.event("notice", text=f"mesh: not joined again: {error.message}")


def show_hosts(booted: Booted) -> None:
    """Have the program see, as its file of host names, the one that `write_hosts` writes."""
    hosts = Path(ROOT_DIRECTORY if booted.config.image else "/", "etc/hosts")
    _HOSTS.write_text("")
    _HOSTS.chmod(0o644)
    if not hosts.exists():
        hosts.parent.mkdir(parents=True, exist_ok=True)
        hosts.touch()
    bind(str(_HOSTS), str(hosts))


def write_hosts(text: str) -> None:
    """Change it in place, since the program's root shows this very file."""
    with _HOSTS.open("r+b") as file:
        file.write(text.encode())
        file.truncate()


def _own(answer: Mapping[str, Any], policy: str, key: str, endpoint: str) -> Member:
    wire = {"policy": policy, "key": key, "endpoint": endpoint}
    return Member.from_wire(wire | {name: answer.get(name) for name in ("number", "address")})


def _directory(told: Mapping[str, Any]) -> Directory:
    members, places = told.get("members"), told.get("places")
    if not isinstance(members, list) or not isinstance(places, list) or len(members) > MAX_MEMBERS:
        raise FormatError("mesh: the CAS told members in another form")
    try:
        known = [Place(str(p["policy"]), IPv4Address(p["first"]), min(int(p["count"]), MAX_MEMBERS)) for p in places]
    except (KeyError, TypeError, ValueError):
        raise FormatError("mesh: the CAS told places in another form") from None
    return Directory([Member.from_wire(each) for each in members], known)


def variables(own: Member, instances: object, tasks: Sequence[str] = ()) -> dict[str, str]:
    """What torch.distributed and TensorFlow read of a program's place among its replicas.

    Args:
        instances: how many there are; without, the program is one alone, and only its name is told.
        tasks: the kind of task of each, for TensorFlow; all are workers if there are none.
    """
    found = {"STRONGROOM_MESH_NAME": own.name, "STRONGROOM_MESH_ADDRESS": str(own.address)}
    if type(instances) is not int:
        return found
    names = [member_name(own.policy, number) for number in range(instances)]
    kinds = list(tasks) or ["worker"] * instances
    cluster: dict[str, list[str]] = {}
    index = 0
    for number, (kind, name) in enumerate(zip(kinds, names, strict=True)):
        if number == own.number:
            index = len(cluster.get(kind, ()))
        cluster.setdefault(kind, []).append(f"{name}:{TASK_PORT}")
    return found | {
        "RANK": str(own.number),
        "WORLD_SIZE": str(instances),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": names[0],
        "MASTER_PORT": str(MASTER_PORT),
        # As torchrun reads its own options.
        "PET_NNODES": str(instances),
        "PET_NODE_RANK": str(own.number),
        "PET_MASTER_ADDR": names[0],
        "PET_MASTER_PORT": str(MASTER_PORT),
        "JAX_COORDINATOR_ADDRESS": f"{names[0]}:{COORDINATOR_PORT}",
        "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kinds[own.number], "index": index}}),
    }
