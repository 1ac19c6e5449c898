"""The words that claims are told in, by kind of evidence: what a policy may ask for.

A policy that asks for what no evidence tells would refuse everything, and a word that no verifier says, allowed, would
allow nothing. Both are slips, and `ReferenceValues` refuses them where they are written. The tests hold these tables
against what the verifiers tell.
"""

from __future__ import annotations

from collections.abc import Mapping

WEAKNESSES = ("migratable", "sept-ve", "attribute-bits", "vmpl", "policy-bits", "pcr-sha1", "pcr-resettable")
"""Of every kind: `Claims.weaknesses`, and `Claims.migratable`."""

INTEL_STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)
"""Source: "Intel SGX and Intel TDX services API", version 4, TCB information: ``tcbStatus``."""

Sizes = tuple[int, ...]
_DIGESTS: Sizes = (20, 32, 48, 64)

_SGX: Mapping[str, Sizes] = {
    "mrenclave": (32,),
    "mrsigner": (32,),
    "isvprodid": (2,),
    "attributes": (16,),
    "miscselect": (4,),
    "cpusvn": (16,),
    "configid": (64,),
    "isvextprodid": (16,),
    "isvfamilyid": (16,),
}
_TDX: Mapping[str, Sizes] = {
    "mrtd": (48,),
    **{f"rtmr{index}": (48,) for index in range(4)},
    "mrconfigid": (48,),
    "mrowner": (48,),
    "mrownerconfig": (48,),
    "mrseam": (48,),
    "mrsignerseam": (48,),
    "seamattributes": (8,),
    "tdattributes": (8,),
    "xfam": (8,),
    "mrservicetd": (48,),
}
_SNP: Mapping[str, Sizes] = {
    "host_data": (32,),
    "family_id": (16,),
    "image_id": (16,),
    "id_key_digest": (48,),
    "author_key_digest": (48,),
}
_BANKS = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64, "sha3_256": 32, "sha3_384": 48, "sha3_512": 64}


def _pcrs(*sizes: int) -> dict[str, Sizes]:
    return {f"pcr{index}": sizes for index in range(32)}


REGISTERS: Mapping[str, Mapping[str, Sizes]] = {
    "sgx": _SGX,
    "tdx": _TDX,
    "simulated": _TDX,
    "snp": _SNP,
    "azure-snp": {**_SNP, **_pcrs(32)},
    "azure-tdx": {**_TDX, **_pcrs(32)},
    "nitro": _pcrs(32, 48, 64),
    # Registers of the bank that is measured by their name alone, of another with the bank's.
    "tpm": {
        **_pcrs(*_DIGESTS),
        **{f"pcr{index}-{bank}": (size,) for bank, size in _BANKS.items() for index in range(32)},
    },
    "nvidia": {**{f"block{index}": (48,) for index in range(1, 255)}, "firmware_id": (48,)},
}
"""`Claims.registers`: how many bytes each may have."""

_TD_PLATFORM = ("mrtd", "rtmr0", "rtmr1", "rtmr2")
PLATFORMS: Mapping[str, tuple[str, ...]] = {
    "tdx": _TD_PLATFORM,
    "simulated": _TD_PLATFORM,
    "snp": ("measurement",),
    "tpm": ("pcr4",),
}
"""Machines that a launcher starts programs on, and what a policy must pin of each at least: all that is measured of a
trust domain before programs are, SNP's launch digest, and what a TPM's firmware started (shim, boot loader, kernel)."""
PROGRAM_REGISTERS: Mapping[str, str] = {"tdx": "rtmr3", "simulated": "rtmr3", "tpm": "pcr13"}
"""Which register holds the programs, and so can be pinned by no policy (`parse/launched.py`)."""

_INTEL_VERSIONS = ("qe", "pce", "evaluation")
_TDX_VERSIONS = ("module", "module_major", "seam_patch", *_INTEL_VERSIONS)
COMMON_AMD_VERSIONS = ("bootloader", "tee", "snp", "microcode")
AMD_VERSIONS: Mapping[str, tuple[str, ...]] = {
    "Milan": COMMON_AMD_VERSIONS,
    "Genoa": COMMON_AMD_VERSIONS,
    "Turin": (*COMMON_AMD_VERSIONS, "fmc"),
}
"""Of each product of AMD's, which counts them by themselves: all of a TCB version (`parse/snp.py`)."""
BY_PRODUCT = ("snp", "azure-snp")
"""Kinds whose lowest versions may be told by product."""

VERSIONS: Mapping[str, tuple[str, ...]] = {
    "sgx": ("isvsvn", "configsvn", *_INTEL_VERSIONS),
    "tdx": _TDX_VERSIONS,
    "simulated": _TDX_VERSIONS,
    "azure-tdx": _TDX_VERSIONS,
    "snp": AMD_VERSIONS["Turin"],
    "azure-snp": AMD_VERSIONS["Turin"],
    "tpm": ("firmware",),
}
"""`Claims.tcb`; kinds that are not there tell no versions."""

SIGNERS: Mapping[str, Sizes] = {"sgx": (32,), "snp": (48,), "azure-snp": (48,), "nitro": (32, 48, 64)}
"""`Claims.signer`: MRSIGNER, the ID key's digest, PCR8. No other kind has one."""

HARDWARE_IDS: Mapping[str, Sizes] = {
    "sgx": (16,),
    "tdx": (16,),
    "simulated": (16,),
    "azure-tdx": (16,),
    "snp": (64, 8),
    "azure-snp": (64, 8),
    "tpm": (32,),
    "nvidia": tuple(range(1, 33)),
}
"""`Claims.hardware_id`: PPID, CHIP_ID (of Turin 8 bytes), the fingerprint of a TPM's key, a GPU's serial number."""
