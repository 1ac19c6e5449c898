"""The policy: one signed TOML document that says what may run and what it receives.

Rules:

- What is not named is not allowed: an unknown key, an empty list or a missing field is a PolicyError.
- A policy holds no secret; it names them.
- Version n+1 names the digest of version n; who must sign it is in `succession.py`.
- `name` enters the enclave's measurement; the document's digest enters its claims only, because the document holds the
  expected measurement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from strongroom.attest.reference import ReferenceValues
from strongroom.cas.document import FINGERPRINT, Problem, Table, number, parse_toml
from strongroom.cas.owners import Owners, read_owners
from strongroom.cas.reference import reference_values
from strongroom.crypto import PublicKey, SigningKey, digest
from strongroom.errors import PolicyError, VerificationError

_SIGNING_LABEL = b"strongroom/policy/v1\0"
POLICY_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9][a-z0-9._-]{0,62}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,126}")
_ACCESS = ("read-only", "read-write", "mirror")

# Top directories of an enclave that no vault may hide or lie in.
_TAKEN = frozenset(
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

# What the launcher sets itself, and what makes a program load code or write its keys where the host says so: a policy
# may not set these.
_RESERVED = re.compile(
    r"LD_.*|GLIBC_TUNABLES|GCONV_PATH|LOCPATH|PYTHON.*|STRONGROOM_.*|OPENSSL_.*|SSLKEYLOGFILE|BASH_ENV|ENV|IFS"
    r"|PATH|HOME|TMPDIR"
)

_HARMLESS = ("PYTHONUNBUFFERED", "PYTHONHASHSEED")


@dataclass(frozen=True)
class VaultRule:
    """A vault that the enclave gets the key of: its name here, where the program finds it, and how.

    With access ``mirror`` it is no vault, but the mirror of what the program trains, which the program does not see.
    """

    name: str
    mount: str
    access: str


@dataclass(frozen=True)
class SecretRule:
    """A secret for one of the program's variables; with `generate`, the CAS draws so many bytes on first use."""

    name: str
    environment: str
    generate: int | None = None


@dataclass(frozen=True)
class Program:
    """What runs: a command, the files it consists of (relative to the document) and its environment."""

    command: tuple[str, ...]
    files: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Policy:
    """A parsed policy. Made by `parse_policy` only.

    Attributes:
        owner: the fingerprint of the administrator's key: who applies versions and stores secrets.
        owners: who must sign versions besides; None if only the administrator does.
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

    @property
    def digest(self) -> str:
        """``sha256:<hex>`` of the document's bytes."""
        return policy_digest(self.text)

    def vault(self, name: str) -> VaultRule | None:
        return next((v for v in self.vaults if v.name == name), None)


def policy_digest(text: str) -> str:
    """``sha256:<hex>`` of a document's bytes."""
    return "sha256:" + digest(text.encode()).hex()


def sign_policy(text: str, owner: SigningKey) -> bytes:
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


def _policy(top: Table, text: str, *, draft: bool) -> Policy:
    head = top.table("policy")
    owners = top.optional_table("owners")
    program = top.optional_table("program")
    policy = Policy(
        name=head.match("name", POLICY_NAME, "namespace/name in lower case"),
        version=head.positive("version"),
        previous=head.match("previous", re.compile(f"|{FINGERPRINT.pattern}"), "a digest, or empty", default=""),
        owner=head.match("owner", FINGERPRINT, "the fingerprint of the administrator's key, sha256:<64 hex>"),
        role=head.choice("role", ("program", "service")),
        owners=read_owners(owners) if owners else None,
        reference=reference_values(top.table("reference"), draft=draft),
        program=_program(program) if program else None,
        vaults=tuple(_vault(t) for t in top.tables("vaults")),
        secrets=tuple(_secret(t) for t in top.tables("secrets")),
        text=text,
    )
    for table in (top, head, program):
        if table:
            table.finish()
    _check_names(top, policy)
    _check_mounts(top, policy)
    return policy


def _check_names(top: Table, policy: Policy) -> None:
    """Names, mounts and variables are each unique. An empty one is a mount that is missing, or refused already."""
    variables = set(policy.program.environment) if policy.program else set()
    for kind, key, names, taken in (
        ("vaults", "name", [v.name for v in policy.vaults], set[str]()),
        ("vaults", "mount", [v.mount for v in policy.vaults], set[str]()),
        ("secrets", "name", [s.name for s in policy.secrets], set[str]()),
        ("secrets", "environment", [s.environment for s in policy.secrets], variables),
    ):
        for place, name in enumerate(names):
            if name and name in taken:
                top.refuse(f"{kind}.{key}: {name!r} appears twice", kind, place, key)
            taken.add(name)


def _check_mounts(top: Table, policy: Policy) -> None:
    mirrors = [place for place, v in enumerate(policy.vaults) if v.access == "mirror"]
    if len(mirrors) > 1 or (mirrors and policy.role != "program"):
        top.refuse(
            f"vaults: {len(mirrors)} mirrors in a {policy.role}'s policy, wanted one in a program's",
            *("vaults", mirrors[-1], "access"),
        )
    mounts = sorted((v.mount + "/", place) for place, v in enumerate(policy.vaults) if v.mount)
    for (outer, _), (inner, place) in pairwise(mounts):
        if inner.startswith(outer):
            top.refuse(f"vaults.mount: {inner[:-1]!r} lies in {outer[:-1]!r}", "vaults", place, "mount")


def parse_reference(text: str) -> ReferenceValues:
    """What a document says that holds a policy's table `[reference]` and nothing else, or only `devices` of that.

    Raises:
        PolicyError: as `parse_policy`.
    """
    top = parse_toml(text)
    reference = reference_values(top.table("reference"), alone=True)
    top.finish()
    return reference


def _program(table: Table) -> Program:
    environment = table.optional_table("environment")
    values = dict(environment.value) if environment else {}
    for name, value in values.items():
        _check_variable(table, name, "environment", name)
        if not isinstance(value, str) or "\0" in value:
            table.refuse(f"program.environment.{name}: wanted a string", "environment", name)
    files = table.strings("files", default=())
    for name in files:
        if not name or name.startswith("/") or ".." in name.split("/"):
            table.refuse(f"program.files: got {name[:80]!r}, wanted a path below the document's directory", "files")
    command = table.strings("command")
    if not "".join(command[:1]):
        table.refuse("program.command: starts with an empty string, wanted a program", "command")
    return Program(command, files, values)


def _vault(table: Table) -> VaultRule:
    rule = VaultRule(
        name=table.match("name", _WORD, "a word"),
        mount=table.text("mount", default=""),
        access=table.choice("access", _ACCESS),
    )
    shown = repr(rule.mount[:80])
    if rule.access == "mirror" and rule.mount:
        table.refuse(f"vaults.mount: got {shown}, and a mirror has none", "mount")
    parts = rule.mount.split("/")
    if rule.mount and parts[1:2] and parts[1] in _TAKEN:
        table.refuse(f"vaults.mount: got {shown}, and /{parts[1]} is the enclave's own", "mount")
    if rule.mount and (parts[0] or not all(parts[1:]) or {".", ".."} & set(parts) or not rule.mount.isprintable()):
        table.refuse(f"vaults.mount: got {shown}, wanted an absolute path without '.' and '..'", "mount")
    table.finish()
    return rule


def _secret(table: Table) -> SecretRule:
    generate = table.take("generate", None)
    if generate is not None and (type(generate) is not int or not 16 <= generate <= 1024):
        table.refuse(f"secrets.generate: got {number(generate)}, wanted 16 to 1024 bytes", "generate")
    rule = SecretRule(table.match("name", _WORD, "a word"), table.text("environment"), generate)
    _check_variable(table, rule.environment, "environment")
    table.finish()
    return rule


def _check_variable(table: Table, name: str, *at: str) -> None:
    where = f"{table.path}.environment"
    if not _VARIABLE.fullmatch(name):
        table.refuse(f"{where}: {name[:80]!r} is not the name of an environment variable", *at)
    elif _RESERVED.fullmatch(name) and name not in _HARMLESS:
        table.refuse(f"{where}: {name} may not be set by a policy", *at)
