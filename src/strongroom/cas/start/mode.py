"""Who confirms, after a start, that a CAS's database is the latest: its start mode, which is part of its state.

| mode | before anything is served |
|---|---|
| `owner` | its operators sign the highest heads of the log that they have seen, and the log extends each |
| `witness` | its witnesses cosign the log's head, with a nonce of this start |
| `tpm` | the log extends the head that this machine's TPM remembers |
| `trust-disk` | nothing: whoever can put back an older database has put it back |

Rules:

- The mode is a sealed row of the database, so that whoever starts the CAS cannot choose a weaker one. That there is one
  is marked beside the CA key too: a database of before the row was written does not do.
- A CAS in `trust-disk`, whose disk is trusted with everything, may be given another mode at a start. All other changes
  are voted for by the operators.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.cas.log.head import Head
from strongroom.cas.log.note import WitnessKey
from strongroom.cas.wire import FINGERPRINT
from strongroom.errors import FormatError, RollbackError, UnauthorizedError, UsageError

if TYPE_CHECKING:
    from strongroom.cas.state.ledger import Ledger

Mode = Literal["owner", "witness", "tpm", "trust-disk"]
MODES: tuple[Mode, ...] = ("owner", "witness", "tpm", "trust-disk")
RESERVED = "strongroom/cas"
"""The policy of the CAS itself: its owners are the CAS's operators. In the log, what concerns the CAS as a whole."""

TABLE, ROW = "settings", ("restart", "mode")
_CONFIRM, _CHANGE = b"strongroom/cas/confirm/v1\0", b"strongroom/cas/restart/v1\0"
_NAME = re.compile(r"[0-9a-f]{4,132}", re.ASCII)
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
# TCG, Registry of Reserved TPM 2.0 Handles and Localities, 2.2.1: indices of the TPM's owner.
TPM_INDICES = range(0x01800000, 0x01C00000)
MAX_VOTERS = 32
_MAX_RECORD = 1 << 14


@dataclass(frozen=True)
class Restart:
    """A start mode with what it needs.

    Attributes:
        operators: fingerprints of their keys; they decide about the CAS as a whole, in every mode.
        needed: how many of them it takes.
        witnesses: vkeys of the witnesses that count.
        quorum: of how many of them a cosignature is wanted.
        tpm_index: the TPM's NV index that remembers the head.
        tpm_name: that index's Name (TPM 2.0 part 1, section 16), in hexadecimal digits; empty until it is made.
        tpm_id: 16 bytes drawn when it was made, in hexadecimal digits: no other CAS, nor this one made anew, has the
            index's password.

    Raises:
        UsageError: a mode without what it needs, or with what others need.
    """

    mode: Mode = "trust-disk"
    operators: tuple[str, ...] = ()
    needed: int = 0
    witnesses: tuple[str, ...] = ()
    quorum: int = 0
    tpm_index: int = 0
    tpm_name: str = ""
    tpm_id: str = ""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"restart: got {str(self.mode)[:40]!r}, wanted one of {', '.join(MODES)}")
        _check_votes("operators", self.operators, "--operators-needed", self.needed)
        _check_votes("witnesses", self.witnesses, "--witness-quorum", self.quorum)
        for operator in self.operators:
            if not FINGERPRINT.fullmatch(operator):
                raise UsageError(f"operator: got {operator[:80]!r}, wanted sha256:<64 hex digits>")
        for witness in self.witnesses:
            WitnessKey.parse(witness)
        if self.mode == "owner" and not self.operators:
            raise UsageError("restart owner: no operators", hint="name those who confirm: --operator sha256:...")
        if (self.mode == "witness") != bool(self.witnesses):
            raise UsageError(
                f"restart {self.mode}: {len(self.witnesses)} witnesses that count",
                hint="the mode `witness` takes --witness and --witness-quorum, the others no quorum",
            )
        if (self.mode == "tpm") != bool(self.tpm_index):
            raise UsageError("restart: an index of the TPM belongs to the mode `tpm`, and to no other")
        if self.tpm_index and self.tpm_index not in TPM_INDICES:
            raise UsageError(
                f"tpm index: got {self.tpm_index:#x}, wanted {TPM_INDICES[0]:#x} to {TPM_INDICES[-1]:#x}",
                hint="those are the indices of a TPM's owner",
            )
        if self.tpm_name and not _NAME.fullmatch(self.tpm_name):
            raise UsageError("tpm name: not hexadecimal digits")
        if self.tpm_id and not _ID.fullmatch(self.tpm_id):
            raise UsageError("tpm id: not 32 hexadecimal digits")

    def to_wire(self) -> dict[str, Any]:
        wire: dict[str, Any] = {"mode": self.mode, "operators": list(self.operators), "operators_needed": self.needed}
        if self.mode == "witness":
            wire |= {"witnesses": list(self.witnesses), "witness_quorum": self.quorum}
        if self.mode == "tpm":
            wire |= {"tpm_index": self.tpm_index, "tpm_name": self.tpm_name, "tpm_id": self.tpm_id}
        return wire

    @classmethod
    def from_wire(cls, wire: object) -> Restart:
        """What `to_wire` gave.

        Raises:
            FormatError: it is something else.
            UsageError: it makes no sense.
        """
        kinds = {
            "mode": str,
            "operators": list,
            "operators_needed": int,
            "witnesses": list,
            "witness_quorum": int,
            "tpm_index": int,
            "tpm_name": str,
            "tpm_id": str,
        }
        if not isinstance(wire, dict) or set(wire) - set(kinds) or "mode" not in wire:
            raise FormatError(f"restart: wanted an object of {', '.join(kinds)}")
        for name, value in wire.items():
            if type(value) is not kinds[name]:
                raise FormatError(f"restart.{name}: got {type(value).__name__}, wanted {kinds[name].__name__}")
        lists = [*wire.get("operators", []), *wire.get("witnesses", [])]
        if not all(isinstance(one, str) for one in lists):
            raise FormatError("restart: wanted lists of strings")
        return cls(
            wire["mode"],
            tuple(wire.get("operators", ())),
            wire.get("operators_needed", 0),
            tuple(wire.get("witnesses", ())),
            wire.get("witness_quorum", 0),
            wire.get("tpm_index", 0),
            wire.get("tpm_name", ""),
            wire.get("tpm_id", ""),
        )

    def to_bytes(self) -> bytes:
        return canonical(self.to_wire(), cap=_MAX_RECORD)

    @property
    def told(self) -> str:
        """For a person: the mode and what it waits for."""
        if self.mode == "owner":
            return f"owner, {self.needed} of {len(self.operators)} operators"
        if self.mode == "witness":
            return f"witness, {self.quorum} of {len(self.witnesses)} witnesses"
        return f"tpm, index {self.tpm_index:#x}" if self.mode == "tpm" else self.mode


def _check_votes(what: str, voters: tuple[str, ...], option: str, needed: int) -> None:
    if len(set(voters)) != len(voters) or len(voters) > MAX_VOTERS:
        raise UsageError(f"{what}: got {len(voters)}, wanted at most {MAX_VOTERS}, each once")
    if not (1 <= needed <= len(voters) if voters else needed == 0):
        raise UsageError(f"{what}: {needed} of {len(voters)} needed, wanted at least one and at most all", hint=option)


TRUST_DISK = Restart()


def same_but_name(one: Restart, other: Restart) -> bool:
    """Whether they are equal but for what is known once the TPM's index is made."""
    made = {"tpm_name": "", "tpm_id": ""}
    return one.to_wire() | made == other.to_wire() | made


# The record


def read_restart(store: Ledger) -> Restart | None:
    """The mode that the database holds; None if it holds none, which is `trust-disk`.

    Raises:
        FormatError: a newer version wrote it.
    """
    raw = store.row(TABLE, *ROW)
    return None if raw is None else Restart.from_wire(parse_canonical(raw, cap=_MAX_RECORD))


def restart_stamp(store: Ledger) -> object:
    """What tells the present writing of the mode from every other; None if there is none."""
    return store.row_stamp(TABLE, *ROW)


def write_restart(store: Ledger, restart: Restart, *, by: Sequence[str] = (), now: int) -> None:
    detail: dict[str, object] = {**restart.to_wire(), **({"by": list(by)} if by else {})}
    store.put_row(TABLE, *ROW, restart.to_bytes(), event="restart-mode", policy=RESERVED, detail=detail, now=now)


def agree(recorded: Restart | None, wanted: Restart | None, *, marked: bool) -> Restart:
    """The mode in which a CAS starts.

    Args:
        wanted: what its start was told; None if nothing.
        marked: whether its database holds one, by the mark beside its CA key.

    Raises:
        RollbackError: the database is one of before that.
        UnauthorizedError: another mode was recorded.
    """
    if recorded is None and marked:
        raise RollbackError(
            "restart: this CAS has a start mode, and its database holds none: it was put back",
            hint="the CAS must have its latest database back",
        )
    if recorded is None or (recorded.mode == "trust-disk" and not recorded.operators):
        return wanted or recorded or TRUST_DISK
    if wanted is not None and not same_but_name(recorded, wanted):
        raise UnauthorizedError(
            f"restart: got {wanted.told}, and this CAS's start mode is {recorded.told}",
            hint="start it without --restart and what belongs to it; its operators change it: "
            "`strongroom cas restart-mode`",
        )
    return recorded


# What operators sign


def confirmation(cas_root: str, start: bytes, head: Head, *, named: bool = False) -> bytes:
    """That an operator has seen that head, and no higher one, for the start with that nonce.

    Args:
        named: it is no head that this operator's machine has seen, but one that somebody named.
    """
    return _CONFIRM + canonical({"cas_root": cas_root, "head": str(head), "named": named, "start": start.hex()})


def change(cas_root: str, start: bytes, old: Restart, new: Restart) -> bytes:
    """That an operator wants another start mode, said to the start with that nonce."""
    return _CHANGE + canonical({"cas_root": cas_root, "new": new.to_wire(), "old": old.to_wire(), "start": start.hex()})
