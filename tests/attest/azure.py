"""A confidential VM of Azure's, of the tests' own: a paravisor and its vTPM in a trust domain of `Intel`."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.azure import AzureEvidence
from tests.attest.intel import QUOTING, Intel, td_body

_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PCRS = {index: bytes([index]) * 32 for index in range(24)}


def _number(value: int) -> str:
    return base64.urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


@dataclass
class Vm:
    """Attributes say what is signed or shown; each can be changed before the next `evidence`."""

    intel: Intel = field(default_factory=lambda: Intel(quoting=QUOTING["tdx"]))
    digest: str = "sha256"
    request_version: int = 1
    attributes: int = 0
    pcrs: dict[int, bytes] = field(default_factory=lambda: dict(PCRS))
    extra_data: bytes = b"n" * 32
    bank: int = 0x000B
    collateral: bool = True

    def runtime(self) -> bytes:
        numbers = _KEY.public_key().public_numbers()
        key = {"kid": "HCLAkPub", "kty": "RSA", "n": _number(numbers.n), "e": _number(numbers.e)}
        return json.dumps({"keys": [key], "vm-configuration": {"secure-boot": True, "vmUniqueId": "A-B"}}).encode()

    def hcl_report(self, body: bytes, runtime: bytes) -> bytes:
        number = {"sha256": 1, "sha384": 2, "sha512": 3}[self.digest]
        request = struct.pack("<5I", 0, self.request_version, 4, number, len(runtime))
        request += bytes(4) if self.request_version == 2 else b""
        request = struct.pack("<I", len(request) + len(runtime)) + request[4:]
        seam, td, data = body[:120], body[120:520], body[520:584]
        later, service = body[584:600] or bytes(16), body[600:] or bytes(48)
        tcb_info = b"\xff\x01" + bytes(6) + seam + later + bytes(95)
        td_info = td + service + bytes(64)
        hashed = b"".join(hashlib.sha384(each).digest() for each in (tcb_info, td_info))
        kind = b"\x81\0" + bytes([any(service)]) + bytes(13)
        report = kind + bytes(16) + hashed + data + bytes(32) + b"m" * 32 + tcb_info + bytes(17) + td_info
        whole = 32 + 1184 + len(request) + len(runtime)
        return struct.pack("<4sIIII12x", b"HCLA", 2, whole, 2, 0) + report + bytes(160) + request + runtime + bytes(100)

    def shown(self) -> AzureEvidence:
        runtime = self.runtime()
        data = hashlib.new(self.digest, runtime).digest()
        body = td_body(attributes=self.attributes, report_data=data + bytes(64 - len(data)))
        selected = sum(1 << index for index in self.pcrs)
        digest = hashlib.sha256(b"".join(value for _, value in sorted(self.pcrs.items()))).digest()
        message = b"\xffTCG\x80\x18" + bytes(2) + struct.pack(">H", len(self.extra_data)) + self.extra_data
        message += struct.pack(">QIIBQ", 1, 1, 1, 1, 1)
        message += struct.pack(">IHB", 1, self.bank, 3) + selected.to_bytes(3, "little")
        message += struct.pack(">H", 32) + digest
        signature = _KEY.sign(message, padding.PKCS1v15(), hashes.SHA256())
        quote = self.intel.quote(body)
        return AzureEvidence(self.hcl_report(body, runtime), message, signature, dict(self.pcrs), quote)

    def evidence(self, shown: AzureEvidence | None = None) -> Evidence:
        shown = shown or self.shown()
        collateral = self.intel.collateral(sgx=False) if self.collateral else b""
        return Evidence("azure-tdx", shown.to_bytes(), collateral)
