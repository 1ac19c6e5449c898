"""An enclave's mesh over a WireGuard device, in the place of its proxy (docs/spec/mesh.md).

1. Boot has made a key, and told the CAS its public half under the enclave's attested session.
2. In its own namespace it asks the host for a device there, and gives that its key: nothing else has it but what makes
   the device, which is the kernel.
3. The rules stand before the device carries anything; who the members are, `Wired` tells it.
"""

from __future__ import annotations

import os
from functools import partial
from ipaddress import IPv4Address

from strongroom.enclave.boot import Booted
from strongroom.errors import EnclaveError
from strongroom.shield.network.links import raise_link
from strongroom.shield.network.namespace import MESH
from strongroom.shield.network.wired import Wired
from strongroom.shield.network.wired_rules import WiredRules
from strongroom.shield.network.wireguard import KernelDevice, ProgramDevice


def raise_device(booted: Booted, own: IPv4Address, private: bytes) -> tuple[Wired, WiredRules]:
    """In the namespace that the caller is in, which is this enclave's.

    Raises:
        EnclaveError: the host has given no device, its port is taken, or the kernel refused.
        UnsupportedPlatformError: as `WiredRules`.
    """
    rules = WiredRules(own)
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        name, connection = booted.control.ask_device(namespace)
    finally:
        os.close(namespace)
    try:
        device = ProgramDevice(connection) if connection is not None else KernelDevice(name)
        device.begin(private)
        raise_link(name, own, MESH)
        return Wired(device, rules, partial(_not_done, booted)), rules
    except OSError as error:
        raise EnclaveError(f"mesh.transport: wireguard: {(error.strerror or str(error)).lower()}") from None


def _not_done(booted: Booted, error: OSError) -> None:
    why = (error.strerror or str(error)).lower()
    booted.control.event("notice", text=f"mesh: the kernel did not take who the members are now: {why}")
