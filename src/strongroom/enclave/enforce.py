"""What a policy wants of its launcher that this one does not do. It refuses then: nothing is ignored.

The host asks before it launches, to say so in time; the enclave asks again, of what the CAS says: a host may lie.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from strongroom.enclave.config import PROGRAM_ENTRY, SANDBOX, BootConfig
from strongroom.errors import EnclaveError

_RULES = ("encrypted", "authenticated", "ephemeral", "host")
_NETWORK = ("mesh", "mesh.publish", "mesh.transport", "egress")
_SANDBOX = "only a program in a sandbox has it: install bubblewrap, or take the table out of the policy"

LEAST_PORT: Final = 1024
"""The first at which a program without privileges listens: Linux's `ip_unprivileged_port_start`."""
LISTENS_FROM: Final = "a program in an enclave listens at ports from 1,024 on"

PathRule = tuple[str, str, str]
"""Path, rule and vault, as a policy has them."""


def check_enforceable(
    paths: Iterable[PathRule],
    wanted: Collection[str],
    *,
    mounts: Iterable[str] = (),
    able: Collection[str] = (),
    ports: Mapping[str, int] | None = None,
) -> None:
    """Raises EnclaveError, with the key of the policy, unless this launcher does all of it.

    Args:
        wanted: keys of other tables that the policy has.
        mounts: where vaults are found for which no rule says it.
        able: those of these keys that it does something about.
        ports: of the program's services for outsiders, by their names.
    """
    for name, port in (ports or {}).items():
        if port < LEAST_PORT:
            raise EnclaveError(
                f"mesh.publish.port: {name}: got {port}: {LISTENS_FROM}",
                hint=f"a port from there on; outsiders reach it at {port} by --publish {name}={port}",
            )
    for key in sorted({*wanted} - {*able}):
        hint = _SANDBOX if key in _NETWORK else "a newer launcher may"
        raise EnclaveError(f"{key}: this launcher cannot enforce it", hint=hint)
    rules = list(paths)
    for path, rule, _ in rules:
        if rule not in _RULES:
            raise EnclaveError(f"paths.rule: {path}: this launcher cannot enforce {rule}")
    hosts = [path for path, rule, _ in rules if rule == "host"]
    for path in (*mounts, *(path for path, _, _ in rules)):
        if outer := [other for other in hosts if path.startswith(f"{other}/")]:
            raise EnclaveError(
                f"paths.path: {path} lies in {outer[0]}, where this launcher shows the host's and nothing else",
                hint="give them paths beside each other; in vaults and ephemeral directories anything may lie",
            )


def able(config: BootConfig) -> tuple[str, ...]:
    """What an enclave that is launched so enforces of a policy's tables for the network."""
    return able_in(config.role, config.isolation) if config.entry == PROGRAM_ENTRY else ()


def able_in(role: str, isolation: str) -> tuple[str, ...]:
    """The same, of the tables for the network by their keys."""
    return _NETWORK if (role, isolation) == ("program", SANDBOX) else ()


def check_enforced(config: BootConfig, paths: Iterable[PathRule], wanted: Collection[str]) -> None:
    """The same within the enclave; and what it was measured with does all of it, and shows no more of the host's."""
    rules = list(paths)
    mounted = [rule.mount for rule in config.vaults if rule.mount]
    check_enforceable(rules, wanted, mounts=mounted, able=able(config))
    mounts = {(rule.mount, rule.name) for rule in config.vaults}
    if stray := set(config.host) - {path for path, rule, _ in rules if rule == "host"}:
        raise EnclaveError(f"paths: {min(stray)}: shows the host's files, and the policy does not say so")
    in_clear = {vault for _, rule, vault in rules if rule == "authenticated"}
    if stray := set(config.authenticated) - in_clear:
        raise EnclaveError(f"vault {min(stray)}: is launched as authenticated only, and the policy does not say so")
    for path, rule, vault in rules:
        done = {
            "ephemeral": path in config.ephemeral,
            "host": path in config.host,
            "encrypted": (path, vault) in mounts,
            "authenticated": (path, vault) in mounts and vault in config.authenticated,
        }[rule]
        if not done:
            raise EnclaveError(f"paths: {path}: the policy says {rule}, and this enclave was launched without that")
