"""What an attested enclave receives: its vaults' keys and its secrets (docs/spec/cas.md)."""

from __future__ import annotations

from typing import Any

from strongroom.cas.policy import Policy
from strongroom.cas.store import Store
from strongroom.cas.wire import b64
from strongroom.errors import PolicyError


def vault_key_name(vault: str) -> str:
    """The name of the secret that is a vault's key. The names of other secrets hold no colon."""
    return f"vault:{vault}"


def configuration(store: Store, policy: Policy, now: int) -> dict[str, Any]:
    """The configuration of an enclave of that policy, as JSON; secrets that are drawn are drawn now.

    Raises:
        PolicyError: a key or a secret has not been stored.
    """
    vaults = {}
    for rule in policy.vaults:
        key = store.secret(policy.name, vault_key_name(rule.name))
        if key is None:
            raise PolicyError(f"vault {rule.name}: its key has not been stored", hint="its owner stores it first")
        vaults[rule.name] = {"key": b64(key), "access": rule.access}
    secrets = {}
    for secret in policy.secrets:
        if secret.generate is not None:
            drawn = store.secret_or_new(policy.name, f"generated:{secret.name}", secret.generate, now=now)
            secrets[secret.environment] = drawn.hex()
            continue
        value = store.secret(policy.name, secret.name)
        if value is None:
            raise PolicyError(f"secret {secret.name}: has not been stored", hint="its owner stores it first")
        # As Python's own os.environ holds bytes that are not UTF-8.
        secrets[secret.environment] = value.decode("utf-8", "surrogateescape")
    return {"vaults": vaults, "environment": secrets}
