"""Verify what NVIDIA's GPUs of Hopper and later sign.

1. Parse the exchange and the endorsements: the device's certificate chain, leaf first, and perhaps revocation lists.
2. Follow the chain from its leaf to NVIDIA's root at `now`.
3. The leaf's key, on P-384 and for signatures, signed the exchange: ECDSA with SHA-384 over request and response.
4. Report and leaf name the same firmware, or neither names one: that key lives only while that firmware runs, and other
   firmware, which has a key of its own, measures what it likes.

The measurement is `pcrs_measurement("nvidia-sha384", blocks)`, each block a register ``block1``, ``block2`` and so on.
The leaf's firmware is the register ``firmware_id``, so that a policy can ask for it.

What is not covered:

- NVIDIA's reference integrity manifests (RIM), which say what each block should be for a driver and a VBIOS: the
  measurements and registers that the policy lists take their place.
- Revocation, but for the revocation lists that come along: NVIDIA's online answers (OCSP) are not asked. The attribute
  ``revocation`` says how many of the chain's issuers had a list.
- Debugging: the report has no word for it. Firmware that allows it has other measurements.
- NVLink, NVSwitch and the modes of several GPUs beyond what the attributes show.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from strongroom.attest.claims import Claims, pcrs_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import Endorsements, parse_endorsements
from strongroom.attest.parse.nvidia import DIGEST_SIZE, NvidiaExchange, parse_nvidia
from strongroom.attest.verify.anchors import Anchors
from strongroom.attest.verify.revocation import named_issuers, revocation
from strongroom.crypto.chains import VendorCertificate, verify_chain
from strongroom.errors import FormatError, VerificationError

BANK = "nvidia-sha384"

# Types of the vendor's data (parse/nvidia.py says whose they are).
_DRIVER, _VBIOS, _NVDEC, _FWID, _PROTECTED_PCIE, _FEATURE = 3, 6, 11, 20, 21, 36
_TEXTS = {_DRIVER: "driver_version", 15: "chip_sku", 16: "chip_sku_mod", 17: "project", 18: "project_sku"}
_NUMBERS = {14: "board_id", 34: "data_version"}
_SWITCHES = {_NVDEC: "nvdec0", _PROTECTED_PCIE: "protected_pcie"}
_SWITCH = {0xAA: "on", 0x55: "off"}
_FEATURES = {0: "single-gpu", 1: "multi-gpu", 2: "protected-pcie"}

# Where leaves hold the firmware id (NVIDIA/nvtrust, `cc_admin_utils.py`): Hopper's in a composite device id as of RIoT,
# Blackwell's in a DiceTcbInfo (TCG, DICE Attestation Architecture). It is the first pair of algorithm and digest in it.
_FWID_EXTENSIONS = ("2.23.133.5.4.1", "2.23.133.5.4.1.1")
_FWID_VALUE = re.compile(
    # id-sha384 (2.16.840.1.101.3.4.2.2), OCTET STRING of 48 bytes
    re.escape(bytes.fromhex("0609608648016503040202") + bytes([0x04, DIGEST_SIZE])) + b"(.{%d})" % DIGEST_SIZE,
    re.DOTALL,
)
# Subject alternative name, otherName id-DMTF-device-info (DSP0274): manufacturer, product and serial number.
_ALTERNATIVE_NAME = "2.5.29.17"
_DEVICE_INFO = re.compile(rb"NVIDIA:([A-Z0-9_]{1,16}):((?:[0-9A-F]{2}){1,32})\Z")


def verify_nvidia(evidence: Evidence, anchors: Anchors, now: int) -> Claims:
    """The claims of a GPU's report, by the steps at the top of this file."""
    # 1
    exchange = parse_nvidia(evidence.quote)
    endorsements = parse_endorsements(evidence.endorsements)
    chain = endorsements.certificates
    if not chain:
        raise FormatError("endorsements: no certificates, wanted the device's chain, leaf first")
    # 2
    root = next(iter(anchors.brought(chain)), anchors.nvidia)
    verify_chain(chain, root, now=now, revocation_lists=endorsements.revocation_lists)
    leaf = chain[0]
    # 3
    if leaf.key.kind != "P-384" or not leaf.may_sign:
        raise VerificationError(f"gpu report: signed by a key of kind {leaf.key.kind}, wanted P-384, for signatures")
    half = len(exchange.signature) // 2
    r, s = (int.from_bytes(part) for part in (exchange.signature[:half], exchange.signature[half:]))
    leaf.key.verify_ecdsa(r, s, exchange.signed, algorithm="sha384")
    # 4
    firmware, named = exchange.fields.get(_FWID, b""), _firmware(leaf)
    if firmware != named:
        raise VerificationError(
            f"gpu report: got firmware id {_short(firmware)}, wanted that of the device's certificate, {_short(named)}"
        )
    product, serial = _device(leaf)
    return Claims(
        tee="nvidia",
        measurement=pcrs_measurement(BANK, exchange.blocks),
        registers={
            **{f"block{index}": value.hex() for index, value in exchange.blocks.items()},
            **({"firmware_id": named.hex()} if named else {}),
        },
        report_data=exchange.nonce,
        debug=False,
        vendor_root=root.fingerprint,
        hardware_id=serial,
        product=product,
        attributes=device_attributes(exchange) | {"revocation": _revocation(endorsements)},
        # A device issues certificates to itself, and nobody's list is of those.
        revocation=revocation(endorsements.revocation_lists, named_issuers(chain, root)),
    )


def _short(firmware: bytes) -> str:
    return f"{firmware.hex()[:32]}..." if firmware else "none"


def _firmware(leaf: VendorCertificate) -> bytes:
    for oid in _FWID_EXTENSIONS:
        found = _FWID_VALUE.search(leaf.extension(oid) or b"")
        if found:
            return found[1]
    return b""


def _device(leaf: VendorCertificate) -> tuple[str, str]:
    """Product and serial number, as the certificate names the device; empty if it does not."""
    found = _DEVICE_INFO.search(leaf.extension(_ALTERNATIVE_NAME) or b"")
    return (found[1].decode(), found[2].decode().lower()) if found else ("", "")


def _revocation(endorsements: Endorsements) -> str:
    """What `verify_chain` has checked; it refuses lists by anybody else than an issuer of the chain."""
    lists = {each.issuer for each in endorsements.revocation_lists}
    issuers = {each.issuer for each in endorsements.certificates}
    return f"lists of {len(lists)} of {len(issuers)} issuers" if lists else "not checked"


def device_attributes(exchange: NvidiaExchange) -> dict[str, str | int | bool]:
    """What the report says of itself besides its blocks, where it says it in a way that is known."""
    fields, told = exchange.fields, dict[str, str | int | bool]()
    for kind, name in _TEXTS.items():
        told |= _text(name, fields.get(kind, b""))
    for kind, name in _NUMBERS.items():
        if 0 < len(fields.get(kind, b"")) <= 8:
            told[name] = int.from_bytes(fields[kind], "little")
    for kind, name in _SWITCHES.items():
        told |= _word(name, fields.get(kind, b""), _SWITCH)
    told |= _word("feature", fields.get(_FEATURE, b""), _FEATURES)
    vbios = fields.get(_VBIOS, b"")
    if len(vbios) == 8:
        # Two integers of four bytes: 96009f00 and 01 are written 96.00.9F.00.01.
        told["vbios_version"] = ".".join(f"{byte:02X}" for byte in (*reversed(vbios[:4]), vbios[4]))
    else:
        told |= _text("vbios_version", vbios)
    return told


def _text(name: str, value: bytes) -> dict[str, str]:
    text = value.rstrip(b"\0")
    return {name: text.decode()} if text and text.isascii() and text.decode().isprintable() else {}


def _word(name: str, value: bytes, words: Mapping[int, str]) -> dict[str, str]:
    if not value:
        return {}
    return {name: words.get(int.from_bytes(value, "little"), f"unknown, {value.hex()[:32]}")}
