"""A TPM's quote in words. Sources: as `parse/tpm.py`; what each PCR is for: "TCG PC Client Platform Firmware Profile
Specification", version 1.06, section 3.3.4, and for 8 to 15 what GRUB and systemd extend them with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from strongroom.attest.claims import pcrs_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.explain.fields import MEASUREMENT, Field, Section, endorsements
from strongroom.attest.parse.event_log import parse_event_log
from strongroom.attest.parse.tpm import TpmEvidence, TpmQuote, parse_quote, parse_signature, parse_tpm
from strongroom.attest.parse.tpm_key import parse_public
from strongroom.attest.verify.tpm import BANKS
from strongroom.crypto.chains import VendorKey
from strongroom.errors import FormatError, printable

_PCRS = {
    0: "firmware",
    1: "firmware configuration",
    2: "option ROMs",
    3: "option ROM configuration",
    4: "boot loader",
    5: "boot configuration, partition table",
    6: "events of the maker's",
    7: "Secure Boot",
    8: "boot loader's commands (GRUB)",
    9: "kernel and initial RAM disk",
    10: "IMA: files that Linux measured",
    11: "unified kernel image (systemd)",
    12: "kernel command line (systemd)",
    13: "system extensions (systemd)",
    14: "MOK: keys of shim",
    15: "machine id, volumes (systemd)",
    16: "DEBUG: ANY PROGRAM CAN RESET IT",
    17: "dynamic launch",
    18: "dynamic launch",
    19: "dynamic launch",
    20: "dynamic launch",
    21: "dynamic launch",
    22: "dynamic launch",
    23: "APPLICATION: ANY PROGRAM CAN RESET IT",
}


def explain_tpm(evidence: Evidence) -> tuple[Section, ...]:
    """Quote, registers, key and event log, and the endorsements that came with them."""
    shown = parse_tpm(evidence.quote)
    sections = [
        quote_section(parse_quote(shown.message)),
        _measured(registers(shown.pcrs), shown.pcrs),
        Section("key", tuple(_key(shown)), "trusted only if certified, or enrolled (--tpm-key)"),
    ]
    if shown.event_log:
        sections.append(log_section(shown.event_log, next(iter(shown.pcrs), "")))
    return (*sections, endorsements(evidence.endorsements, "an enrolled key needs none"))


def quote_section(quote: TpmQuote) -> Section:
    """What the TPM signed, also where it is part of other evidence."""
    selected = "; ".join(f"{bank}: {', '.join(map(str, each))}" for bank, each in quote.selection.items())
    fields = (
        Field("extra data", quote.extra_data, "what the quote was asked for: what it is bound to"),
        Field("registers", selected or "none", "those that the quote covers"),
        Field("PCR digest", quote.pcr_digest, "over their values"),
        Field("signer", quote.signer, "qualified name of the key"),
        Field("clock", f"{quote.clock / 1000:,.1f} s", "the TPM has been on" + ("" if quote.safe else "; not safe")),
        Field("resets", quote.reset_count, "obscured for keys outside of the endorsement hierarchy, as the next two"),
        Field("restarts", quote.restart_count),
        Field(
            "firmware",
            f"{quote.firmware_version:016x}",
            f"as its maker counts; {quote.firmware_version >> 32} in a policy's minimum_tcb",
        ),
    )
    return Section("quote", fields, "signed by the attestation key")


def registers(pcrs: Mapping[str, Mapping[int, bytes]]) -> Section:
    """Values beside a quote."""
    fields = tuple(
        Field(f"{bank}:{index}", value, _PCRS.get(index, ""))
        for bank, values in pcrs.items()
        for index, value in sorted(values.items())
    )
    return Section("registers", fields, "only their digest is signed; `verify` compares it")


def _measured(section: Section, pcrs: Mapping[str, Mapping[int, bytes]]) -> Section:
    """The registers, and what they are measured as: by their strongest bank."""
    bank = next((bank for bank in BANKS if pcrs.get(bank)), None)
    if bank is None:
        return section
    field = Field("measurement", pcrs_measurement(bank, pcrs[bank]), f"{MEASUREMENT}: of bank {bank}")
    return replace(section, fields=(*section.fields, field))


def _key(shown: TpmEvidence) -> Iterator[Field]:
    try:
        signature = parse_signature(shown.signature)
        yield Field("signature", f"{signature.scheme} with {signature.algorithm}")
    except FormatError as error:
        yield Field("signature", shown.signature, error.message)
    if shown.public:
        public = parse_public(shown.public)
        yield Field("key", public.key.fingerprint, f"{public.key.kind}: what --tpm-key names")
        yield Field("attributes", ", ".join(sorted(public.attributes)) or "none", "as its public area says")
        yield Field("name", public.name)
    elif shown.spki:
        key = VendorKey(shown.spki)
        yield Field("key", key.fingerprint, f"{key.kind}: what --tpm-key names")


def log_section(raw: bytes, bank: str) -> Section:
    """An event log: the words of an event are shown where they are what was digested into that bank."""
    note = "written by the host: digests are compared with the registers; nobody signs what events are called"
    try:
        events = parse_event_log(raw)
    except FormatError as error:
        return Section("event log", (Field("event log", f"{len(raw):,} bytes", error.message),), note)
    fields = (
        Field(f"PCR {each.pcr}", each.name, printable(each.words(bank) or f"{len(each.data):,} bytes")[:160])
        for each in events
    )
    return Section("event log", tuple(fields), note)
