"""Appraise what a trust domain runs by its log: does the log explain the quote, and does it end with this program?

1. The claims are of a trust domain, verified.
2. The log parses, and replays to RTMR0 to 3 of the claims: then every digest in it was measured, in that order.
3. RTMR3 was extended by exactly what is wanted, in that order, and by nothing before or after.

What RTMR0 to 2 and MRTD hold is for the policy's `measurements` and `registers` to say, as ever: a log that replays
tells what was measured, not that it is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

from strongroom.attest.claims import Claims
from strongroom.attest.parse.event_log import Event
from strongroom.attest.parse.td_log import Extension, extensions, parse_td_log, replayed
from strongroom.crypto import equal
from strongroom.errors import AttestationError, MeasurementError, VerificationError

_TEES = ("tdx", "simulated")


def appraise_log(claims: Claims, log: bytes, wanted: Sequence[Extension]) -> tuple[Event, ...]:
    """The log's events, each of which is in the registers that the vendor vouches for.

    Args:
        claims: from `verify`.
        log: the firmware's, with the extensions after it; its padding may be there.
        wanted: what must have been measured into RTMR3. Words are not compared.

    Raises:
        AttestationError: the evidence is of another kind.
        FormatError: the log is none of a trust domain.
        VerificationError: it does not replay to the quote's registers.
        MeasurementError: something else was measured into RTMR3.
    """
    # 1
    if claims.tee not in _TEES:
        raise AttestationError(f"event log: got evidence of {claims.tee}, wanted that of {' or '.join(_TEES)}")
    # 2
    events = parse_td_log(log)
    for name, value in replayed(events).items():
        told = claims.registers.get(name, "")
        if not equal(value.hex().encode(), told.encode()):
            raise VerificationError(
                f"event log: replays {name} to {value.hex()[:16]}..., the quote has {told[:16] or 'none'}...",
                hint="it is the log of another boot, cut short, or changed",
            )
    # 3
    found = extensions(events)
    for index, each in enumerate(wanted):
        if index >= len(found):
            raise MeasurementError(f"rtmr3: the {each.what} was not measured", hint="start the program by the launcher")
        if not equal(found[index].digest, each.digest):
            raise MeasurementError(
                f"rtmr3: {each.what}: got {found[index].digest.hex()[:16]}..., wanted {each.digest.hex()[:16]}..."
            )
    if len(found) > len(wanted):
        raise MeasurementError(
            f"rtmr3: extended {len(found)} times, wanted {len(wanted)}",
            hint="something else was measured after the program, or another program was started",
        )
    return events
