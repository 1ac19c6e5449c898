"""What changed in what a policy gives and allows, as `difference` says the rest."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from strongroom.cas.policy.network import EgressRule, Mesh, Pinned
from strongroom.cas.policy.places import PathRule, SealedRule, VaultRule
from strongroom.cas.policy.program import FileRule, SecretRule
from strongroom.cas.policy.rights import Administrator

Effect = Literal["more", "less", "other"]
_ACCESS = {"read-only": "only read", "read-write": "read and write", "mirror": "write as its mirror"}
_RULES = {
    "encrypted": "encrypted in the vault {}",
    "authenticated": "in the vault {}, for the host to read",
    "ephemeral": "in memory, gone with the enclave",
    "host": "the host's own files, which it reads and changes",
}
T = TypeVar("T")


@dataclass(frozen=True)
class Change:
    """One thing that is not as before.

    Attributes:
        key: where in the document.
        effect: ``more`` if the new version accepts, gives or allows more than the old one, ``less`` if it does less.
        text: what changed.
    """

    key: str
    effect: Effect
    text: str


def changed_limits(
    old: tuple[int | None, int | None, int], new: tuple[int | None, int | None, int]
) -> Iterator[Change]:
    """Of expiry, instances and lease."""
    for key, before, after, without in (
        ("policy.expires", _moment(old[0]), _moment(new[0]), "never"),
        ("policy.instances", _count(old[1]), _count(new[1]), "any number"),
        ("policy.lease", (old[2], f"{old[2]} s"), (new[2], f"{new[2]} s"), ""),
    ):
        if before == after:
            continue
        more = after is None or (before is not None and before[0] < after[0])
        was, now = (without if each is None else each[1] for each in (before, after))
        yield Change(key, "more" if more else "less", f"was {was}, is {now}")


def _moment(seconds: int | None) -> tuple[int, str] | None:
    return None if seconds is None else (seconds, moment(seconds))


def moment(seconds: int) -> str:
    """Unix seconds as a document writes a date-time, in UTC."""
    at = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)
    return at.replace(tzinfo=None).isoformat() + "Z"


def _count(number: int | None) -> tuple[int, str] | None:
    return None if number is None else (number, str(number))


def changed_recipients(old: tuple[str, ...], new: tuple[str, ...]) -> Iterator[Change]:
    for one in new:
        if one not in old:
            yield Change("policy.recipients", "more", f"{one} receives the outputs")
    for one in old:
        if one not in new:
            yield Change("policy.recipients", "less", f"{one} does not receive the outputs any more")


def changed_administrators(old: Sequence[Administrator], new: Sequence[Administrator]) -> Iterator[Change]:
    for name, before, after in _pairs({a.name: a for a in old}, {a.name: a for a in new}):
        key = f"administrators.{name}"
        if before is None and after is not None:
            yield Change(key, "more", f"{_who(after)} may {_rights(after)}")
        elif after is None:
            yield Change(key, "less", "is no administrator any more")
        elif before is not None:
            if _who(before) != _who(after):
                yield Change(key, "other", f"is another: was {_who(before)}, is {_who(after)}")
            for right in sorted(after.may - before.may):
                yield Change(f"{key}.may", "more", f"may {right} too")
            for right in sorted(before.may - after.may):
                yield Change(f"{key}.may", "less", f"may not {right} any more")
            if before.resources != after.resources:
                was, now = (
                    "everything" if each is None else ", ".join(each) for each in (before.resources, after.resources)
                )
                effect = _set_effect(before.resources, after.resources)
                yield Change(f"{key}.resources", effect, f"was for {was}, is for {now}")


def _who(administrator: Administrator) -> str:
    return administrator.key or f"{administrator.subject} of {administrator.oidc}"


def _rights(administrator: Administrator) -> str:
    rights = ", ".join(sorted(administrator.may))
    return rights + (f" for {', '.join(administrator.resources)}" if administrator.resources else " for everything")


def _set_effect(old: Sequence[object] | None, new: Sequence[object] | None) -> Effect:
    """Of the members that are allowed, where None stands for all there are."""
    if new is None or (old is not None and set(old) < set(new)):
        return "more"
    return "less" if old is None or set(new) < set(old) else "other"


def changed_vaults(
    old: Sequence[VaultRule | SealedRule], new: Sequence[VaultRule | SealedRule], kind: str
) -> Iterator[Change]:
    for name, before, after in _pairs({v.name: v for v in old}, {v.name: v for v in new}):
        key, place = f"{kind}.{name}", "mount" if kind == "vaults" else "path"
        if before is None and after is not None:
            at = f" at {_place(after)}" if _place(after) else ""
            source = f", of {after.source}" if after.source else ""
            writers = "" if after.writers is None else f"; who writes it: replica {_numbers(after.writers)}"
            yield Change(key, "more", f"the enclave gets its key, to {_ACCESS[after.access]} it{at}{source}{writers}")
            if after.freshness != "strict":
                yield Change(f"{key}.freshness", "more", "its newest commits may be taken back unseen")
        elif after is None:
            yield Change(key, "less", "the enclave does not get its key any more")
        elif before is not None:
            yield from _changed_vault(before, after, key, place)


def _changed_vault(
    before: VaultRule | SealedRule, after: VaultRule | SealedRule, key: str, place: str
) -> Iterator[Change]:
    if before.access != after.access:
        effects: dict[str, Effect] = {"read-only": "less", "read-write": "more"}
        effect = "other" if before.access == "mirror" else effects.get(after.access, "other")
        text = f"the enclave may {_ACCESS[after.access]} it; before it could {_ACCESS[before.access]} it"
        yield Change(f"{key}.access", effect, text)
    if _place(before) != _place(after):
        was, now = (path or "not mounted" for path in (_place(before), _place(after)))
        yield Change(f"{key}.{place}", "other", f"was {was}, is {now}")
    if before.freshness != after.freshness:
        looser = after.freshness == "grouped"
        text = "its newest commits may be taken back unseen" if looser else "no commit can be taken back unseen"
        yield Change(f"{key}.freshness", "more" if looser else "less", text)
    if before.writers != after.writers and before.access == after.access:
        was, now = (
            "every replica" if each is None else f"replica {_numbers(each)}" for each in (before.writers, after.writers)
        )
        yield Change(f"{key}.writers", _set_effect(before.writers, after.writers), f"was {was}, is {now}")
    if before.source != after.source:
        yield _other_source(before.source, after.source, key)


def _numbers(writers: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(writers)))


def _place(rule: VaultRule | SealedRule) -> str:
    return rule.mount if isinstance(rule, VaultRule) else rule.path


def _other_source(old: str, new: str, key: str) -> Change:
    was, now = (f"{each}'s" if each else "this policy's own" for each in (old, new))
    return Change(f"{key}.from", "more" if new else "other", f"was {was}, is {now}")


def changed_secrets(old: Sequence[SecretRule], new: Sequence[SecretRule]) -> Iterator[Change]:
    for name, before, after in _pairs({s.name: s for s in old}, {s.name: s for s in new}):
        key = f"secrets.{name}"
        if before is None and after is not None:
            way = f" as {after.environment}" if after.environment else " where a template names it"
            yield Change(key, "more", f"the enclave gets it{way}, {_origin(after)}")
            if after.deposited:
                yield Change(f"{key}.deposited", "more", "an enclave may write it")
        elif after is None:
            yield Change(key, "less", "the enclave does not get it any more")
        elif before is not None:
            if before.environment != after.environment:
                was, now = (each or "no variable" for each in (before.environment, after.environment))
                yield Change(f"{key}.environment", "other", f"was {was}, is {now}")
            if before.generate != after.generate:
                yield Change(f"{key}.generate", "other", f"was {_origin(before)}, is {_origin(after)}")
            if before.deposited != after.deposited:
                text = "an enclave may write it" if after.deposited else "no enclave may write it any more"
                yield Change(f"{key}.deposited", "more" if after.deposited else "less", text)
            if before.source != after.source:
                yield _other_source(before.source, after.source, key)


def _origin(rule: SecretRule) -> str:
    if rule.source:
        return f"of {rule.source}"
    if rule.generate is not None:
        return f"{rule.generate} bytes drawn by the CAS"
    return "deposited by an enclave" if rule.deposited else "stored by its owner"


def changed_files(old: Sequence[FileRule], new: Sequence[FileRule]) -> Iterator[Change]:
    for path, before, after in _pairs({f.path: f for f in old}, {f.path: f for f in new}):
        key = f"files.{path}"
        if before is None and after is not None:
            yield Change(key, "other", f"is written, mode {after.mode:04o}: {after.content!r}")
        elif after is None:
            yield Change(key, "other", "is not written any more")
        elif before is not None:
            if before.content != after.content:
                yield Change(f"{key}.content", "other", f"was {before.content!r}, is {after.content!r}")
            if before.mode != after.mode:
                yield Change(f"{key}.mode", "other", f"was {before.mode:04o}, is {after.mode:04o}")


def changed_paths(old: Sequence[PathRule], new: Sequence[PathRule]) -> Iterator[Change]:
    for path, before, after in _pairs({p.path: p for p in old}, {p.path: p for p in new}):
        was, now = (_kept(rule) for rule in (before, after))
        if was == now:
            continue
        bare = ("host", "authenticated")
        opens = after is not None and after.rule in bare and (before is None or before.rule != after.rule)
        closes = before is not None and before.rule in bare and (after is None or after.rule not in bare)
        yield Change(f"paths.{path}", "more" if opens else "less" if closes else "other", f"was {was}, is {now}")


def _kept(rule: PathRule | None) -> str:
    return "under no rule" if rule is None else _RULES[rule.rule].format(rule.vault)


def changed_mesh(old: Mesh | None, new: Mesh | None) -> Iterator[Change]:
    before, after = old or Mesh(), new or Mesh()
    for peer in after.peers:
        if peer not in before.peers:
            yield Change("mesh.peers", "more", f"{peer} is a peer")
    for peer in before.peers:
        if peer not in after.peers:
            yield Change("mesh.peers", "less", f"{peer} is no peer any more")
    for name, was, now in _pairs({p.name: p for p in before.publish}, {p.name: p for p in after.publish}):
        key = f"mesh.publish.{name}"
        if was is None and now is not None:
            yield Change(key, "more", f"outsiders reach port {now.port}")
        elif now is None:
            yield Change(key, "less", "outsiders do not reach it any more")
        elif was is not None and was != now:
            yield Change(key, "other", f"was port {was.port}, is port {now.port}")
    for policy, pin, pin_now in _pairs({p.policy: p for p in before.pinned}, {p.policy: p for p in after.pinned}):
        if pin != pin_now:
            yield from _changed_pin(policy, pin or Pinned(policy), pin_now or Pinned(policy))
    if before.tasks != after.tasks:
        said = [", ".join(each) or "workers all" for each in (before.tasks, after.tasks)]
        yield Change("mesh.tasks", "other", f"were {said[0]}, are {said[1]}")
    if old is not None and new is not None and before.transport != after.transport:
        yield Change("mesh.transport", "other", f"was {before.transport}, is {after.transport}")


def _changed_pin(policy: str, before: Pinned, after: Pinned) -> Iterator[Change]:
    """An empty list holds it to nothing."""
    lists: tuple[tuple[str, Sequence[str | int], Sequence[str | int], str], ...] = (
        ("measurements", before.measurements, after.measurements, "any that its policy accepts"),
        ("ports", before.ports, after.ports, "any port"),
    )
    for what, was, now, everything in lists:
        if set(was) == set(now):
            continue
        more = not now or (was and set(now) - set(was))
        less = not was or (now and set(was) - set(now))
        effect: Effect = "other" if more and less else "more" if more else "less"
        said = [", ".join(str(one)[:16] for one in each) or everything for each in (was, now)]
        yield Change(f"mesh.pinned.{policy}.{what}", effect, f"was {said[0]}, is {said[1]}")


def changed_egress(old: Sequence[EgressRule], new: Sequence[EgressRule]) -> Iterator[Change]:
    rules = [{_host(rule): rule for rule in each} for each in (old, new)]
    for host, before, after in _pairs(*rules):
        key = f"egress.{host}"
        if before is None and after is not None:
            yield Change(key, "more", f"the program may reach it, vouched for by {_root(after)}{_judge(after)}")
        elif after is None:
            yield Change(key, "less", "the program may not reach it any more")
        elif before is not None:
            if before.root != after.root:
                effect: Effect = "more" if after.ca == "system" else "less" if before.ca == "system" else "other"
                yield Change(f"{key}.ca", effect, f"was {_root(before)}, is {_root(after)}")
            if before.tls != after.tls:
                effect = "more" if after.tls == "program" else "less"
                yield Change(f"{key}.tls", effect, f"the {before.tls} judged it, the {after.tls} does")


def _host(rule: EgressRule) -> str:
    return f"[{rule.host}]:{rule.port}" if ":" in rule.host else f"{rule.host}:{rule.port}"


def _root(rule: EgressRule) -> str:
    return "any of the system's roots" if rule.ca == "system" else f"the root {rule.root}"


def _judge(rule: EgressRule) -> str:
    return "" if rule.tls == "enclave" else ", if the program looks"


def _pairs(old: Mapping[str, T], new: Mapping[str, T]) -> Iterator[tuple[str, T | None, T | None]]:
    for name in sorted({*old, *new}):
        yield name, old.get(name), new.get(name)
