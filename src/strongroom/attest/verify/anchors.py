"""Where chains of signatures may end: the vendors' own root certificates, and whom else a verifier chooses to trust.

`roots/` holds them, each from its vendor: Intel's SGX Root CA (which also roots TDX), AMD's ARK for Milan, Genoa and
Turin with the ASK (for VCEKs) and ASVK (for VLEKs) below it, Amazon's Nitro Enclaves root, NVIDIA's Device Identity CA.
They are part of this code: a verifier gives others as an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from strongroom.crypto.chains import VendorCertificate, VendorKey, pem_certificates


@dataclass(frozen=True)
class Anchors:
    """What a verifier trusts to vouch for claims.

    Attributes:
        intel: roots `sgx` and `tdx`.
        amd: roots `snp`, by product.
        nitro: roots `nitro`.
        nvidia: roots `nvidia`.
        tpm: roots of the chains that certify a TPM's attestation key; none by default, as there is no one vendor.
        tpm_keys: attestation keys of TPMs that the caller has enrolled, and trusts as they are.
        simulated: the one root that `simulated` may have; if None, any, and `appraise` compares it with the policy.
        named: ``sha256:<hex>`` of what may vouch too, if evidence brings it along: the root certificate of a TPM's or
            a device's chain, or a TPM's attestation key itself. So a policy that names digests alone is enough
            (`ReferenceValues.anchors`).
    """

    intel: VendorCertificate
    amd: Mapping[str, VendorCertificate]
    nitro: VendorCertificate
    nvidia: VendorCertificate
    tpm: tuple[VendorCertificate, ...] = ()
    tpm_keys: tuple[VendorKey, ...] = ()
    simulated: VendorCertificate | None = None
    named: frozenset[str] = frozenset()

    def brought(self, chain: Sequence[VendorCertificate]) -> tuple[VendorCertificate, ...]:
        """The root that a chain of certificates brings along, if it is one of those named."""
        return (chain[-1],) if chain and chain[-1].fingerprint in self.named else ()


def _read(name: str) -> tuple[VendorCertificate, ...]:
    return pem_certificates((files(__package__) / "roots" / f"{name}.pem").read_bytes())


_AMD = {product: _read(f"amd-{product.lower()}") for product in ("Milan", "Genoa", "Turin")}

VENDORS = Anchors(
    intel=_read("intel")[0],
    amd={product: certificates[0] for product, certificates in _AMD.items()},
    nitro=_read("nitro")[0],
    nvidia=_read("nvidia")[0],
)
"""The hardware vendors' own roots."""

AMD_INTERMEDIATES: Mapping[str, tuple[VendorCertificate, ...]] = {
    product: certificates[1:] for product, certificates in _AMD.items()
}
"""ASK and ASVK of each product. AMD signed them with the ARK: they are no anchors, only at hand."""

INTEL_ROOT = VENDORS.intel.fingerprint
