"""The policy: one signed TOML document that says what may run and what it receives.

Rules:

- What is not named is not allowed: an unknown key, an empty list or a missing field is a PolicyError.
- A policy holds no secret; it names them.
- Version n+1 names the digest of version n; who must sign it is in `succession.py`.
- `name` enters the enclave's measurement; the document's digest enters its claims only, because the document holds the
  expected measurement.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from functools import cached_property

from strongroom.attest.reference import ReferenceValues
from strongroom.cas.policy.network import EgressRule, Mesh, check_egress, read_egress, read_mesh
from strongroom.cas.policy.owners import Owners, read_owners
from strongroom.cas.policy.places import (
    MAX_INSTANCES,
    POLICY_NAME,
    PathRule,
    SealedRule,
    VaultRule,
    check_places,
    read_path,
    read_sealed,
    read_vault,
)
from strongroom.cas.policy.program import FileRule, Program, SecretRule, read_file, read_program, read_secret
from strongroom.cas.policy.reference import reference_values
from strongroom.cas.policy.rights import Administrator, read_administrators
from strongroom.cas.policy.table import FINGERPRINT, Problem, Table, parse_toml
from strongroom.cas.policy.templates import parse_template
from strongroom.crypto import PublicKey, Signer, digest
from strongroom.errors import PolicyError, VerificationError

__all__ = [
    "POLICY_NAME",
    "Administrator",
    "EgressRule",
    "FileRule",
    "Mesh",
    "PathRule",
    "Policy",
    "Program",
    "SealedRule",
    "SecretRule",
    "VaultRule",
    "parse_policy",
    "parse_reference",
    "policy_digest",
    "policy_problems",
    "sign_policy",
    "verify_policy",
]

_COMPARED = 200  # names that a mistyped one is compared with: that takes long
_SIGNING_LABEL = b"strongroom/policy/v1\0"
LEASE = 600
"""Seconds that an attestation counts, at most and unless the policy says less."""
MIN_LEASE = 10
MAX_PURPOSE = 200
DELIVERED = {"program", "secrets", "files", "vaults", "sealed", "paths", "mesh", "egress"}
RECIPIENT = re.compile(f"{POLICY_NAME.pattern}|{FINGERPRINT.pattern}")


@dataclass(frozen=True)
class Policy:
    """A parsed policy. Made by `parse_policy` only.

    Attributes:
        owner: the fingerprint of the administrator's key: who applies versions and stores secrets.
        owners: who must sign versions besides; None if only the administrator does.
        expires: when it ends, in Unix seconds: from then on nothing attests, and leases end. None if it does not.
        instances: how many enclaves may live at once; None for any number.
        lease: seconds that an attestation counts.
        purpose: what the imports are asked for.
        recipients: policies and keys that receive the outputs.
        administrators: who may do some of what the owner may.
    """

    name: str
    version: int
    previous: str
    owner: str
    role: str
    reference: ReferenceValues
    program: Program | None
    vaults: tuple[VaultRule, ...]
    secrets: tuple[SecretRule, ...]
    owners: Owners | None
    text: str = field(repr=False)
    expires: int | None = None
    instances: int | None = None
    lease: int = LEASE
    purpose: str = ""
    recipients: tuple[str, ...] = ()
    administrators: tuple[Administrator, ...] = ()
    files: tuple[FileRule, ...] = ()
    sealed: tuple[SealedRule, ...] = ()
    paths: tuple[PathRule, ...] = ()
    mesh: Mesh | None = None
    egress: tuple[EgressRule, ...] = ()

    @cached_property
    def digest(self) -> str:
        """``sha256:<hex>`` of the document's bytes."""
        return policy_digest(self.text)

    def rights(self) -> dict[str, frozenset[str]]:
        """What its administrators may do, by what the log calls them."""
        return {each.key or f"{each.oidc} {each.subject}": each.may for each in self.administrators}

    def vault(self, name: str) -> VaultRule | None:
        return next((v for v in self.vaults if v.name == name), None)

    def sealed_file(self, name: str) -> SealedRule | None:
        return next((s for s in self.sealed if s.name == name), None)

    def secret(self, name: str) -> SecretRule | None:
        return next((s for s in self.secrets if s.name == name), None)


def policy_digest(text: str) -> str:
    """``sha256:<hex>`` of a document's bytes."""
    return "sha256:" + digest(text.encode()).hex()


def sign_policy(text: str, owner: Signer) -> bytes:
    """The owner's signature of a document, 64 bytes."""
    return owner.sign(_SIGNING_LABEL + text.encode())


def verify_policy(text: str, signature: bytes, owner: PublicKey) -> None:
    """Raises VerificationError unless `owner` signed exactly this document."""
    try:
        owner.verify(signature, _SIGNING_LABEL + text.encode())
    except VerificationError as error:
        raise VerificationError(f"policy: {error.message}") from None


def parse_policy(text: str, *, draft: bool = False) -> Policy:
    """Parse and check a document.

    Args:
        draft: let `reference.measurements` be missing, to find out what it shall be.

    Raises:
        PolicyError: malformed, a key that does not exist, a missing one, or an unsafe value.
    """
    return _policy(parse_toml(text), text, draft=draft)


def policy_problems(text: str, *, draft: bool = False) -> list[Problem]:
    """What is wrong with a document: nothing exactly where `parse_policy` succeeds, and at most 100 problems.

    Args:
        draft: as in `parse_policy`.
    """
    problems: list[Problem] = []
    try:
        _policy(parse_toml(text, problems=problems), text, draft=draft)
    except PolicyError as error:  # that of the whole document
        return [Problem((), error)]
    return problems


def parse_reference(text: str) -> ReferenceValues:
    """What a document says that holds a policy's table `[reference]` and nothing else, or only `devices` of that.

    Raises:
        PolicyError: as `parse_policy`.
    """
    top = parse_toml(text)
    reference = reference_values(top.table("reference"), alone=True)
    top.finish()
    return reference


def reference_of(text: str) -> ReferenceValues:
    """The reference values of a whole policy, or of a document that has nothing else.

    Raises:
        PolicyError: it is neither.
    """
    tables = set(parse_toml(text).value)
    if tables == {"reference"}:
        return parse_reference(text)
    if "reference" not in tables:
        raise PolicyError(
            "policy: has no table [reference]",
            hint="a whole policy has one, and a document with that table alone will do: --draft-policy writes it",
        )
    return parse_policy(text).reference


def _policy(top: Table, text: str, *, draft: bool) -> Policy:
    head = top.table("policy")
    owner = head.match("owner", FINGERPRINT, "the fingerprint of the administrator's key, sha256:<64 hex>")
    owners, program, mesh = (top.optional_table(name) for name in ("owners", "program", "mesh"))
    policy = Policy(
        name=head.match("name", POLICY_NAME, "namespace/name in lower case"),
        version=head.positive("version"),
        previous=head.match("previous", re.compile(f"|{FINGERPRINT.pattern}"), "a digest, or empty", default=""),
        owner=owner,
        role=head.choice("role", ("program", "service", "cas", "party")),
        expires=head.moment("expires"),
        instances=head.between("instances", 1, MAX_INSTANCES, default=None),
        lease=head.between("lease", MIN_LEASE, LEASE, default=LEASE),
        purpose=_purpose(head),
        recipients=head.words("recipients", RECIPIENT, "namespace/name of a policy, or a key's sha256:<64 hex>", ()),
        owners=read_owners(owners) if owners else None,
        administrators=read_administrators(top.tables("administrators"), owner),
        reference=_reference(top, draft=draft),
        program=read_program(program) if program else None,
        secrets=tuple(read_secret(t) for t in top.tables("secrets")),
        files=tuple(read_file(t) for t in top.tables("files")),
        vaults=tuple(read_vault(t) for t in top.tables("vaults")),
        sealed=tuple(read_sealed(t) for t in top.tables("sealed")),
        paths=tuple(read_path(t) for t in top.tables("paths")),
        mesh=read_mesh(mesh) if mesh else None,
        egress=tuple(read_egress(t) for t in top.tables("egress")),
        text=text,
    )
    top.finish()
    head.finish()
    _check_party(top, policy)
    _check_names(top, policy)
    _check_mirrors(top, policy)
    check_places(
        top,
        (
            *(("vaults", "mount", number, v.mount) for number, v in enumerate(policy.vaults)),
            *(("sealed", "path", number, s.path) for number, s in enumerate(policy.sealed)),
            *(("files", "path", number, f.path) for number, f in enumerate(policy.files)),
            *(("paths", "path", number, p.path) for number, p in enumerate(policy.paths)),
        ),
    )
    _check_path_vaults(top, policy)
    _check_templates(top, policy)
    _check_replicas(top, policy)
    _check_mesh(top, policy)
    _check_imports(top, policy)
    _check_resources(top, policy)
    check_egress(top, policy.egress)
    return policy


def _reference(top: Table, *, draft: bool) -> ReferenceValues:
    """A party that is no enclave has none: nothing attests as it."""
    head, reference = top.value.get("policy"), top.optional_table("reference")
    if reference is None and isinstance(head, dict) and head.get("role") == "party":
        return ReferenceValues((), ())
    return reference_values(reference or top.table("reference"), draft=draft)


def _purpose(head: Table) -> str:
    purpose = head.text("purpose", default="")
    if "purpose" in head.value and not (purpose.isprintable() and 1 <= len(purpose) <= MAX_PURPOSE):
        head.refuse(f"policy.purpose: wanted 1 to {MAX_PURPOSE} printable characters in one line", "purpose")
    return purpose


def _check_names(top: Table, policy: Policy) -> None:
    """Names and variables are each unique; a vault and a sealed file have one name for their anchors."""
    variables = set(policy.program.environment) if policy.program else set()
    things = set[str]()
    for kind, key, names, taken in (
        ("vaults", "name", [v.name for v in policy.vaults], things),
        ("sealed", "name", [s.name for s in policy.sealed], things),
        ("secrets", "name", [s.name for s in policy.secrets], set[str]()),
        ("secrets", "environment", [s.environment for s in policy.secrets], variables),
    ):
        for place, name in enumerate(names):
            if name and name in taken:
                top.refuse(f"{kind}.{key}: {name[:80]!r} appears twice", kind, place, key)
            taken.add(name)


def _check_party(top: Table, policy: Policy) -> None:
    """A party gets a certificate, and nothing else."""
    if policy.role == "party":
        for kind in sorted(DELIVERED & top.value.keys()):
            top.refuse(f"{kind}: a party's policy has none, since a party receives nothing but its certificate", kind)


def _check_mirrors(top: Table, policy: Policy) -> None:
    mirrors = [place for place, v in enumerate(policy.vaults) if v.access == "mirror"]
    if len(mirrors) > 1 or (mirrors and policy.role != "program"):
        top.refuse(
            f"vaults: {len(mirrors)} mirrors in a {policy.role}'s policy, wanted one in a program's",
            *("vaults", mirrors[-1], "access"),
        )


def _check_path_vaults(top: Table, policy: Policy) -> None:
    """A rule's vault is one of the policy's, that is found nowhere else."""
    taken: set[str] = set()
    for place, rule in enumerate(policy.paths):
        if not rule.vault:
            continue
        vault = policy.vault(rule.vault)
        wrong = (
            "is no vault of this policy"
            if vault is None
            else "is a mirror, which the program does not see"
            if vault.access == "mirror"
            else f"is mounted at {vault.mount[:80]!r}, wanted a vault without mount"
            if vault.mount
            else "appears twice"
            if rule.vault in taken
            else ""
        )
        if wrong:
            top.refuse(f"paths.vault: {str(rule.vault)[:80]!r} {wrong}", "paths", place, "vault")
        taken.add(rule.vault)


def _check_templates(top: Table, policy: Policy) -> None:
    """What has a place for a secret names one of the policy's."""
    program = policy.program or Program(())
    named = {secret.name for secret in policy.secrets}
    known = ", ".join(sorted(named))[:300] or "none"
    templates: list[tuple[str, tuple[str | int, ...]]] = [
        *((text, ("program", "command")) for text in program.command),
        *((text, ("program", "environment", name)) for name, text in program.environment.items()),
        *((file.content, ("files", place, "content")) for place, file in enumerate(policy.files)),
    ]
    for text, at in templates:
        where = ".".join(str(part)[:80] for part in at if isinstance(part, str))
        try:
            unknown = sorted(parse_template(text).names - named)
        except PolicyError as error:
            top.refuse(f"{where}: {error.message.removeprefix('template: ')}", *at, hint=error.hint)
            continue
        if unknown:
            top.refuse(
                f"{where}: ${{secret.{unknown[0]}}} is no secret of this policy",
                *at,
                hint=f"name it in [[secrets]]; there are: {known}",
            )


def _check_replicas(top: Table, policy: Policy) -> None:
    """Writers are numbers that replicas can have."""
    rules: list[tuple[str, int, VaultRule | SealedRule]] = [
        *(("vaults", place, rule) for place, rule in enumerate(policy.vaults)),
        *(("sealed", place, rule) for place, rule in enumerate(policy.sealed)),
    ]
    for kind, place, rule in rules:
        if rule.writers is None:
            continue
        where, highest = (kind, place, "writers"), max(rule.writers, default=0)
        if policy.instances is None:
            top.refuse(f"{kind}.writers: numbers replicas, and policy.instances does not say how many", *where)
        elif highest >= policy.instances:
            top.refuse(
                f"{kind}.writers: got {highest}, wanted numbers below policy.instances, {policy.instances}", *where
            )


def _check_mesh(top: Table, policy: Policy) -> None:
    """What is said of peers is of peers, and tasks are of all replicas."""
    mesh = policy.mesh
    if mesh is None:
        return
    for place, pin in enumerate(mesh.pinned):
        if pin.policy and pin.policy not in (policy.name, *mesh.peers):
            top.refuse(
                f"mesh.pinned.policy: {pin.policy[:80]!r} is no peer",
                *("mesh", "pinned", place, "policy"),
                hint="name it in mesh.peers, too",
            )
    if mesh.tasks and len(mesh.tasks) != policy.instances:
        top.refuse(
            f"mesh.tasks: {len(mesh.tasks)} of them, and policy.instances is {policy.instances or 'not there'}; wanted "
            "one for each replica",
            *("mesh", "tasks"),
        )


def _check_imports(top: Table, policy: Policy) -> None:
    """Whoever imports says what for, and does not from itself."""
    sources = [
        *(("secrets", place, rule.source) for place, rule in enumerate(policy.secrets)),
        *(("vaults", place, rule.source) for place, rule in enumerate(policy.vaults)),
        *(("sealed", place, rule.source) for place, rule in enumerate(policy.sealed)),
    ]
    for kind, place, source in sources:
        if source and source == policy.name:
            top.refuse(f"{kind}.from: is this policy itself", kind, place, "from")
        elif source and not policy.purpose:
            top.refuse(
                f"{kind}.from: needs policy.purpose, what the owner of {source[:80]!r} is asked for it for",
                *(kind, place, "from"),
            )


def _check_resources(top: Table, policy: Policy) -> None:
    """What an administrator is restricted to is there."""
    named = {
        *(f"vault:{v.name}" for v in policy.vaults),
        *(f"sealed:{s.name}" for s in policy.sealed),
        *(f"secret:{s.name}" for s in policy.secrets),
    }
    for place, each in enumerate(policy.administrators):
        unknown = next((resource for resource in each.resources or () if resource not in named), None)
        if unknown is not None:
            near = difflib.get_close_matches(unknown[:80], [*named][:_COMPARED], 1)
            top.refuse(
                f"administrators.resources: {unknown[:80]!r} is nothing of this policy's",
                *("administrators", place, "resources"),
                hint=f"did you mean {near[0]}?" if near else None,
            )
