"""GPUs in software, in the format of NVIDIA's Hopper, under a root of their own. **They protect nothing.**

A verifier that is to accept one names its root twice: as `Anchors.nvidia` for `verify`, and by its digest in the
policy's `devices.allow_simulated` for `appraise`::

    vendor = SimulatedNvidia(now=now)
    gpu = vendor.gpu()
    evidence = replace(enclave_evidence, devices=(gpu.quote(report_data),))
    claims = verify(evidence, now=now, anchors=replace(VENDORS, nvidia=vendor.root))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from strongroom.attest.binding import bound_data
from strongroom.attest.claims import pcrs_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import Endorsements
from strongroom.attest.verify.nvidia import BANK
from strongroom.crypto import digest, random_bytes
from strongroom.crypto.chains import VendorCertificate
from strongroom.crypto.p384 import P384Signer
from strongroom.crypto.vendor import Validity

PRODUCT = "SIMULATED"

_DAY = 24 * 3600
_ALWAYS = Validity(0, 253402300799)
_BLOCKS: Mapping[int, bytes] = {
    index: digest(b"simulated block", bytes([index]), algorithm="sha384") for index in (1, 2)
}
_FIRMWARE = digest(b"simulated firmware", algorithm="sha384")
_FIELDS: Mapping[int, bytes] = {3: b"0.0.simulated\0", 20: _FIRMWARE, 36: b"\0\0"}


@dataclass(frozen=True)
class SimulatedGpu:
    """A GPU that answers any request for measurements with what it is told to say.

    Attributes:
        serial: what `Claims.hardware_id` becomes, in hexadecimal digits.
        blocks: digests of 48 bytes by index.
        fields: the vendor's data by type.
    """

    serial: str
    blocks: Mapping[int, bytes] = field(repr=False)
    fields: Mapping[int, bytes] = field(repr=False)
    _key: P384Signer = field(repr=False)

    @property
    def measurement(self) -> str:
        return pcrs_measurement(BANK, self.blocks)

    def quote(self, report_data: bytes) -> Evidence:
        """Evidence for these 64 bytes of report data, which an enclave's own evidence holds too."""
        return self.answer(bound_data("nvidia", report_data))

    def answer(self, nonce: bytes) -> Evidence:
        """Evidence for a request with this nonce of 32 bytes."""
        request = b"\x11\xe0\x01\xff" + nonce + b"\0"
        # Index, DMTF, size, type 1 (mutable firmware), size and value of each.
        record = b"".join(
            bytes([index, 1])
            + (len(value) + 3).to_bytes(2, "little")
            + b"\1"
            + len(value).to_bytes(2, "little")
            + value
            for index, value in self.blocks.items()
        )
        data = b"".join(
            kind.to_bytes(2, "little") + len(value).to_bytes(2, "little") + value for kind, value in self.fields.items()
        )
        signed = (
            request
            + b"\x11\x60\0\0"
            + bytes([len(self.blocks)])
            + len(record).to_bytes(3, "little")
            + record
            + random_bytes(32)
            + len(data).to_bytes(2, "little")
            + data
        )
        return Evidence("nvidia", signed + self._key.sign(signed), Endorsements(self._key.chain).to_bytes())


class SimulatedNvidia:
    """A maker of simulated GPUs; `root` is the certificate that vouches for all of them."""

    def __init__(self, *, now: int) -> None:
        """A maker with a new root, whose GPUs' certificates are valid for 90 days from `now`, in seconds since 1970."""
        self._root = P384Signer.root("Strongroom Simulated Device Identity CA", _ALWAYS)
        self._validity = Validity(now - _DAY, now + 90 * _DAY)
        self._model = self._root.issue("Strongroom Simulated GPU Identity", self._validity, ca=True)

    @property
    def root(self) -> VendorCertificate:
        return self._root.chain[-1]

    def gpu(
        self,
        *,
        serial: str = "0123456789abcdef",
        blocks: Mapping[int, bytes] = _BLOCKS,
        fields: Mapping[int, bytes] = _FIELDS,
    ) -> SimulatedGpu:
        """A GPU with that serial number; its certificate names the firmware that `fields` names by default."""
        key = self._model.issue(
            "Strongroom Simulated GPU",
            self._validity,
            ca=False,
            extensions={"2.23.133.5.4.1": _firmware_extension(), "2.5.29.17": _alternative_name(serial)},
        )
        return SimulatedGpu(serial, dict(blocks), dict(fields), key)


def _firmware_extension() -> bytes:
    """A sequence that holds the firmware id: id-sha384 and a digest."""
    return _der(0x30, _der(0x30, bytes.fromhex("0609608648016503040202") + _der(0x04, _FIRMWARE)))


def _alternative_name(serial: str) -> bytes:
    """otherName: id-DMTF-device-info (1.3.6.1.4.1.412.274.1) and a UTF8String."""
    told = _der(0x0C, f"NVIDIA:{PRODUCT}:{serial.upper()}".encode())
    return _der(0x30, _der(0xA0, bytes.fromhex("060a2b06010401831c821201") + _der(0xA0, told)))


def _der(tag: int, content: bytes) -> bytes:
    """A DER element of at most 127 bytes."""
    return bytes([tag, len(content)]) + content
