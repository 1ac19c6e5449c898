"""Appraise claims: does a policy want what the vendor vouches for?

1. Simulated: only under the very vendor root that the policy names. A device under another root than its maker's is
   simulated.
2. Debug: never. Migratable, and other weaknesses of an enclave's isolation: only those that the policy lists.
3. The TEE is one that the policy lists, under its own vendor's root. A device by itself is no enclave.
4. The report data is what the verifier computed for this channel, nonce, kind and claims; of a program on a machine,
   over the program's measurement too.
5. The measurement is one that the policy lists; so is the signer, and each register that the policy names. Of a machine
   that the policy has a platform for, the measurement is the program's, the platform's registers are those that the
   policy lists, and no other programs were started there than it allows.
6. The platform's TCB status is one that the policy lists, and so is every advisory; its versions are high enough, of
   its product where the policy tells them by product. If the policy requires it, revocation was checked throughout.
7. The processor is one that the policy lists, if it lists any.
8. The evidence is no older than the policy says. With such a limit, evidence that its vendor does not date is refused.
9. Each device by steps 1 to 8, under the same report data; there are devices if the policy wants some, as many as it
   says if it says so, and else none.

The order is part of the contract: the first failure is the one that `appraise` raises. `steps` goes on after it, for a
person who wants to see them all.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from strongroom.attest.appraise_tcb import tcb_steps
from strongroom.attest.binding import REPORT_DATA_SIZE, bound_data, difference, launched_data
from strongroom.attest.claims import Claims
from strongroom.attest.evidence import DEVICES
from strongroom.attest.reference import ANY, ReferenceValues
from strongroom.attest.step import NOT_ASKED, Step, listed, one_of
from strongroom.attest.verify.anchors import VENDORS
from strongroom.crypto import equal
from strongroom.errors import (
    AttestationError,
    BindingError,
    DebugEnclaveError,
    ExpiredError,
    MeasurementError,
    SimulatedEnclaveError,
    UsageError,
)

__all__ = ["AttestationResult", "ReferenceValues", "Step", "appraise", "device_steps", "steps"]

_INTEL = frozenset({VENDORS.intel.fingerprint})
_AMD = frozenset(root.fingerprint for root in VENDORS.amd.values())
# Step 3: under whose root each kind of hardware is. A TPM's is the policy's, a simulated enclave's was step 1.
_ROOTS = {
    "sgx": _INTEL,
    "tdx": _INTEL,
    "azure-tdx": _INTEL,
    "snp": _AMD,
    "azure-snp": _AMD,
    "nitro": frozenset({VENDORS.nitro.fingerprint}),
    "nvidia": frozenset({VENDORS.nvidia.fingerprint}),
}
_ANOTHER = "another program, configuration or version runs there; add its measurement to the policy to accept it"
# A vendor's clock may be ahead of the verifier's by this much.
_SKEW = 60

_ISSUED_BY_APPRAISE = object()


@dataclass(frozen=True)
class AttestationResult:
    """Evidence was verified, appraised, and is what the policy wants. Only `appraise` makes one.

    Attributes:
        tee, vendor_root, tcb_status: as in `Claims`.
        measurement: as in `Claims`; of a program on a machine, the program's.
        appraised_at: seconds since 1970, by the verifier's clock. Two results may be equal though it differs.
        devices: the results of its devices.
        weaknesses: those that it has and the policy accepts, ``migratable`` among them.
        advisories: those that apply to it and the policy accepts.
        platform: of a program on a machine, the machine's measurement; else empty.
    """

    tee: str
    measurement: str
    vendor_root: str
    tcb_status: str
    appraised_at: int = field(compare=False)
    devices: tuple[AttestationResult, ...] = ()
    weaknesses: tuple[str, ...] = ()
    advisories: tuple[str, ...] = ()
    platform: str = ""
    _token: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._token is not _ISSUED_BY_APPRAISE:
            raise TypeError("AttestationResult: only appraise makes one")


def appraise(claims: Claims, reference: ReferenceValues, *, expected_report_data: bytes, now: int) -> AttestationResult:
    """Compare verified claims with reference values, in the order at the top of this file.

    Args:
        claims: from `verify`.
        reference: what the policy accepts.
        expected_report_data: what `binding.report_data` gives for this channel, computed by the verifier itself.
        now: seconds since 1970, noted in the result.

    Raises:
        SimulatedEnclaveError, DebugEnclaveError, AttestationError, BindingError, MeasurementError, TcbError,
        ExpiredError: that step does not hold.
        UsageError: `expected_report_data` is not 64 bytes.
    """
    if not isinstance(expected_report_data, bytes) or len(expected_report_data) != REPORT_DATA_SIZE:
        got = f"{len(expected_report_data)} bytes" if isinstance(expected_report_data, bytes) else "no bytes"
        raise UsageError(f"expected_report_data: got {got}, wanted {REPORT_DATA_SIZE}, as binding.report_data gives")
    for step in steps(claims, reference, expected=lambda each: bound(each, expected_report_data), now=now):
        if step.error is not None:
            raise step.error
    return _result(claims, now)


def bound(claims: Claims, report_data: bytes) -> bytes:
    """What evidence with these claims holds of 64 bytes of report data: a launcher's is over its program too."""
    return bound_data(claims.tee, launched_data(report_data, claims.program) if claims.program else report_data)


def _result(claims: Claims, now: int) -> AttestationResult:
    return AttestationResult(
        claims.tee,
        claims.program or claims.measurement,
        claims.vendor_root,
        claims.tcb_status,
        now,
        tuple(_result(device, now) for device in claims.devices),
        claims.all_weaknesses,
        claims.advisories,
        claims.measurement if claims.program else "",
        _ISSUED_BY_APPRAISE,
    )


def is_simulated(tee: str, vendor_root: str) -> bool:
    """Whether software stands for that hardware: a device under another root than its maker's is simulated too."""
    return tee == "simulated" or (tee in DEVICES and vendor_root not in _ROOTS.get(tee, ()))


def steps(
    claims: Claims, reference: ReferenceValues, *, expected: Callable[[Claims], bytes | None], now: int
) -> Iterator[Step]:
    """Every comparison that `appraise` makes, in its order, those after a failure too. Raises nothing.

    Args:
        expected: what the evidence of an enclave or of a device has to hold (`binding.bound_data`); with None it is
            refused.
        claims, reference, now: as for `appraise`.
    """
    # 1 to 8
    for step in _enclave(claims, reference, expected(claims), now):
        yield replace(step, error=_alone(claims.tee)) if step.name == "tee" and claims.tee in DEVICES else step
    # 9
    count, devices = len(claims.devices), reference.devices
    if devices is None and not count:
        yield Step(9, "devices", "none", "none")
        return
    if devices is None:
        error = AttestationError(
            f"devices: got {count}, wanted none",
            hint="the policy's reference.devices says which devices an enclave may pass its data to",
        )
        yield Step(9, "devices", f"{count}", "none", error)
        return
    error = AttestationError(
        f"devices: got none, wanted {one_of(devices.tees)}",
        hint="show a device's evidence with the enclave's, or take reference.devices out of the policy",
    )
    if devices.count is not None and count and count != devices.count:
        error = AttestationError(
            f"devices: got {count}, wanted {devices.count}",
            hint="show the evidence of each device, or change count in the policy's reference.devices",
        )
        yield Step(9, "devices", f"{count}", f"{devices.count}", error)
    else:
        wanted = "at least one" if devices.count is None else f"{devices.count}"
        yield Step(9, "devices", f"{count or 'none'}", wanted, None if count else error)
    for index, device in enumerate(claims.devices):
        for step in _enclave(device, devices, expected(device), now):
            yield replace(step, device=index)


def _alone(tee: str) -> AttestationError:
    return AttestationError(
        f"{tee} evidence: a device by itself, wanted an enclave",
        hint="a device keeps nothing for whoever shows it: show its evidence with that of the enclave which uses it, "
        "and say what is wanted of it in the policy's table reference.devices",
    )


def device_steps(
    claims: Claims, reference: ReferenceValues, *, expected: Callable[[Claims], bytes | None], now: int
) -> Iterator[Step]:
    """Steps 1 to 8 for a device by itself, which no `appraise` accepts, for a person who wants to see them.

    Args:
        claims: of the device.
        reference: what a policy's `devices` say.
        expected, now: as for `steps`.
    """
    yield from _enclave(claims, reference, expected(claims), now)


def _enclave(claims: Claims, reference: ReferenceValues, expected: bytes | None, now: int) -> Iterator[Step]:
    """Steps 1 to 8, for an enclave or a device."""
    # 1
    simulated = is_simulated(claims.tee, claims.vendor_root)
    if simulated:
        yield _simulated(claims, reference)
    else:
        yield Step(1, "simulated vendor", "none: hardware", reference.allow_simulated or "none")
    # 2
    debug = None
    if claims.debug:
        debug = DebugEnclaveError(
            f"{claims.tee} enclave: debug is on, wanted off", hint="its memory can be read from outside"
        )
    yield Step(2, "debug", "on" if claims.debug else "off", "off", debug)
    weaknesses = claims.all_weaknesses
    unwanted = [each for each in weaknesses if each not in reference.weaknesses_allowed]
    wanted = one_of(reference.weaknesses_allowed, "none")
    weak = None
    if unwanted:
        weak = AttestationError(
            f"weaknesses: got {', '.join(unwanted)}, wanted {wanted}",
            hint="start the enclave without them, or list them in the policy's weaknesses_allowed",
        )
    yield Step(2, "weaknesses", ", ".join(weaknesses) or "none", wanted, weak)
    # 3
    yield listed(
        3,
        "tee",
        claims.tee,
        reference.tees,
        AttestationError,
        hint=f'add "{claims.tee}" to the policy\'s tees to accept evidence of that kind',
    )
    if not simulated:
        roots = frozenset(reference.tpm_roots) if claims.tee == "tpm" else _ROOTS[claims.tee]
        yield listed(
            3,
            f"vendor root of {claims.tee}",
            claims.vendor_root,
            tuple(sorted(roots)),
            AttestationError,
            hint="add it to the policy's tpm_roots, if you enrolled that key or rely on whom that root certifies"
            if claims.tee == "tpm"
            else "it was verified under another root than its vendor's: verify it under the vendor's own",
        )
    # 4
    yield _bound(claims, expected)
    # 5
    yield from _loaded(claims, reference)
    # 6
    yield from tcb_steps(claims, reference)
    # 7
    yield listed(
        7,
        "hardware id",
        claims.hardware_id,
        reference.hardware_ids,
        AttestationError,
        hint="another processor than the policy lists made this evidence; add it to hardware_ids to accept it"
        if claims.hardware_id
        else "this evidence does not tell its processor: the host hides it, or that kind has none",
    )
    # 8
    yield _age(claims, reference, now)


def _bound(claims: Claims, expected: bytes | None) -> Step:
    got = claims.report_data.hex() or "none"
    if expected is None:
        nothing = BindingError(
            "report data: nothing to compare with",
            hint="say what this evidence was asked for: with --nonce or --report-data, in Python as an argument",
        )
        return Step(4, "report data", got, "a nonce or report data, and none is given", nothing)
    wanted = expected.hex()
    if equal(claims.report_data, expected):
        return Step(4, "report data", got, wanted)
    error = BindingError(
        f"report data: got {difference(claims.report_data, expected)}",
        hint="the evidence was made for another channel, nonce, kind or claims; never accept it here",
    )
    return Step(4, "report data", got, wanted, error)


def _loaded(claims: Claims, reference: ReferenceValues) -> Iterator[Step]:
    if claims.program or claims.tee in reference.platforms:
        yield from _launched(claims, reference)
    else:
        yield listed(5, "measurement", claims.measurement, reference.measurements, MeasurementError, hint=_ANOTHER)
    yield listed(
        5,
        "signer",
        claims.signer,
        reference.signers,
        MeasurementError,
        hint="add it to the policy's signers to accept what it signs"
        if claims.signer
        else "nobody signed what was loaded: take signers out of the policy, or have it signed",
    )
    for name, values in reference.registers.items():
        told = claims.registers.get(name, "")
        yield listed(
            5,
            f"register {name}",
            told,
            values,
            MeasurementError,
            hint=f"add the value to the policy's registers.{name} to accept it"
            if told
            else f"this evidence does not show that register; it shows {', '.join(claims.registers)[:200] or 'none'}",
        )


def _launched(claims: Claims, reference: ReferenceValues) -> Iterator[Step]:
    """Of a program on a machine: which, on which platform, and beside which others."""
    platform, error = reference.platforms.get(claims.tee), None
    if platform is None:
        error = MeasurementError(
            f"platform: got a program on a machine of {claims.tee}, wanted no such machine",
            hint=f"the policy's table reference.platforms.{claims.tee} says on which platform a program may run",
        )
        yield Step(5, "platform", f"a machine of {claims.tee}", "none", error)
        platform = {}
    if not claims.program:
        error = MeasurementError(
            f"measurement: got none of a program, wanted {one_of(reference.measurements)}",
            hint=f"the policy has a platform for {claims.tee}, so the evidence must be of a program on it: "
            "`strongroom run` starts one",
        )
        yield Step(5, "measurement", "none of a program", one_of(reference.measurements), error)
        return
    yield listed(5, "measurement", claims.program, reference.measurements, MeasurementError, hint=_ANOTHER)
    for name, values in platform.items():
        told = claims.measurement if name == "measurement" else claims.registers.get(name, "")
        yield listed(
            5,
            f"platform {name}",
            told,
            values,
            MeasurementError,
            hint=f"the machine booted something else; add the value to platforms.{claims.tee}.{name} to accept it"
            if told
            else f"this evidence does not show that register; it shows {', '.join(claims.registers)[:200] or 'none'}",
        )
    yield _others(claims, reference)


def _others(claims: Claims, reference: ReferenceValues) -> Step:
    allowed = reference.other_programs
    wanted = "any, but none that is no program" if ANY in allowed else one_of((claims.program, *allowed))
    if claims.programs is None:
        error = MeasurementError(
            f"programs: not told which were started on that machine, wanted {wanted}",
            hint="the evidence must come with the event log that replays to its registers",
        )
        return Step(5, "programs", "not told", wanted, None if ANY in allowed and claims.tee == "snp" else error)
    unwanted = [
        each
        for each in dict.fromkeys(claims.programs)
        if each not in (claims.program, *allowed) and (ANY not in allowed or each.startswith("event:"))
    ]
    got = " and ".join(dict.fromkeys(claims.programs)) or "none"
    if unwanted:
        more = f" and {len(unwanted) - 1} more" if len(unwanted) > 1 else ""
        hint = "something else than a program was measured there: restart the machine"
        if not unwanted[0].startswith("event:"):
            hint = "restart the machine, or allow it in the policy's other_programs: it may read what this program has"
        error = MeasurementError(f"programs: got {unwanted[0]}{more} too, wanted {wanted}", hint=hint)
        return Step(5, "programs", got, wanted, error)
    if claims.program not in claims.programs:
        error = MeasurementError(
            f"programs: got {got}, wanted {claims.program} among them",
            hint="the launcher names a program that was never measured: start it by `strongroom run`",
        )
        return Step(5, "programs", got, wanted, error)
    return Step(5, "programs", got, wanted)


def _age(claims: Claims, reference: ReferenceValues, now: int) -> Step:
    limit = reference.maximum_age
    wanted = NOT_ASKED if limit is None else f"at most {limit} s"
    error = None
    if claims.issued_at is None:
        if limit is not None:
            error = ExpiredError(
                f"age: not told, wanted {wanted}",
                hint=f"evidence of {claims.tee} bears no date: take maximum_age out of the policy; the report data, "
                "over a nonce of your own, is what shows that it is new",
            )
        return Step(8, "age", "no date", wanted, error)
    age = now - claims.issued_at
    if age < -_SKEW:
        moments = f"made at {_moment(claims.issued_at)}, it is {_moment(now)}"
        error = ExpiredError(f"evidence: {moments}", hint="check this machine's clock, or --at")
    elif limit is not None and age > limit:
        error = ExpiredError(
            f"evidence: {age} s old, wanted {wanted}", hint="ask the enclave for new evidence, or raise maximum_age"
        )
    return Step(8, "age", f"{age} s", wanted, error)


def _moment(seconds: int) -> str:
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%SZ}"


def _simulated(claims: Claims, reference: ReferenceValues) -> Step:
    allowed = reference.allow_simulated
    what, where = ("device", "the policy's devices") if claims.tee in DEVICES else ("enclave", "the policy")
    wanted = allowed or f"no simulated {what}"
    error = None
    if allowed is None or not equal(allowed.encode(), claims.vendor_root.encode()):
        error = SimulatedEnclaveError(
            f"simulated {what}: got vendor root {claims.vendor_root}, wanted {wanted}",
            hint=f'allow_simulated = "{claims.vendor_root}" in {where} accepts this simulated vendor, '
            "which protects nothing against the machine's owner",
        )
    return Step(1, "simulated vendor", claims.vendor_root, wanted, error)
