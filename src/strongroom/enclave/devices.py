"""WireGuard devices of the host's making, for enclaves whose mesh wants them.

A device is made here, where it sends and receives, and moved into the enclave's network, where boot gives it a key. The
kernel makes one where it has WireGuard. Where it has not, ``wireguard-go`` stands in for a simulated enclave: a process
of the host's, which then has the enclave's key. On a machine that is one TEE as a whole that is no way: there the
kernel is measured, and such a process is not.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from strongroom.enclave.control import GiveDevice
from strongroom.errors import EnclaveError, UnsupportedPlatformError
from strongroom.shield.network.links import make_link, move_link, remove_link
from strongroom.shield.network.wireguard import Device, KernelDevice, ProgramDevice

PROGRAM: Final = "wireguard-go"
_SOCKETS: Final = Path("/var/run/wireguard")  # where such programs have theirs
_KIND = "wireguard"
_SECONDS, _LOOK_SECONDS = 10.0, 0.01  # for which a program that was started is waited for
_END_SECONDS = 5.0


@dataclass(frozen=True)
class Devices:
    """How this machine makes WireGuard devices.

    Attributes:
        program: what makes them; None for the kernel.
    """

    program: Path | None

    @classmethod
    def here(cls, *, simulated: bool) -> Devices:
        """Raises UnsupportedPlatformError if there is no way."""
        hint = 'launch it as root where the kernel has WireGuard (CONFIG_WIREGUARD), or say transport = "tls"'
        if os.geteuid() != 0:
            raise UnsupportedPlatformError("mesh.transport: wireguard: making a device takes root", hint=hint)
        name = _name()
        try:
            make_link(name, _KIND)
            remove_link(name)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            found = shutil.which(PROGRAM) if simulated and error.errno == errno.EOPNOTSUPP else None
            if found is None:
                raise UnsupportedPlatformError(
                    f"mesh.transport: wireguard: the kernel makes no such device: {why}", hint=hint
                ) from None
            return cls(Path(found))
        return cls(None)

    def giver(self, reserved: socket.socket, resources: ExitStack) -> GiveDevice:
        """Gives one device, once, that uses the port which a UDP socket has kept for it until then.

        Args:
            resources: with which its program ends; the kernel's device ends with the network that it is in.
        """

        def give(namespace: int) -> tuple[str, socket.socket | None]:
            port = reserved.getsockname()[1]
            reserved.close()
            name = _name()
            device, connection = self._made(name, resources)
            try:
                device.listen(port)
                move_link(name, namespace)
            except BaseException:
                with suppress(OSError):
                    remove_link(name)
                raise
            finally:
                if connection is None:
                    device.close()
            return name, connection

        return give

    def _made(self, name: str, resources: ExitStack) -> tuple[Device, socket.socket | None]:
        if self.program is None:
            make_link(name, _KIND)
            return KernelDevice(name), None
        environment = {"LOG_LEVEL": "error", "PATH": os.defpath, "WG_PROCESS_FOREGROUND": "1"}
        process = subprocess.Popen(  # noqa: S603  # found on root's own path
            [self.program, "-f", name], env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        resources.callback(_end, process, name)
        connection = _connected(process, _SOCKETS / f"{name}.sock")
        resources.callback(connection.close)
        return ProgramDevice(connection), connection


def _name() -> str:
    return f"sr{secrets.token_hex(6)}"


def _connected(process: subprocess.Popen[bytes], path: Path) -> socket.socket:
    until = time.monotonic() + _SECONDS
    while process.poll() is None and time.monotonic() < until:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            time.sleep(_LOOK_SECONDS)
            continue
        return connection
    raise EnclaveError(f"mesh.transport: wireguard: {PROGRAM} made no device", hint="run it by hand to see why")


def _end(process: subprocess.Popen[bytes], name: str) -> None:
    process.terminate()
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(OSError):
        (_SOCKETS / f"{name}.sock").unlink()
