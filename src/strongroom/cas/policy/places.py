"""What a policy says of sealed things and where the program finds them: vaults, sealed files, rules for paths."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from strongroom.cas.policy.rights import WORD
from strongroom.cas.policy.table import Table

POLICY_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9][a-z0-9._-]{0,62}")
VAULT_ACCESS = ("read-only", "read-write", "mirror")
SEALED_ACCESS = ("read-only", "read-write")
FRESHNESS = ("strict", "grouped")
PATH_RULES = ("encrypted", "authenticated", "ephemeral", "host")
WITH_VAULT = ("encrypted", "authenticated")
_NESTING = frozenset(("vaults", "paths"))  # of what lies in another, the longest path holds
MAX_INSTANCES = 10_000

# Top directories of an enclave that nothing of a policy's may hide or lie in.
TAKEN = frozenset(
    (
        "bin",
        "boot",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "program",
        "run",
        "sbin",
        "sys",
        "tmp",
        "usr",
    )
)


@dataclass(frozen=True)
class VaultRule:
    """A vault that the enclave gets the key of: its name here, where the program finds it, and how.

    With access ``mirror`` it is no vault, but the mirror of what the program trains, which the program does not see.

    Attributes:
        freshness: ``strict``, or ``grouped`` where its anchor may trail the newest commits.
        writers: the replicas that may write, where access is ``read-write``; None for all.
        source: the policy whose vault of this name it is; empty for this policy's own.
    """

    name: str
    mount: str
    access: str
    freshness: str = "strict"
    writers: tuple[int, ...] | None = None
    source: str = ""

    def access_of(self, replica: int | None) -> str:
        """The access that an enclave has which is that replica, or none."""
        return _access(self, replica)


@dataclass(frozen=True)
class SealedRule:
    """A file that is sealed by itself. Its key is stored as ``sealed:NAME``, its anchor under the name.

    The attributes are those of `VaultRule`, with the path of the file in place of the mount.
    """

    name: str
    path: str
    access: str
    freshness: str = "strict"
    writers: tuple[int, ...] | None = None
    source: str = ""

    def access_of(self, replica: int | None) -> str:
        """The access that an enclave has which is that replica, or none."""
        return _access(self, replica)


def _access(rule: VaultRule | SealedRule, replica: int | None) -> str:
    return "read-only" if rule.writers is not None and replica not in rule.writers else rule.access


@dataclass(frozen=True)
class PathRule:
    """How files below a path are kept; of the rules that fit a file, the one with the longest path wins."""

    path: str
    rule: str
    vault: str = ""


def check_path(table: Table, key: str, path: str) -> None:
    """Refuse a path that is not absolute and plain, or is in a directory of the enclave's own."""
    parts, shown = path.split("/"), repr(path[:80])
    if parts[1:2] and parts[1] in TAKEN:
        table.refuse(f"{table.path}.{key}: got {shown}, and /{parts[1]} is the enclave's own", key)
    if parts[0] or not parts[1:] or not all(parts[1:]) or {".", ".."} & set(parts) or not path.isprintable():
        table.refuse(f"{table.path}.{key}: got {shown}, wanted an absolute path without '.' and '..'", key)


def read_vault(table: Table) -> VaultRule:
    """A table of `[[vaults]]`."""
    name = table.match("name", WORD, "a word")
    mount = table.text("mount", default="")
    access = table.choice("access", VAULT_ACCESS)
    if access == "mirror" and mount:
        table.refuse(f"vaults.mount: got {mount[:80]!r}, and a mirror has none", "mount")
    if mount:
        check_path(table, "mount", mount)
    if access == "mirror" and "freshness" in table.value:
        table.refuse("vaults.freshness: a mirror is as fresh as its last commit, wanted none", "freshness")
    rule = VaultRule(name, mount, access, *_shared(table, access))
    table.finish()
    return rule


def read_sealed(table: Table) -> SealedRule:
    """A table of `[[sealed]]`."""
    name = table.match("name", WORD, "a word")
    path = table.text("path")
    if "path" in table.value:
        check_path(table, "path", path)
    access = table.choice("access", SEALED_ACCESS)
    rule = SealedRule(name, path, access, *_shared(table, access))
    table.finish()
    return rule


def read_path(table: Table) -> PathRule:
    """A table of `[[paths]]`."""
    path = table.text("path")
    if "path" in table.value:
        check_path(table, "path", path)
    rule = table.choice("rule", PATH_RULES)
    vault = table.match("vault", WORD, "the name of a vault") if rule in WITH_VAULT else table.take("vault", "")
    if rule in PATH_RULES and rule not in WITH_VAULT and "vault" in table.value:
        table.refuse(f"paths.vault: has no meaning with the rule {rule}, wanted none", "vault")
    table.finish()
    return PathRule(path, rule, vault)


def _shared(table: Table, access: str) -> tuple[str, tuple[int, ...] | None, str]:
    """Freshness, writers and source, which vaults and sealed files have alike."""
    freshness = table.choice("freshness", FRESHNESS, "strict")
    writers = _writers(table, access)
    source = read_source(table)
    if source and access != "read-only":
        table.refuse(f"{table.path}.access: got {access[:80]!r}, and what is imported is read-only", "access")
    return freshness, writers, source


def _writers(table: Table, access: str) -> tuple[int, ...] | None:
    writers = table.take("writers", None)
    if writers is None:
        return None
    where = f"{table.path}.writers"
    if access != "read-write":
        table.refuse(f"{where}: only what is read-write has writers; access is {access[:80]!r}", "writers")
    if not isinstance(writers, list) or not all(type(w) is int and 0 <= w < MAX_INSTANCES for w in writers):
        table.refuse(f"{where}: wanted an array of replicas' numbers, 0 to {MAX_INSTANCES - 1}", "writers")
        return None
    if not writers:
        table.refuse(f"{where}: is empty, and nothing could write; say read-only", "writers")
    if len(set(writers)) != len(writers):
        table.refuse(f"{where}: a replica appears twice", "writers")
    return tuple(writers)


def read_source(table: Table) -> str:
    """The key `from`: a policy that something is imported of, or empty."""
    if "from" not in table.value:
        return str(table.take("from", ""))
    return table.match("from", POLICY_NAME, "the name of a policy, namespace/name")


def check_places(top: Table, things: Iterable[tuple[str, str, int, str]]) -> None:
    """Refuse a place that is another's, or lies in another's; but vaults and rules for paths may lie in each other.

    Args:
        things: of each, the kind, the key, its number, and the path; empty for what has none.
    """
    found = sorted((path + "/", kind, number, key) for kind, key, number, path in things if path)
    # Sorted, what lies in a path follows it, before anything that does not.
    around: list[tuple[str, str]] = []
    for inner, kind, number, key in found:
        while around and not inner.startswith(around[-1][0]):
            around.pop()
        nested = [outer for outer, other in around if outer == inner or not {kind, other} <= _NESTING]
        if nested:
            outer = nested[-1]
            same = "appears twice" if outer == inner else f"lies in {outer[:-1][:80]!r}"
            top.refuse(f"{kind}.{key}: {inner[:-1][:80]!r} {same}", kind, number, key)
        around.append((inner, kind))
