"""What an attested enclave receives: its keys, its secrets, and what it must see to (docs/spec/cas.md).

Rules:

- It is what the policy names, no more; what is imported is as the exporting policy has it, and to read only.
- Templates are the enclave's business: it was measured with them, and gets the values.
- What the policy wants enforced goes along, so that a host that leaves it out is found out by the enclave.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from strongroom.cas.policy.network import wanted
from strongroom.cas.policy.places import SealedRule, VaultRule
from strongroom.cas.policy.program import Program, SecretRule
from strongroom.cas.policy.templates import parse_template
from strongroom.cas.policy.version import Policy
from strongroom.cas.state.store import Store, deposit_name
from strongroom.cas.wire import b64
from strongroom.errors import NotStoredError, PolicyError


def vault_key_name(vault: str) -> str:
    """The name of the secret that is a vault's key. The names of other secrets hold no colon."""
    return f"vault:{vault}"


def sealed_key_name(file: str) -> str:
    """The name of the secret that is a sealed file's key."""
    return f"sealed:{file}"


def configuration(store: Store, policy: Policy, now: int, *, replica: int | None = None) -> dict[str, Any]:
    """The configuration of an enclave of that policy, as JSON; secrets that are drawn are drawn now.

    Args:
        replica: which one it is; it was appraised for that, and its grants were checked.

    Raises:
        NotStoredError: a key or a secret has not been stored.
        PolicyError: it cannot be where the policy wants it.
    """
    vaults = {rule.name: _keyed(store, policy, rule, replica) for rule in policy.vaults}
    sealed = {rule.name: _keyed(store, policy, rule, replica) for rule in policy.sealed}
    values = _secrets(store, policy, now)
    return {
        "vaults": vaults,
        "sealed": sealed,
        "secrets": {name: b64(value) for name, value in values.items()},
        "environment": {
            rule.environment: rule.name for rule in policy.secrets if rule.environment and rule.name in values
        },
        "deposits": [rule.name for rule in policy.secrets if rule.deposited],
        "paths": [{"path": rule.path, "rule": rule.rule, "vault": rule.vault} for rule in policy.paths],
        "wanted": list(wanted(policy.mesh, policy.egress)),
        "egress": [asdict(rule) for rule in policy.egress],
        "publish": [asdict(each) for each in (policy.mesh.publish if policy.mesh else ())],
    }


def as_variable(policy: Policy) -> frozenset[str]:
    """The secrets that reach the program as a variable or an argument, which hold no zero byte."""
    program = policy.program or Program(())
    texts = (*program.command, *program.environment.values())
    templated = {name for text in texts for name in parse_template(text).names}
    return frozenset(templated | {rule.name for rule in policy.secrets if rule.environment})


def _keyed(store: Store, policy: Policy, rule: VaultRule | SealedRule, replica: int | None) -> dict[str, str]:
    """The key of a vault or of a sealed file, and how it may be used."""
    of = rule.source or policy.name
    kind, name = ("vault", vault_key_name) if isinstance(rule, VaultRule) else ("sealed", sealed_key_name)
    key = store.secret(of, name(rule.name))
    if key is None:
        raise NotStoredError(
            f"{kind} {rule.name}: its key has not been stored",
            hint=f"its owner stores it first: `strongroom cas entrust {of} {rule.name} PATH`",
        )
    access = rule.access_of(replica)
    return {"key": b64(key), "access": access, "policy": of, "freshness": rule.freshness}


def _secrets(store: Store, policy: Policy, now: int) -> dict[str, bytes]:
    """The secrets of a policy by name: all but those that an enclave is still to deposit."""
    plain = as_variable(policy)
    found = {}
    for rule in policy.secrets:
        owner = store.policy(rule.source) if rule.source else policy
        kept = owner.secret(rule.name)
        value = _value(store, owner, kept, now) if kept is not None else None
        if value is None:
            if kept is not None and kept.deposited:
                continue
            raise NotStoredError(
                f"secret {rule.name}: has not been stored",
                hint="an enclave of its policy deposits it first"
                if kept is not None and kept.deposited
                else f"its owner stores it first: `strongroom cas secret {owner.name} {rule.name} < FILE`",
            )
        if rule.name in plain and b"\0" in value:
            raise PolicyError(
                f"secret {rule.name}: holds a zero byte, which no variable and no argument can",
                hint="name it in the content of [[files]] only",
            )
        found[rule.name] = value
    return found


def _value(store: Store, policy: Policy, rule: SecretRule, now: int) -> bytes | None:
    if rule.generate is not None:
        drawn = store.secret_or_new(policy.name, f"generated:{rule.name}", rule.generate, now=now)
        return drawn.hex().encode()
    return store.secret(policy.name, deposit_name(rule.name) if rule.deposited else rule.name)
