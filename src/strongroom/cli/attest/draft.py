"""A table `[reference]` to start a policy from: it accepts the evidence that it was drafted from, and says what each
line lets in. What takes from an enclave's isolation is a comment: somebody has to judge it first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from strongroom.attest.claims import Claims
from strongroom.attest.evidence import DEVICES
from strongroom.attest.reference import ANY
from strongroom.attest.verify import VENDORS
from strongroom.attest.verify.revocation import CHECKED
from strongroom.attest.words import BY_PRODUCT, PLATFORMS, PROGRAM_REGISTERS

_WITH_STATUS = ("sgx", "tdx", "azure-tdx", "simulated")

# Before each line that allows a flaw.
_JUDGE = "# REFUSED AS IT IS. Judge this, and take the # off its line if you accept it:"
# Why each of `words.WEAKNESSES` is one.
REASONS: Mapping[str, str] = {
    "migratable": "an agent that is not measured may move it to another machine",
    "sept-ve": "its host can take pages away unseen (SEPT_VE_DISABLE is 0)",
    "attribute-bits": "attributes are on whose meaning is unknown here",
    "vmpl": "other software in the same guest, at VMPL 0, may read and write all of it",
    "policy-bits": "bits of its guest policy are on whose meaning is unknown here",
    "pcr-sha1": "only registers of SHA-1 were quoted, for which collisions can be made",
    "pcr-resettable": "only registers that any software may reset were quoted",
}


def reference_table(claims: Claims) -> str:
    """TOML that `parse_reference` reads. A debug enclave is never accepted, whatever a policy says."""
    return "\n".join(_lines(claims)) + "\n"


def _lines(claims: Claims) -> Iterator[str]:
    if claims.debug:
        yield "# THIS EVIDENCE IS OF A DEBUG ENCLAVE: no policy accepts it. Start the enclave without debugging."
    if claims.tee in DEVICES:
        yield "# A device by itself is no enclave: put this table into the policy of the enclave that it is shown with."
        yield from _device(claims)
        return
    yield "[reference]"
    yield from _common(claims)
    if claims.tee == "tpm":
        yield f"tpm_roots = {_list(claims.vendor_root)}"
    if claims.tee == "simulated":
        yield from _simulated(claims)
    if claims.tee in _WITH_STATUS and not claims.tcb_status:
        yield "# No TCB status, and so refused: verify with Intel's collateral (--endorsements), and draft again."
    elif claims.tee in _WITH_STATUS and claims.tcb_status != "UpToDate":
        yield _JUDGE
        yield f"# Intel says {claims.tcb_status} of this platform; one that is up to date does not need it."
        yield f"# tcb_statuses = {_list('UpToDate', claims.tcb_status)}"
    if claims.program:
        yield from _platform(claims)
    yield from _minimum("reference", claims)
    if claims.devices:
        yield ""
        yield from _device(*claims.devices)


def _platform(claims: Claims) -> Iterator[str]:
    """What the machine booted that the program runs on: every register that tells, but the programs' own."""
    if claims.programs is None:
        yield "# Nothing tells which other programs were started there."
        yield f"other_programs = {_list(ANY)}"
    yield ""
    yield "# What the machine must have booted. A line that is taken out may be anything."
    yield f"[reference.platforms.{claims.tee}]"
    if claims.tee not in PROGRAM_REGISTERS:
        yield f"measurement = {_list(claims.measurement)}"
    names = PLATFORMS[claims.tee] if claims.tee in ("tdx", "simulated") else claims.registers
    for name in names:
        if name != PROGRAM_REGISTERS.get(claims.tee) and claims.tee != "snp" and "-" not in name:
            yield f"{name} = {_list(claims.registers[name])}"


def _device(*claims: Claims) -> Iterator[str]:
    first = claims[0]
    yield "[reference.devices]"
    yield from _common(*claims)
    yield "# Exactly so many devices, in place of at least one:"
    yield f"# count = {len(claims)}"
    if first.vendor_root != VENDORS.nvidia.fingerprint:
        yield from _simulated(first)
    yield from _minimum("reference.devices", first)


def _common(*claims: Claims) -> Iterator[str]:
    first = claims[0]
    yield f"tees = {_list(*(each.tee for each in claims))}"
    yield f"measurements = {_list(*(each.program or each.measurement for each in claims))}"
    advisories = [name for each in claims for name in each.advisories]
    if advisories:
        yield _JUDGE
        yield "# Intel's advisories name flaws that this platform has, or that software on it has to work around."
        yield f"# advisories_allowed = {_list(*advisories)}"
    weaknesses = [name for each in claims for name in (*each.weaknesses, *(["migratable"] if each.migratable else []))]
    if weaknesses:
        yield _JUDGE
        yield from (f"# {name}: {REASONS[name]}." for name in dict.fromkeys(weaknesses))
        yield f"# weaknesses_allowed = {_list(*weaknesses)}"
    if first.revocation == CHECKED:
        yield "# Refuse evidence whose certificates' revocation was not checked, as it was for this one:"
        yield "# revocation_required = true"
    if first.signer:
        yield f"# signers = {_list(*(each.signer for each in claims))}"
    if first.hardware_id:
        yield "# Only this hardware:"
        yield f"# hardware_ids = {_list(*(each.hardware_id for each in claims))}"
    if first.issued_at is not None:
        yield "# Seconds that evidence may be old:"
        yield "# maximum_age = 300"


def _simulated(claims: Claims) -> Iterator[str]:
    yield "# Protects nothing against the machine's owner."
    yield f"allow_simulated = {_text(claims.vendor_root)}"


def _minimum(path: str, claims: Claims) -> Iterator[str]:
    if claims.tcb:
        yield ""
        yield "# The lowest versions to accept; raise them as the vendor publishes new ones."
        product = f".{claims.product}" if claims.tee in BY_PRODUCT else ""
        yield f"[{path}.minimum_tcb.{claims.tee}{product}]"
        yield from (f"{name} = {version}" for name, version in claims.tcb.items())


def _list(*values: str) -> str:
    return f"[{', '.join(_text(value) for value in dict.fromkeys(values))}]"


def _text(value: str) -> str:
    return json.dumps(value)
