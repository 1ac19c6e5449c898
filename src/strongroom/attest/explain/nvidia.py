"""What an NVIDIA GPU signs, in words. Source: as `parse/nvidia.py`."""

from __future__ import annotations

from collections.abc import Iterator

from strongroom.attest.evidence import Evidence
from strongroom.attest.explain.fields import Field, Section, endorsements
from strongroom.attest.parse.nvidia import NvidiaExchange, parse_nvidia

# Types of the vendor's data that hold text, and others by what is in them (parse/nvidia.py names the source).
_TEXTS = {3: "driver version", 15: "chip SKU", 16: "chip SKU modifier", 17: "project", 18: "project SKU"}
_OTHERS = {
    6: "VBIOS version",
    11: "NVDEC0",
    14: "board id",
    20: "firmware id",
    21: "protected PCIe",
    34: "data version",
    36: "feature",
}


def explain_nvidia(evidence: Evidence) -> tuple[Section, ...]:
    """Request, measurement blocks, the vendor's data, and the device's chain."""
    exchange = parse_nvidia(evidence.quote)
    asked = (
        Field("nonce", exchange.nonce, "of who asked: what the evidence is bound to"),
        Field("device nonce", exchange.device_nonce, "drawn by the device"),
    )
    blocks = tuple(Field(f"block {index}", value) for index, value in exchange.blocks.items())
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
    for kind, value in exchange.fields.items():
        if kind in _TEXTS:
            text = value.rstrip(b"\0")
            yield Field(_TEXTS[kind], text.decode("ascii", "backslashreplace"))
        elif kind in _OTHERS:
            yield Field(_OTHERS[kind], value)
        elif any(value):
            yield Field(f"type {kind}", value)
