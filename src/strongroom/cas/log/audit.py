"""An audit: an owner's entries of a CAS's log with all that is needed to check them offline (docs/spec/cas.md).

Rules:

- Trusted are `cas_root`, the keys of witnesses, and a head seen before, all given by the auditor; nothing in the file.
- Every entry is proved to be in the log under the head, which the CAS signed; every earlier head is proved to be
  extended by it.
- Of each policy the entries are all there, from its first to the last that is shown: each names the one before. That no
  later one is held back is the CAS's word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strongroom.cas.log.entry import LogEntry
from strongroom.cas.log.head import NO_ENTRIES, Head
from strongroom.cas.log.note import Checkpoint, Note, WitnessKey, verify_cas_checkpoint
from strongroom.cas.log.tree import read_hashes, verify_consistency, verify_inclusion
from strongroom.cas.wire import b64, bytes_field, text_field
from strongroom.crypto import PublicKey
from strongroom.errors import FormatError, RollbackError, TamperedError, UsageError, VerificationError

FORMAT = "strongroom-audit-1"
MAX_AUDIT = 1 << 28
MAX_WITNESSED = 64
_MEMBERS = {"format", "cas_root", "key", "checkpoint", "seen", "witnessed", "entries"}


@dataclass(frozen=True)
class Extended:
    """An earlier head, and the proof that the audit's head extends it."""

    head: Head
    proof: tuple[bytes, ...]


@dataclass(frozen=True)
class Witnessed:
    """A head that witnesses cosigned, and the proof that the audit's head extends it."""

    note: Note
    proof: tuple[bytes, ...]


@dataclass(frozen=True)
class Audit:
    """What an audit holds, none of it verified by being here.

    Attributes:
        cas_root: the CAS that it says it is of.
        key: that CAS's root key.
        checkpoint: the head, signed.
        seen: the highest head that the auditor had seen before.
        entries: each with the proof that it is in the log under the head.
    """

    cas_root: str
    key: PublicKey
    checkpoint: Note
    seen: Extended
    witnessed: tuple[Witnessed, ...]
    entries: tuple[tuple[LogEntry, tuple[bytes, ...]], ...]

    def to_bytes(self) -> bytes:
        value = {
            "format": FORMAT,
            "cas_root": self.cas_root,
            "key": b64(self.key.spki),
            "checkpoint": str(self.checkpoint),
            "seen": {"head": str(self.seen.head), "proof": _hex(self.seen.proof)},
            "witnessed": [{"checkpoint": str(one.note), "proof": _hex(one.proof)} for one in self.witnessed],
            "entries": [entry.to_wire() | {"proof": _hex(proof)} for entry, proof in self.entries],
        }
        return json.dumps(value, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Audit:
        """Raises FormatError unless `data` is what `to_bytes` writes, give or take blanks."""
        if len(data) > MAX_AUDIT:
            raise FormatError(f"audit: {len(data)} bytes, wanted at most {MAX_AUDIT}")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise FormatError(f"audit: not a JSON object of the format {FORMAT}")
        if set(value) != _MEMBERS:
            raise FormatError(f"audit: wanted exactly {', '.join(sorted(_MEMBERS))}")
        seen = _objects([value["seen"]], "seen", {"head", "proof"})[0]
        witnessed = _objects(value["witnessed"], "witnessed", {"checkpoint", "proof"})
        if len(witnessed) > MAX_WITNESSED:
            raise FormatError(f"audit: {len(witnessed)} cosigned heads, wanted at most {MAX_WITNESSED}")
        entries = _objects(value["entries"], "entries", None)
        return cls(
            text_field(value, "cas_root"),
            PublicKey(bytes_field(value, "key")),
            Note.parse(text_field(value, "checkpoint")),
            Extended(Head.parse(text_field(seen, "head")), read_hashes(seen["proof"])),
            tuple(Witnessed(Note.parse(text_field(one, "checkpoint")), read_hashes(one["proof"])) for one in witnessed),
            tuple((LogEntry.from_wire(one), read_hashes(one.get("proof"))) for one in entries),
        )


@dataclass(frozen=True)
class WitnessReport:
    """What one witness vouches for: that the log had these first `size` entries at `time` (None: it said nothing)."""

    name: str
    size: int = 0
    time: int | None = None


@dataclass(frozen=True)
class AuditReport:
    """A verified audit.

    Attributes:
        head: the log's.
        seen: the head that was seen before, which it extends.
        policies: the number of entries of each policy.
        witnessed: the first so many entries are vouched for by as many witnesses as were wanted; 0 if none were.
    """

    head: Head
    seen: Head
    policies: Mapping[str, int]
    witnesses: tuple[WitnessReport, ...]
    witnessed: int


def verify_audit(
    audit: Audit, *, cas_root: str, witnesses: Sequence[WitnessKey] = (), quorum: int = 0, seen: Head = NO_ENTRIES
) -> AuditReport:
    """Check all that an audit says.

    Args:
        cas_root: the CAS whose log it must be.
        witnesses: whose cosignatures count.
        quorum: of how many of them a cosignature is wanted.
        seen: a head that the log must extend.

    Raises:
        VerificationError: a signature fails, or too few witnesses have cosigned.
        RollbackError: the head does not extend an earlier one.
        TamperedError: an entry is not in the log, or one of a policy is missing.
        UsageError: the quorum is more than the witnesses, or the audit has no proof from `seen` on.
    """
    if len({key.public for key in witnesses}) != len(witnesses):
        raise UsageError("witnesses: a key is given twice")
    if not 0 <= quorum <= len(witnesses):
        raise UsageError(f"quorum: got {quorum}, wanted at most the {len(witnesses)} witnesses that are given")
    if audit.cas_root != cas_root:
        raise VerificationError(f"audit: is of the CAS {audit.cas_root[:80]}, wanted {cas_root}")
    checkpoint = verify_cas_checkpoint(audit.checkpoint, cas_root, audit.key)
    head = Head(checkpoint.size, checkpoint.root)
    _check_extends(audit.seen.head, head, audit.seen.proof)
    reports = [_witness_report(audit, head, key, cas_root) for key in witnesses]
    if seen not in (NO_ENTRIES, head, audit.seen.head):
        # Equal sizes need no proof of their own to be found different.
        for known in (head, audit.seen.head):
            if known.size == seen.size:
                _check_extends(seen, known, ())
        if seen.size > head.size:
            _check_extends(seen, head, ())
        raise UsageError(
            f"seen: the audit has no proof from {seen.size} entries on",
            hint="export it anew, on the machine that has seen that head",
        )
    for entry, proof in audit.entries:
        if entry.number < 1:
            raise FormatError("log entry: number 0")
        verify_inclusion(entry.leaf, entry.number - 1, head.size, proof, head.root)
    policies = _count([entry for entry, _ in audit.entries])
    vouched = sorted((one.size for one in reports if one.time is not None), reverse=True)
    if len(vouched) < quorum:
        raise VerificationError(
            f"witnesses: {len(vouched)} of {len(witnesses)} have cosigned, wanted {quorum}",
            hint="have them run `strongroom cas witness`, then export the audit anew",
        )
    return AuditReport(head, audit.seen.head, policies, tuple(reports), vouched[quorum - 1] if quorum else 0)


def _witness_report(audit: Audit, head: Head, key: WitnessKey, cas_root: str) -> WitnessReport:
    best = WitnessReport(key.name)
    for one in audit.witnessed:
        time = key.verify(one.note)
        if time is None:
            continue
        # The CAS's own signature is checked too: else a witness could be made to vouch for another log.
        checkpoint: Checkpoint = verify_cas_checkpoint(one.note, cas_root, audit.key)
        _check_extends(Head(checkpoint.size, checkpoint.root), head, one.proof)
        if best.time is None or (checkpoint.size, time) > (best.size, best.time):
            best = WitnessReport(key.name, checkpoint.size, time)
    return best


def _check_extends(old: Head, new: Head, proof: Sequence[bytes]) -> None:
    if old.size > new.size:
        raise RollbackError(
            f"log: has {new.size} entries, and {old.size} were seen: it was rolled back",
            hint="keep both heads: they prove it",
        )
    verify_consistency(old.size, old.root, new.size, new.root, proof)


def _count(entries: Sequence[LogEntry]) -> dict[str, int]:
    """The number of entries of each policy. Raises TamperedError if one is missing or out of order."""
    last: dict[str, int] = {}
    counts: dict[str, int] = {}
    for entry in entries:
        if entry.previous != last.get(entry.policy, 0):
            raise TamperedError(
                f"log entry {entry.number}: follows entry {entry.previous} of {entry.policy[:200]}, "
                f"and {last.get(entry.policy, 0) or 'none'} is shown before it; entries are missing",
                hint="export the audit anew with the key of that policy's administrator",
            )
        last[entry.policy] = entry.number
        counts[entry.policy] = counts.get(entry.policy, 0) + 1
    return counts


def _objects(value: object, name: str, members: set[str] | None) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise FormatError(f"audit: {name}: wanted objects")
    if members is not None and any(set(one) != members for one in value):
        raise FormatError(f"audit: {name}: wanted exactly {', '.join(sorted(members))}")
    return value


def _hex(hashes: Sequence[bytes]) -> list[str]:
    return [one.hex() for one in hashes]
