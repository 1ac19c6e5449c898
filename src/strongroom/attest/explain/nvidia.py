"""What an NVIDIA GPU signs, in words. Source: as `parse/nvidia.py`."""

from __future__ import annotations

from collections.abc import Iterator

from strongroom.attest.claims import pcrs_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.explain.fields import MEASUREMENT, Field, Section, endorsements
from strongroom.attest.parse.nvidia import NvidiaExchange, parse_nvidia
from strongroom.attest.verify.nvidia import BANK, device_attributes

# Types of the vendor's data (parse/nvidia.py names the source): as whom `device_attributes` reads them, and a name.
_TYPES = {
    3: ("driver_version", "driver version", ""),
    6: ("vbios_version", "VBIOS version", ""),
    11: ("nvdec0", "NVDEC0", "the video decoder"),
    14: ("board_id", "board id", ""),
    15: ("chip_sku", "chip SKU", ""),
    16: ("chip_sku_mod", "chip SKU modifier", ""),
    17: ("project", "project", ""),
    18: ("project_sku", "project SKU", ""),
    20: ("", "firmware id", "the device's certificate has to name the same"),
    21: ("protected_pcie", "protected PCIe", ""),
    34: ("data_version", "data version", "of this list's form"),
    36: ("feature", "feature", "how many GPUs work together, and how"),
}


def explain_nvidia(evidence: Evidence) -> tuple[Section, ...]:
    """Request, measurement blocks, the vendor's data, and the device's chain."""
    exchange = parse_nvidia(evidence.quote)
    asked = (
        Field("nonce", exchange.nonce, "of who asked: what the evidence is bound to"),
        Field("device nonce", exchange.device_nonce, "drawn by the device"),
    )
    blocks = (
        *(Field(f"block {index}", value) for index, value in exchange.blocks.items()),
        Field("measurement", pcrs_measurement(BANK, exchange.blocks), f"{MEASUREMENT}: of all blocks"),
    )
    signed = "signed by the device's key, request and response together"
    return (
        Section("exchange", asked, signed),
        Section("vendor's data", tuple(_data(exchange)), signed),
        Section("measurements", blocks, f"{signed}; what each should be is in NVIDIA's manifests, not checked here"),
        endorsements(evidence.endorsements, "`verify` needs the device's chain"),
        Section(
            "not signed",
            (Field("signature", exchange.signature, "ECDSA P-384 with SHA-384; (r, n - s) is as good as (r, s)"),),
            "may change without a refusal",
        ),
    )


def _data(exchange: NvidiaExchange) -> Iterator[Field]:
    read = device_attributes(exchange)
    for kind, value in exchange.fields.items():
        attribute, name, meaning = _TYPES.get(kind, ("", f"type {kind}", "no meaning is known here"))
        word = read.get(attribute, value)
        if kind in _TYPES or any(value):
            yield Field(name, word, meaning)
