"""What a confidential VM on AMD SEV-SNP is measured as, before it ever ran: its launch digest.

The computation is that of `sev-snp-measure`, which several hypervisors' users compare with their hardware; it is
imported when it is asked for, and nothing else here needs it.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from strongroom.errors import FormatError, MissingDependencyError, UsageError

_PACKAGE = "sev-snp-measure"
_SIZE = 48
MAX_VCPUS = 4096


def snp_launch_digest(
    firmware: Path,
    *,
    vcpus: int,
    vcpu_type: str,
    kernel: Path | None = None,
    initrd: Path | None = None,
    append: str = "",
    vmm: str = "QEMU",
    guest_features: int = 1,
) -> bytes:
    """The 48 bytes that a report has as its measurement.

    Args:
        firmware: the OVMF image that the VM starts with.
        vcpus, vcpu_type: how many processors it has, and of which model by QEMU's name: both are measured.
        kernel, initrd, append: of direct boot, where the firmware has room for their digests; without, what the
            firmware starts is not in the launch digest.
        vmm: the hypervisor, whose processors start in another state each: QEMU, ec2 or gce.
        guest_features: SEV_FEATURES of the processors' first state, as the hypervisor sets them: bit 0 is SNP itself.

    Raises:
        MissingDependencyError: the package `sev-snp-measure` is not installed.
        UsageError: it does not know that model or hypervisor, or a file cannot be read.
        FormatError: the firmware is none for SEV-SNP.
    """
    if not 1 <= vcpus <= MAX_VCPUS:
        raise UsageError(f"vcpus: got {vcpus}, wanted 1 to {MAX_VCPUS}")
    if kernel is None and (initrd is not None or append):
        raise UsageError("kernel: there is none, and yet an initrd or a command line", hint="give the kernel too")
    try:
        names = ("guest", "vcpu_types", "vmm_types", "sev_mode")
        guest, vcpu_types, vmm_types, sev_mode = (importlib.import_module(f"sevsnpmeasure.{each}") for each in names)
    except ImportError:
        raise MissingDependencyError(
            f"python package: {_PACKAGE} is not installed", hint=f"pip install {_PACKAGE}"
        ) from None
    if not 0 <= guest_features < 1 << 64:
        raise UsageError(f"guest features: got {guest_features}, wanted 64 bits")
    models: dict[str, int] = vcpu_types.CPU_SIGS
    hypervisors = vmm_types.VMMType.__members__
    if vcpu_type not in models:
        raise UsageError(f"vcpu type: got {vcpu_type[:40]!r}, wanted one of {', '.join(models)}")
    if vmm not in hypervisors:
        raise UsageError(f"vmm: got {vmm[:40]!r}, wanted one of {', '.join(hypervisors)}")
    for path in (firmware, kernel, initrd):
        if path is not None and not path.is_file():
            raise UsageError(f"{path}: is no file")
    try:
        found = bytes(
            guest.calc_launch_digest(
                sev_mode.SevMode.SEV_SNP,
                vcpus,
                models[vcpu_type],
                str(firmware),
                None if kernel is None else str(kernel),
                None if initrd is None else str(initrd),
                append,
                guest_features,
                vmm_type=hypervisors[vmm],
            )
        )
    except OSError as error:
        raise UsageError(f"{error.filename}: {(error.strerror or str(error)).lower()}") from None
    except Exception as error:  # of a parser that was not written for hostile files
        raise FormatError(f"firmware: {firmware}: {str(error)[:200] or type(error).__name__}") from None
    if len(found) != _SIZE:
        raise FormatError(f"launch digest: {len(found)} bytes, wanted {_SIZE}")
    return found
