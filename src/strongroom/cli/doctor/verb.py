"""`strongroom doctor`: what this machine offers, what is missing, what that is needed for, and how to get it.

`examine` decides and reads nothing by itself: a `Probe` answers its questions, so that any machine can be imagined.

- A row is `ok` only if what it names was seen to work as far as that can be tried without changing anything.
- `limited` means that it is there and does not do all that its name promises; the detail says what is lacking.
- `unknown` means that this system offers no way to tell.
- Heavy packages are never imported: their versions come from their metadata.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby

from rich.table import Table
from rich.text import Text

from strongroom import __version__
from strongroom.cli import output
from strongroom.cli.doctor.isolation import isolation_rows
from strongroom.cli.doctor.probe import Probe, Row, Status, ThisMachine
from strongroom.enclave.gramine_sizes import Sizes, size
from strongroom.errors import MissingDependencyError

_GUEST_DEVICES = ("/dev/tdx_guest", "/dev/sev-guest")
_GUEST_NEEDS = "Linux 6.7 or newer, configfs mounted, and run as root"

SAME_USER_CAVEAT = "a process of the same user outside the sandbox can read its memory, and root always can"


def examine(probe: Probe) -> list[Row]:
    """Every row of the report, in the order in which a person reads it."""
    return [
        *_enclaves(probe),
        *isolation_rows(probe),
        *_network(probe),
        *_processor(probe),
        _memory(probe),
        *_packages(probe),
        _shares(probe),
    ]


def _enclaves(probe: Probe) -> Iterator[Row]:
    group = "enclaves"
    yield Row(
        group,
        "simulated",
        "limited",
        f"{output.SIMULATED_BANNER.removeprefix('simulated enclave: ')}; {SAME_USER_CAVEAT}",
        "trying everything without special hardware",
        "always there; none of the next can launch a program yet",
    )
    provider = probe.tsm_provider()
    guests = (
        ("tdx", "Intel TDX guest", "tdx_guest", _GUEST_DEVICES[0], "a confidential VM on Intel TDX"),
        ("snp", "AMD SEV-SNP guest", "sev_guest", _GUEST_DEVICES[1], "a confidential VM on AMD SEV-SNP"),
    )
    for name, title, wanted, device, where in guests:
        status: Status = "missing"
        detail = f"not an {title}"
        if provider == wanted:
            status, detail = "ok", f"{title}: configfs-tsm answers as {wanted}"
        elif probe.exists(device):
            status, detail = "limited", f"{title}: {device} is there, configfs-tsm does not answer"
            where = _GUEST_NEEDS
        yield Row(group, name, status, detail, "evidence from a confidential VM", where)
    yield _device(
        probe, group, "sgx", "/dev/sgx_enclave", "enclaves under Gramine", "a machine with SGX enabled in its firmware"
    )
    if probe.exists("/dev/attestation"):
        kind = (probe.read("/dev/attestation/attestation_type") or "unknown").strip()
        inside: tuple[Status, str] = ("ok" if kind == "dcap" else "limited", f"inside, attestation_type is {kind}")
    else:
        inside = ("missing", "not inside Gramine")
    yield Row(
        group,
        "gramine",
        *inside,
        "evidence from an SGX enclave",
        'Gramine with sgx.remote_attestation = "dcap"',
    )
    yield _device(
        probe, group, "nitro", "/dev/nsm", "evidence from a Nitro enclave", "an enclave on AWS Nitro; run as root in it"
    )
    yield _device(
        probe, group, "tpm", "/dev/tpmrm0", "evidence from a TPM 2.0", "a TPM 2.0; membership in the group tss"
    )
    yield _program(probe, group, "swtpm", "trying TPM evidence without a TPM", "install swtpm and swtpm-tools")
    yield _attester(probe, group, provider)


def _attester(probe: Probe, group: str, provider: str | None) -> Row:
    """Whose evidence `strongroom.attest.tee.here` makes on this machine: the first that is there, usable or not."""
    purpose, how = "evidence without simulation", "one of the above"
    kind = probe.read("/dev/attestation/attestation_type")
    if kind is not None:
        if kind.strip() == "dcap":
            return Row(group, "attester", "ok", "evidence of kind sgx, by Gramine", purpose, how)
        return Row(group, "attester", "missing", "Gramine makes no quotes here", purpose, "remote attestation by DCAP")
    if provider is not None:
        tee = {"sev_guest": "snp", "tdx_guest": "tdx"}.get(provider)
        if tee:
            return Row(group, "attester", "ok", f"evidence of kind {tee}, by configfs-tsm", purpose, how)
        return Row(group, "attester", "missing", f"{provider} is not supported", purpose, "a VM on AMD or Intel")
    if any(map(probe.exists, _GUEST_DEVICES)):
        detail, how = "a confidential VM whose configfs-tsm does not answer", _GUEST_NEEDS
        return Row(group, "attester", "limited", detail, purpose, how)
    for tee, device in (("nitro", "/dev/nsm"), ("tpm", "/dev/tpmrm0")):
        if probe.exists(device):
            if refusal := probe.refusal(device):
                return Row(group, "attester", "limited", f"{device} does not open: {refusal}", purpose, "access to it")
            if tee == "tpm" and probe.version("tpm2-pytss") is None:
                extra = 'pip install "strongroom[tpm]"'
                return Row(group, "attester", "limited", "a TPM, without tpm2-pytss", purpose, extra)
            return Row(group, "attester", "ok", f"evidence of kind {tee}, by {device}", purpose, how)
    return Row(group, "attester", "missing", "simulated evidence only", purpose, how)


def _network(probe: Probe) -> Iterator[Row]:
    group = "network"
    modules = f"/lib/modules/{probe.release}/modules."
    lists = (probe.read(modules + "builtin"), probe.read(modules + "dep"))
    there = probe.exists("/sys/module/wireguard") or any("/wireguard.ko" in (text or "") for text in lists)
    yield Row(
        group,
        "wireguard",
        "ok" if there else "missing",
        "the kernel has it" if there else "not in this kernel",
        'policies with mesh.transport = "wireguard"',
        "a kernel with CONFIG_WIREGUARD; simulated enclaves also take wireguard-go",
    )


def _processor(probe: Probe) -> Iterator[Row]:
    text = probe.read("/proc/cpuinfo") if probe.system == "Linux" else None
    flags: set[str] | None = None
    for line in (text or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86 and arm64
            flags = set(value.split())
            break
    for what, flag, purpose in (
        ("AES", "aes", "sealing at the speed of memory, not of software"),
        ("VAES", "vaes", "faster AES-GCM on large blocks"),
        ("AVX-512", "avx512f", "faster inference and VAES at full width"),
    ):
        how = "another processor, or a VM that passes its instructions on"
        if flags is None:
            yield Row("processor", what, "unknown", f"{probe.system} does not tell", purpose, how)
        elif flag in flags:
            yield Row("processor", what, "ok", "instructions present", purpose, how)
        else:
            yield Row("processor", what, "missing", f"no such instructions ({probe.arch})", purpose, how)


def _memory(probe: Probe) -> Row:
    """What `strongroom gramine` chooses sizes by."""
    told = probe.read("/proc/meminfo") if probe.system == "Linux" else None
    found = re.search(r"(?m)^MemTotal:\s+(\d+) kB$", told or "")
    purpose, how = "the sizes of an SGX enclave", "a machine with more, or strongroom gramine --enclave-size, --threads"
    if found is None:
        return Row("processor", "memory", "unknown", f"{probe.system} does not tell", purpose, how)
    processors = max(1, len(re.findall(r"(?m)^processor\s*:", probe.read("/proc/cpuinfo") or "")))
    sizes = Sizes.of_machine(told, processors)
    detail = f"{int(found[1]) / 2**20:.1f} GiB, processors: {processors}"
    return Row(
        "processor",
        "memory",
        "ok",
        f"{detail}; strongroom gramine takes {size(sizes.enclave)}, {sizes.threads} threads",
        purpose,
        how,
    )


# Distribution, extra that brings it, what it is needed for, whether the demo needs it.
_EXTRAS = (
    ("torch", "torch", "training with PyTorch, exporting its models, computing on shares", True),
    ("onnx", "serve", "reading models", True),
    ("onnxruntime", "serve", "serving models", True),
    ("onnxscript", "demo", "exporting PyTorch models", True),
    ("scikit-learn", "demo", "the demo's data set", True),
    ("tensorflow", "tensorflow", "training with TensorFlow", False),
    ("keras", "keras", "training with Keras", False),
    ("jax", "jax", "training with JAX", False),
    ("lightning", "lightning", "training with PyTorch Lightning", False),
    ("matplotlib", "plot", "plots as PNG", False),
    ("ray", "ray", "stages and replicas on several machines (planned; nothing uses it yet)", False),
    ("grpcio", "grpc", "serving over gRPC (planned; nothing uses it yet)", False),
    ("psycopg", "postgres", "a CAS over PostgreSQL", False),
    ("PyJWT", "oidc", "administrators of a CAS who log in with a token", False),
    ("python-pkcs11", "pkcs11", "owners' keys in PKCS #11 tokens", False),
    ("prometheus-client", "metrics", "a CAS's metrics", False),
)


def _packages(probe: Probe) -> Iterator[Row]:
    for package, extra, purpose, demo in _EXTRAS:
        version = probe.version(package)
        how = f'pip install "strongroom[{extra}]"'
        yield Row(
            "python packages",
            package,
            "ok" if version else "missing",
            version or "not installed",
            purpose,
            how,
            demo,
        )


def _shares(probe: Probe) -> Row:
    """What `strongroom mpc` needs: PyTorch, and to try it out on one machine Unix sockets."""
    group, what, purpose = "computing on shares", "mpc", "two servers and a dealer that compute on secrets"
    how = 'pip install "strongroom[torch]"'
    if probe.version("torch") is None:
        return Row(group, what, "missing", "PyTorch is not installed", purpose, how)
    if probe.system == "Windows":
        detail = "one party runs here, over TLS; no three processes at Unix sockets"
        how = "strongroom mpc run --rank R --peers FILE, also on 127.0.0.1"
        return Row(group, what, "limited", detail, purpose, how)
    return Row(group, what, "ok", "three processes here, or one party of three hosts over TLS", purpose, how)


def _device(probe: Probe, group: str, what: str, path: str, purpose: str, how: str) -> Row:
    if not probe.exists(path):
        return Row(group, what, "missing", f"no {path}", purpose, how)
    refusal = probe.refusal(path)
    if refusal:
        return Row(group, what, "limited", f"{path} does not open: {refusal}", purpose, f"access to {path}; {how}")
    return Row(group, what, "ok", f"{path} opens", purpose, how)


def _program(probe: Probe, group: str, name: str, purpose: str, how: str) -> Row:
    path = probe.which(name)
    return Row(group, name, "ok" if path else "missing", path or "not installed", purpose, how)


def lacking_for_demo(rows: Sequence[Row]) -> list[Row]:
    """The rows that keep `strongroom demo` from running."""
    return [row for row in rows if row.demo and row.status != "ok"]


def describe(probe: Probe) -> dict[str, str]:
    """What this report is about, in four facts."""
    return {
        "strongroom": __version__,
        "system": f"{probe.system} {probe.release}",
        "architecture": probe.arch,
        "python": probe.python,
    }


_COLOUR = {"ok": "green", "limited": "yellow", "missing": "red", "unknown": "dim"}


def table(rows: Sequence[Row]) -> Table:
    """The report for a person: one line for what is there, two for the rest. Fits 80 columns."""
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("status", no_wrap=True)
    grid.add_column("what", no_wrap=True)
    grid.add_column("detail")
    for group, members in groupby(rows, key=lambda row: row.group):
        grid.add_row()
        grid.add_row("", Text(group, style="bold"))
        for row in members:
            # What nobody asked for stays in the background; what the demo lacks does not.
            quiet = "dim" if row.status in ("missing", "unknown") and not row.demo else ""
            detail = Text(row.detail, style="bold yellow" if row.what == "simulated" else quiet)
            if row.status != "ok" and row.what != "simulated":
                detail.append(f"; for {row.needed_for}\n")
                detail.append(f"-> {row.how_to_get}", style=quiet or "cyan")
            grid.add_row(Text(row.status, style=quiet or _COLOUR[row.status]), Text(row.what, style=quiet), detail)
    return grid


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    output.add_json(parser)


def run(args: argparse.Namespace, probe: Probe | None = None) -> int:
    """Print the report; the exit status is 0 unless something that the demo needs is missing, then 3."""
    probe = probe or ThisMachine()
    rows = examine(probe)
    lacking = lacking_for_demo(rows)
    if args.json:
        output.result(
            {"machine": describe(probe), "demo": not lacking, "rows": [asdict(row) for row in rows]},
        )
    else:
        facts = describe(probe)
        output.stdout.print(
            f"strongroom {facts['strongroom']} on {facts['system']} {facts['architecture']}, python {facts['python']}",
            style="bold",
            markup=False,
        )
        output.stdout.print(table(rows))
        output.stdout.print()
        if lacking:
            names = ", ".join(row.what for row in lacking)
            output.stdout.print(f"the demo cannot run here: it needs {names}", style="red", markup=False)
        else:
            output.stdout.print("the demo can run here: strongroom demo", style="green", markup=False)
    return MissingDependencyError.exit_code if lacking else 0
