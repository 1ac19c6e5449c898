"""The administrators that a policy names besides its owner, and what each of them may do (docs/spec/cas.md)."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from strongroom.cas.policy.table import FINGERPRINT, Table

RIGHTS = ("apply", "secrets", "anchors", "log", "revoke", "grants", "certificates")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
RESOURCE = re.compile(rf"(?:secret|vault|sealed):{WORD.pattern}")
MAX_ADMINISTRATORS = 64

# An issuer's address as OpenID Connect Discovery 1.0, section 3, has it: https, no query and no fragment.
ISSUER = re.compile(
    r"https://(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9a-f:]{2,39}\])(?::[1-9][0-9]{0,4})?"
    r"(?:/[A-Za-z0-9._~%+-]+)*/?"
)
SUBJECT = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")  # OpenID Connect Core 1.0, section 2: at most 255 ASCII characters


@dataclass(frozen=True)
class Administrator:
    """Who administers a part of the policy: by a key's fingerprint, or by an issuer and what it calls the person.

    Attributes:
        may: some of `RIGHTS`.
        resources: what secrets and anchors that is about, ``secret:NAME`` and so on; None for all.
    """

    name: str
    key: str | None
    oidc: str | None
    subject: str | None
    may: frozenset[str]
    resources: tuple[str, ...] | None = None

    def allows(self, right: str, resource: str = "") -> bool:
        """Whether this administrator may do that, to that resource if it is about one."""
        return right in self.may and (not resource or self.resources is None or resource in self.resources)


def read_administrators(tables: list[Table], owner: str) -> tuple[Administrator, ...]:
    """The tables `[[administrators]]` of a policy that `owner` owns."""
    if len(tables) > MAX_ADMINISTRATORS:
        tables[0].refuse(f"administrators: got {len(tables)}, wanted at most {MAX_ADMINISTRATORS}")
        tables = tables[:MAX_ADMINISTRATORS]
    found = [_administrator(table) for table in tables]
    names: set[str] = set()
    seen: set[tuple[str | None, ...]] = {(owner, None, None)}
    for table, each in zip(tables, found, strict=True):
        if each.name and each.name in names:
            table.refuse(f"administrators.name: {each.name!r} appears twice", "name")
        names.add(each.name)
        who = (each.key, each.oidc, each.subject)
        if each.key == owner and owner:
            table.refuse("administrators.key: is that of policy.owner, who may do everything", "key")
        elif any(who) and who in seen:
            at = "key" if each.key else "subject"
            table.refuse(f"administrators.{at}: {getattr(each, at)!r} appears twice", at)
        seen.add(who)
    return tuple(found)


def _administrator(table: Table) -> Administrator:
    by_key = "key" in table.value
    if by_key == ("oidc" in table.value):
        has = "both key and oidc" if by_key else "neither key nor oidc"
        table.refuse(f"administrators: has {has}, wanted one of them", "oidc" if by_key else "key")
    for one in ("key", "oidc", "subject"):
        table.take(one, None)  # known here
    key = table.match("key", FINGERPRINT, "a key's fingerprint, sha256:<64 hex>") if by_key else None
    oidc = subject = None
    if "oidc" in table.value and not by_key:
        oidc = table.match("oidc", ISSUER, "an issuer's address that begins with https://")
        subject = table.match("subject", SUBJECT, "what the issuer calls the person, 1 to 255 ASCII characters")
    elif "subject" in table.value:
        table.refuse("administrators.subject: goes with oidc", "subject")
    administrator = Administrator(
        name=table.match("name", WORD, "a word"),
        key=key,
        oidc=oidc,
        subject=subject,
        may=frozenset(_rights(table)),
        resources=table.words("resources", RESOURCE, "secret:NAME, vault:NAME or sealed:NAME")
        if "resources" in table.value
        else table.take("resources", None),
    )
    table.finish()
    return administrator


def _rights(table: Table) -> tuple[str, ...]:
    rights = table.strings("may")
    seen: set[str] = set()
    for right in rights:
        if right not in RIGHTS:
            near = difflib.get_close_matches(right[:80], RIGHTS, 1)
            table.refuse(
                f"administrators.may: got {right[:80]!r}, wanted some of {', '.join(RIGHTS)}",
                "may",
                hint=f"did you mean {near[0]}?" if near else None,
            )
            break  # one problem of a place is told
        if right in seen:
            table.refuse(f"administrators.may: {right!r} appears twice", "may")
            break
        seen.add(right)
    return rights
