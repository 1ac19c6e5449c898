"""Evidence of Azure's confidential VMs in words: the vTPM's quote, the paravisor's report, the hardware below."""

from __future__ import annotations

from strongroom.attest.claims import REGISTERS, layers_measurement, pcrs_measurement, registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.explain.amd import report_sections, whence
from strongroom.attest.explain.fields import MEASUREMENT, Field, Section, endorsements
from strongroom.attest.explain.intel import collateral, quote_sections
from strongroom.attest.explain.tpm import quote_section, registers
from strongroom.attest.parse.azure import HclReport, parse_azure, parse_hcl_report
from strongroom.attest.parse.dcap import parse_quote as parse_quote_of_td
from strongroom.attest.parse.tpm import parse_quote
from strongroom.crypto import digest


def explain_azure(evidence: Evidence) -> tuple[Section, ...]:
    """From the guest's quote down to the hardware."""
    shown = parse_azure(evidence.tee, evidence.quote)
    report = parse_hcl_report(shown.hcl_report)
    if evidence.tee == "azure-snp":
        hardware = report_sections(report.report)
        below = endorsements(evidence.endorsements, whence(report.report))
        layer = report.report[0x90:0xC0].hex()
    else:
        hardware = quote_sections(shown.td_quote)
        below = collateral(evidence.endorsements)
        body = parse_quote_of_td(shown.td_quote).report
        layer = registers_measurement({name: body.registers[name] for name in REGISTERS})
    guest = pcrs_measurement("sha256", shown.pcrs)
    measured = (
        Field("measurement", layers_measurement(layer, guest), f"{MEASUREMENT}: of the next two"),
        Field("paravisor", layer, "as the hardware measured it"),
        Field("guest", guest, "of the vTPM's registers"),
    )
    return (
        quote_section(parse_quote(shown.message)),
        registers({"sha256": shown.pcrs}),
        _paravisor(report),
        Section("measurement", measured, "computed from the registers and the hardware's"),
        *(Section(f"hardware: {each.title}", each.fields, each.note) for each in hardware),
        below,
    )


def _paravisor(report: HclReport) -> Section:
    fields = [
        Field("hardware", report.hardware.upper()),
        Field("key", report.key.fingerprint, f"{report.key.kind}, of the vTPM: what signs the quote"),
        Field("runtime claims", f"{len(report.runtime):,} bytes", "which name that key, and what follows"),
        Field(
            "their digest",
            digest(report.runtime, algorithm=report.digest),
            f"{report.digest}: what the hardware's report data must start with",
        ),
    ]
    fields += [Field(name, _word(value)) for name, value in report.configuration.items()]
    if report.user_data:
        fields.append(Field("user data", report.user_data, "the guest asked for it"))
    return Section("paravisor", tuple(fields), "the hardware below vouches for it, through that digest")


def _word(value: str | int | bool) -> str | int:
    return ("yes" if value else "no") if isinstance(value, bool) else value
