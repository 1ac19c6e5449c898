"""Which program on a machine evidence is of, and which others were started there.

1. The launcher says which program asks. Nothing vouches for it here: `appraise` compares the report data, which is over
   that program's measurement too, and so is the word of who asked the TEE.
2. The log of a trust domain replays to RTMR0 to 3 of the claims: then every digest in it was measured, in that order.
   A TPM's log was replayed with its quote (`tpm.py`). A report of SNP has no registers, and there is nothing to replay.

What the registers besides the programs' hold is for the policy's `platforms` to say: a log that replays tells what was
measured, not that it is wanted.
"""

from __future__ import annotations

from dataclasses import replace

from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.launched import PROGRAM_RTMR, programs
from strongroom.attest.parse.td_log import BANK, parse_td_log, replayed
from strongroom.crypto import equal
from strongroom.errors import VerificationError


def launched(claims: Claims, evidence: Evidence) -> Claims:
    """The claims of a machine, with the program that its evidence is of; the others as they are.

    Raises:
        FormatError: the log is none of a trust domain.
        VerificationError: it does not replay to the quote's registers.
    """
    if not evidence.program:
        return claims
    started = _started(claims, evidence.event_log) if evidence.event_log else claims.programs
    return replace(claims, program=evidence.program, programs=started)


def _started(claims: Claims, log: bytes) -> tuple[str, ...]:
    events = parse_td_log(log)
    for name, value in replayed(events).items():
        told = claims.registers.get(name, "")
        if not equal(value.hex().encode(), told.encode()):
            raise VerificationError(
                f"event log: replays {name} to {value.hex()[:16]}..., the quote has {told[:16] or 'none'}...",
                hint="it is the log of another boot, cut short, or changed, or something was measured unlogged",
            )
    return programs(events, PROGRAM_RTMR, BANK)
