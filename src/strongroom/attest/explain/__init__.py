"""Explain evidence to a person, field by field: what it says, before anybody has verified it.

Nothing here decides anything. One file per vendor, each from bytes to `Section`s; `strongroom attest show` prints them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from strongroom.attest.evidence import Evidence
from strongroom.attest.explain.amd import explain_snp
from strongroom.attest.explain.azure import explain_azure
from strongroom.attest.explain.fields import Field, Section
from strongroom.attest.explain.intel import explain_dcap
from strongroom.attest.explain.nitro import explain_nitro
from strongroom.attest.explain.nvidia import explain_nvidia
from strongroom.attest.explain.tpm import explain_tpm
from strongroom.attest.parse.launched import PROGRAM_RTMR, programs
from strongroom.attest.parse.td_log import BANK, parse_td_log

__all__ = ["Field", "Section", "explain"]

_EXPLAINERS: Mapping[str, Callable[[Evidence], tuple[Section, ...]]] = {
    "sgx": explain_dcap,
    "tdx": explain_dcap,
    "simulated": explain_dcap,
    "snp": explain_snp,
    "tpm": explain_tpm,
    "nitro": explain_nitro,
    "nvidia": explain_nvidia,
    "azure-snp": explain_azure,
    "azure-tdx": explain_azure,
}


def explain(evidence: Evidence) -> tuple[Section, ...]:
    """Everything that the evidence says, its devices last. None of it is verified.

    Raises:
        FormatError: it does not parse.
    """
    sections = list(_EXPLAINERS[evidence.tee](evidence))
    if evidence.program:
        sections.append(_launched(evidence))
    for index, device in enumerate(evidence.devices):
        sections += [replace(each, title=f"device {index}: {each.title}") for each in explain(device)]
    return tuple(sections)


def _launched(evidence: Evidence) -> Section:
    """Which program the launcher on a machine says it is, and what a trust domain's log says was started there."""
    fields = [Field("program", evidence.program, "its measurement, if the report data is over it")]
    if evidence.event_log:
        events = parse_td_log(evidence.event_log)
        fields.append(Field("event log", f"{len(events)} events", "counts if it replays to the registers"))
        fields += [Field("started", each, "") for each in programs(events, PROGRAM_RTMR, BANK)]
    return Section("launched", tuple(fields), "by the launcher's word")
