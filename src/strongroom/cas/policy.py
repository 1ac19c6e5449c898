"""The policy: one signed TOML document that says what may run and what it receives.

Rules:

- What is not named is not allowed: an unknown key, an empty list or a missing field is a PolicyError.
- A policy holds no secret; it names them.
- Version n+1 names the digest of version n and is signed by the owner that version n names.
- `name` enters the enclave's measurement; the document's digest enters its claims only, because the document holds the
  expected measurement.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from strongroom.attest.appraise import ReferenceValues
from strongroom.crypto import PublicKey, SigningKey, digest
from strongroom.errors import PolicyError, StrongroomError, UnauthorizedError, VerificationError

MAX_DOCUMENT = 1 << 18
_MAX_DOTS = 16
_SIGNING_LABEL = b"strongroom/policy/v1\0"
POLICY_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9][a-z0-9._-]{0,62}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,126}")
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
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

# Strings and comments of TOML (https://toml.io/en/v1.0.0). An open one reaches to its line's or the document's end.
_QUOTED = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"{3,5}|\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\.)*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+",
    re.DOTALL,
)


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
    """A parsed policy. Made by `parse_policy` only."""

    name: str
    version: int
    previous: str
    owner: str
    role: str
    reference: ReferenceValues
    program: Program | None
    vaults: tuple[VaultRule, ...]
    secrets: tuple[SecretRule, ...]
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


def check_succession(new: Policy, current: Policy | None) -> None:
    """Check that `new` may follow `current` (None: that it may be the first version).

    Raises:
        PolicyError: version or previous digest do not continue the chain.
        UnauthorizedError: it names another owner.
    """
    wanted = (1, "") if current is None else (current.version + 1, current.digest)
    if (new.version, new.previous) != wanted:
        raise PolicyError(
            f"version, previous: got {new.version}, {new.previous or 'none'}, "
            f"wanted {wanted[0]}, {wanted[1] or 'none'}",
            hint="a version follows the one that the CAS holds now",
        )
    if current is not None and new.owner != current.owner:
        raise UnauthorizedError(
            f"owner: got {new.owner}, wanted {current.owner}",
            hint="a policy keeps its owner; store it under another name",
        )


def parse_policy(text: str, *, draft: bool = False) -> Policy:
    """Parse and check a document.

    Args:
        draft: let `reference.measurements` be missing, to find out what it shall be.

    Raises:
        PolicyError: malformed, a key that does not exist, a missing one, or an unsafe value.
    """
    document = _parse_toml(text)
    top = _Table(document, "policy document")
    head = top.table("policy")
    reference = top.table("reference")
    program = top.optional_table("program")
    policy = Policy(
        name=head.match("name", POLICY_NAME, "namespace/name in lower case"),
        version=head.positive("version"),
        previous=head.match("previous", re.compile(f"|{_FINGERPRINT.pattern}"), "a digest, or empty", default=""),
        owner=head.match("owner", _FINGERPRINT, "the fingerprint of the owner's key, sha256:<64 hex>"),
        role=head.choice("role", ("program", "service")),
        reference=_reference(reference, draft=draft),
        program=_program(program) if program else None,
        vaults=tuple(_vault(t) for t in top.tables("vaults")),
        secrets=tuple(_secret(t) for t in top.tables("secrets")),
        text=text,
    )
    for table in (top, head, reference, program):
        if table:
            table.finish()
    variables = list(policy.program.environment) if policy.program else []
    for kind, names in (
        ("vaults.name", [v.name for v in policy.vaults]),
        ("vaults.mount", [v.mount for v in policy.vaults if v.mount]),
        ("secrets.name", [s.name for s in policy.secrets]),
        ("secrets.environment", [s.environment for s in policy.secrets] + variables),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                raise PolicyError(f"{kind}: {name!r} appears twice")
    mirrors = [v.name for v in policy.vaults if v.access == "mirror"]
    if len(mirrors) > 1 or (mirrors and policy.role != "program"):
        raise PolicyError(f"vaults: {len(mirrors)} mirrors in a {policy.role}'s policy, wanted one in a program's")
    mounts = sorted(v.mount + "/" for v in policy.vaults if v.mount)
    for outer, inner in pairwise(mounts):
        if inner.startswith(outer):
            raise PolicyError(f"vaults.mount: {inner[:-1]!r} lies in {outer[:-1]!r}")
    return policy


def parse_reference(text: str) -> ReferenceValues:
    """What a document says that holds a policy's table `[reference]` and nothing else.

    Raises:
        PolicyError: as `parse_policy`.
    """
    top = _Table(_parse_toml(text), "policy document")
    table = top.table("reference")
    reference = _reference(table, draft=False)
    for each in (top, table):
        each.finish()
    return reference


def _parse_toml(text: str) -> dict[str, Any]:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise PolicyError("policy: holds a lone surrogate, wanted Unicode text") from None
    if size > MAX_DOCUMENT:
        raise PolicyError(f"policy: {size} bytes, the limit is {MAX_DOCUMENT}")
    # The parser takes time quadratic in the parts of a dotted key: 7 s for 40 KB. No policy needs long ones.
    for line in _QUOTED.sub("", text).split("\n"):
        if line.count(".") > _MAX_DOTS:
            raise PolicyError(f"policy: {line.count('.')} dots in one line outside strings, the limit is {_MAX_DOTS}")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
        raise PolicyError(f"policy: not TOML: {str(error)[:200]}") from None


def _reference(table: _Table, *, draft: bool) -> ReferenceValues:
    if table.value.get("allow_simulated") is True:
        raise PolicyError(
            "reference.allow_simulated: got true, wanted the digest of one vendor root",
            hint="true would accept anybody's simulation; `strongroom cas status` prints this user's digest",
        )
    simulated = table.match("allow_simulated", re.compile(f"|{_FINGERPRINT.pattern}"), "sha256:<64 hex>", default="")
    tees = table.strings("tees")
    measurements = table.strings("measurements", default=() if draft else _MISSING)
    statuses = table.strings("tcb_statuses", default=("UpToDate",))
    advisories = table.strings("advisories_allowed", default=())
    try:
        return ReferenceValues(tees, measurements, statuses, advisories, simulated or None)
    except StrongroomError as error:
        raise PolicyError(f"reference.{error.message}", hint=error.hint) from None


def _program(table: _Table) -> Program:
    environment = table.optional_table("environment")
    values = dict(environment.value) if environment else {}
    for name, value in values.items():
        _check_variable(name, "program.environment")
        if not isinstance(value, str) or "\0" in value:
            raise PolicyError(f"program.environment.{name}: wanted a string")
    files = table.strings("files", default=())
    for name in files:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise PolicyError(f"program.files: got {name[:80]!r}, wanted a path below the document's directory")
    command = table.strings("command")
    if not command[0]:
        raise PolicyError("program.command: starts with an empty string, wanted a program")
    return Program(command, files, values)


def _vault(table: _Table) -> VaultRule:
    rule = VaultRule(
        name=table.match("name", _WORD, "a word"),
        mount=table.text("mount", default=""),
        access=table.choice("access", _ACCESS),
    )
    if rule.access == "mirror" and rule.mount:
        raise PolicyError(f"vaults.mount: got {rule.mount[:80]!r}, and a mirror has none")
    parts = rule.mount.split("/")
    if rule.mount and parts[1:2] and parts[1] in _TAKEN:
        raise PolicyError(f"vaults.mount: got {rule.mount[:80]!r}, and /{parts[1]} is the enclave's own")
    if rule.mount and (parts[0] or not all(parts[1:]) or {".", ".."} & set(parts) or not rule.mount.isprintable()):
        raise PolicyError(f"vaults.mount: got {rule.mount[:80]!r}, wanted an absolute path without '.' and '..'")
    table.finish()
    return rule


def _secret(table: _Table) -> SecretRule:
    generate = table.take("generate", None)
    if generate is not None and (type(generate) is not int or not 16 <= generate <= 1024):
        raise PolicyError(f"secrets.generate: got {_number(generate)}, wanted 16 to 1024 bytes")
    rule = SecretRule(table.match("name", _WORD, "a word"), table.text("environment"), generate)
    _check_variable(rule.environment, "secrets.environment")
    table.finish()
    return rule


def _check_variable(name: str, where: str) -> None:
    if not _VARIABLE.fullmatch(name):
        raise PolicyError(f"{where}: {name[:80]!r} is not the name of an environment variable")
    if _RESERVED.fullmatch(name) and name not in _HARMLESS:
        raise PolicyError(f"{where}: {name} may not be set by a policy")


def _number(value: object) -> str:
    # Hexadecimal numbers may be longer than Python agrees to print.
    return str(value) if isinstance(value, int) and abs(value) < 1 << 63 else type(value).__name__


_MISSING: Any = object()


class _Table:
    """A TOML table whose every key must be taken."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise PolicyError(f"{path}: got {type(value).__name__}, wanted a table")
        self.value = value
        self.path = path
        self._taken: set[str] = set()

    def take(self, key: str, default: Any = _MISSING) -> Any:
        self._taken.add(key)
        value = self.value.get(key, default)
        if value is _MISSING:
            raise PolicyError(f"{self.path}.{key}: missing")
        return value

    def finish(self) -> None:
        unknown = sorted(set(self.value) - self._taken)
        if unknown:
            known = ", ".join(sorted(self._taken))
            raise PolicyError(f"{self.path}: unknown key {unknown[0][:80]!r}; known here: {known}")

    def table(self, key: str) -> _Table:
        return _Table(self.take(key), key)

    def optional_table(self, key: str) -> _Table | None:
        value = self.take(key, None)
        return None if value is None else _Table(value, key)

    def tables(self, key: str) -> list[_Table]:
        value = self.take(key, [])
        if not isinstance(value, list):
            raise PolicyError(f"{key}: wanted an array of tables, [[{key}]]")
        return [_Table(item, key) for item in value]

    def text(self, key: str, default: Any = _MISSING) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or len(value) > 4096:
            raise PolicyError(
                f"{self.path}.{key}: got {type(value).__name__}, wanted a string of at most 4096 characters"
            )
        return value

    def match(self, key: str, pattern: re.Pattern[str], wanted: str, default: Any = _MISSING) -> str:
        value = self.text(key, default)
        if not pattern.fullmatch(value):
            raise PolicyError(f"{self.path}.{key}: got {value[:80]!r}, wanted {wanted}")
        return value

    def choice(self, key: str, options: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in options:
            raise PolicyError(f"{self.path}.{key}: got {value[:80]!r}, wanted {' or '.join(options)}")
        return value

    def positive(self, key: str) -> int:
        value = self.take(key)
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise PolicyError(f"{self.path}.{key}: got {_number(value)}, wanted a positive whole number")
        return value

    def strings(self, key: str, default: Any = _MISSING) -> tuple[str, ...]:
        value = self.take(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) and "\0" not in v for v in value):
            raise PolicyError(f"{self.path}.{key}: wanted an array of strings")
        if not value and default is _MISSING:
            raise PolicyError(f"{self.path}.{key}: is empty, and nothing would pass it")
        return tuple(value)
