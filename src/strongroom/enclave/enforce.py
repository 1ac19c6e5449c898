"""What a policy wants of its launcher that this one does not do. It refuses then: nothing is ignored.

The host asks before it launches, to say so in time; the enclave asks again, of what the CAS says: a host may lie.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from strongroom.enclave.config import BootConfig
from strongroom.errors import EnclaveError

_NETWORK = "an enclave of this version has no network at all: take the table out of the policy"
_RULES = {"authenticated": "only whole vaults are kept, and those are encrypted: say encrypted"}

PathRule = tuple[str, str, str]
"""Path, rule and vault, as a policy has them."""


def check_enforceable(paths: Iterable[PathRule], wanted: Collection[str]) -> None:
    """Raises EnclaveError, with the key of the policy, unless this launcher does all of it.

    Args:
        wanted: keys of other tables that the policy has.
    """
    for key in wanted:
        raise EnclaveError(f"{key}: this launcher cannot enforce it", hint=_NETWORK)
    rules = list(paths)
    for path, rule, _ in rules:
        if rule not in ("encrypted", "ephemeral", "host"):
            raise EnclaveError(f"paths.rule: {path}: this launcher cannot enforce {rule}", hint=_RULES.get(rule))
        outer = [(other, theirs) for other, theirs, _ in rules if path.startswith(f"{other}/")]
        if outer and (rule != "ephemeral" or any(theirs == "host" for _, theirs in outer)):
            raise EnclaveError(
                f"paths.path: {path} lies in {outer[0][0]}, and this launcher cannot enforce this rule within another",
                hint="give them paths beside each other; only ephemeral may lie in encrypted or ephemeral",
            )


def check_enforced(config: BootConfig, paths: Iterable[PathRule], wanted: Collection[str]) -> None:
    """The same within the enclave; and what it was measured with does all of it, and shows no more of the host's."""
    rules = list(paths)
    check_enforceable(rules, wanted)
    mounts = {(rule.mount, rule.name) for rule in config.vaults}
    if stray := set(config.host) - {path for path, rule, _ in rules if rule == "host"}:
        raise EnclaveError(f"paths: {min(stray)}: shows the host's files, and the policy does not say so")
    for path, rule, vault in rules:
        done = {
            "ephemeral": path in config.ephemeral,
            "host": path in config.host,
            "encrypted": (path, vault) in mounts,
        }[rule]
        if not done:
            raise EnclaveError(f"paths: {path}: the policy says {rule}, and this enclave was launched without that")
