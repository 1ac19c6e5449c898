"""Verify evidence: who vouches for these claims? Signatures, chains, revocation and dates; no clock, network or file.

One file per vendor: `dcap` (Intel, and the simulated vendor in Intel's formats), `snp` (AMD), `tpm`, `azure` (a TPM
chained to SNP or TDX), `nitro` (Amazon), `nvidia`. Each parses the evidence, follows every signature from an anchor to
what it returns, and says in its first lines which steps that takes.

A `simulated` enclave goes through the same code as `tdx`. What sets them apart is `Claims.vendor_root`: anybody can
make a vendor root, so verifying simulated evidence proves nothing until `appraise` has compared that digest.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.verify.anchors import VENDORS, Anchors
from strongroom.errors import UsageError, VerificationError

__all__ = ["VENDORS", "Anchors", "verify"]

_LAST_MOMENT = 253402300799  # the end of the year 9999, where X.509's dates end

# The module, and with it the function, for each; imported when its evidence is verified.
_VERIFIERS: Mapping[str, str] = {
    "sgx": "dcap",
    "tdx": "dcap",
    "nitro": "nitro",
    "nvidia": "nvidia",
    "snp": "snp",
    "simulated": "dcap",
    "azure-snp": "azure",
    "azure-tdx": "azure",
    "tpm": "tpm",
}


def verify(evidence: Evidence, *, now: int, anchors: Anchors = VENDORS) -> Claims:
    """Follow the signatures from a vendor's root to the claims of an enclave, and of each of its devices.

    Args:
        evidence: what the enclave showed.
        now: seconds since 1970, by the verifier's clock.
        anchors: where chains may end.

    Raises:
        FormatError: evidence or endorsements do not parse, or these are not of its platform.
        TcbError: Intel lists no level for a platform so old.
        ExpiredError: an endorsement or a certificate is not valid at `now`.
        VerificationError: anything else that does not hold.
        UsageError: `now` is no moment before the year 10000.
    """
    if not 0 <= now <= _LAST_MOMENT:
        raise UsageError(f"now: got {now}, wanted seconds since 1970")
    from strongroom.attest.verify.launched import launched  # as all of the verifying: a policy's reader needs none

    claims = launched(_verifier(evidence.tee)(evidence, anchors, now), evidence)
    devices = tuple(_verifier(device.tee)(device, anchors, now) for device in evidence.devices)
    if len({(each.vendor_root, each.hardware_id) for each in devices}) < len(devices):
        # One device that is asked twice answers twice.
        told = ", ".join(each.hardware_id or "one without an id" for each in devices)
        raise VerificationError(f"devices: got {told}, wanted different ones")
    return replace(claims, devices=devices) if devices else claims


def _verifier(tee: str) -> Callable[[Evidence, Anchors, int], Claims]:
    name = _VERIFIERS[tee]
    verifier: Callable[[Evidence, Anchors, int], Claims] = getattr(
        importlib.import_module(f"{__name__}.{name}"), f"verify_{name}"
    )
    return verifier
