"""A TPM 2.0 in software, made and certified on the spot: `swtpm`, under a maker's root of its own.

    with SoftwareTpm.start(directory) as swtpm:
        with Tpm.open(swtpm.tcti) as tpm: ...

It needs the programs swtpm and swtpm_setup, and tpm2-pytss to talk to it; `lacking` names what is not there. It runs as
any user, on Unix sockets in a directory of its own, since their paths may be short only. It ends with the process that
started it, however that ends.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

from strongroom.crypto.chains import VendorCertificate, pem_certificates
from strongroom.errors import EnclaveError, MissingDependencyError, printable

_DEADLINE = 60.0
# swtpm's control channel, CMD_GET_CAPABILITY (its `tpm_ioctl.h`): answered once the TPM runs.
_GET_CAPABILITY = (1).to_bytes(4, "big")
_PROGRAMS = {"swtpm": "swtpm", "swtpm_setup": "swtpm-tools", "swtpm_localca": "swtpm-tools"}


def lacking() -> str | None:
    """The system package or Python package that a software TPM needs and that is not installed; None if all are."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            return package
    return None if importlib.util.find_spec("tpm2_pytss") else "tpm2-pytss"


# swtpm as a child that is ended when standard input is: a pipe that nobody but its starter holds, so that it does not
# outlive a starter that was killed. Then somebody else could not use its state.
_WATCHED = """
exec 3<&0 0</dev/null
"$@" 3<&- & tpm=$!
{ read -r _ <&3; kill "$tpm"; } 2>/dev/null & watch=$!
wait "$tpm"; status=$?
kill "$watch" 2>/dev/null
exit "$status"
"""


class SoftwareTpm:
    """A running software TPM.

    Attributes:
        tcti: what `Tpm.open` takes.
        root: of its maker, which certified the one who certifies its endorsement keys.
        issuer: that one.
    """

    def __init__(self, process: subprocess.Popen[bytes], sockets: Path, root: Path) -> None:
        self._process, self._sockets = process, sockets
        self.tcti = f"swtpm:path={sockets / 'tpm'}"
        (self.root,) = pem_certificates((root / "swtpm-localca-rootca-cert.pem").read_bytes())
        (self.issuer,) = pem_certificates((root / "issuercert.pem").read_bytes())

    @classmethod
    def start(cls, maker: Path, *, state: Path | None = None) -> SoftwareTpm:
        """Start the TPM whose state is in a directory, made on first use.

        Args:
            maker: the directory of its maker's certificates and keys; TPMs that share it have one root.
            state: the TPM's own directory; by default `maker` / ``tpm``.

        Raises:
            MissingDependencyError: `lacking`.
            EnclaveError: it does not start.
        """
        package = lacking()
        if package is not None:
            raise MissingDependencyError(f"software TPM: {package} is not installed", hint=f"install {package}")
        state = state or maker / "tpm"
        if not state.exists():
            _make(maker, state)
        sockets = Path(tempfile.mkdtemp(prefix="strongroom-tpm-"))
        command = [
            *("swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}"),
            *("--server", f"type=unixio,path={sockets / 'tpm'}", "--ctrl", f"type=unixio,path={sockets / 'tpm.ctrl'}"),
            *("--flags", "not-need-init,startup-clear"),
        ]
        with (sockets / "errors").open("wb") as errors:
            process = subprocess.Popen(  # noqa: S603 - a script and arguments of our own
                ["/bin/sh", "-c", _WATCHED, "sh", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        try:
            _await(process, sockets, state)
            return cls(process, sockets, maker)
        except BaseException:
            _end(process, sockets)
            raise

    def stop(self) -> None:
        """Power it off. Its state stays where it is."""
        _end(self._process, self._sockets)

    def __enter__(self) -> SoftwareTpm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def chain(self, endorsement: bytes) -> tuple[VendorCertificate, ...]:
        """The certificate of an endorsement key (DER) and the one above it."""
        return VendorCertificate(endorsement), self.issuer


def _make(maker: Path, state: Path) -> None:
    """Manufacture a TPM: its endorsement keys and their certificates."""
    maker.mkdir(parents=True, exist_ok=True)
    options, authority, setup = (maker / name for name in ("localca.options", "localca.conf", "setup.conf"))
    options.write_text("--platform-manufacturer Strongroom\n--platform-version 1\n--platform-model swtpm\n")
    authority.write_text(
        f"statedir = {maker}\nsigningkey = {maker / 'signkey.pem'}\n"
        f"issuercert = {maker / 'issuercert.pem'}\ncertserial = {maker / 'certserial'}\n"
    )
    setup.write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca')}\n"
        f"create_certs_tool_config = {authority}\ncreate_certs_tool_options = {options}\n"
    )
    state.mkdir(parents=True)
    done = subprocess.run(  # noqa: S603 - no shell, our own arguments
        [
            *("swtpm_setup", "--tpm2", "--tpmstate", state, "--config", setup),
            *("--create-ek-cert", "--lock-nvram", "--overwrite"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_DEADLINE,
    )
    if done.returncode != 0:
        shutil.rmtree(state)
        raise EnclaveError(f"software TPM: swtpm_setup fails: {' '.join((done.stdout + done.stderr).split())[-300:]}")


def _await(process: subprocess.Popen[bytes], sockets: Path, state: Path) -> None:
    """Return once somebody answers at the socket."""
    path = sockets / "tpm.ctrl"
    for _ in range(int(_DEADLINE / 0.02)):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_DEADLINE)
            try:
                probe.connect(str(path))
                probe.sendall(_GET_CAPABILITY)
                # It listens before it has its state, and may yet end for want of it.
                if probe.recv(8):
                    return
            except OSError:
                pass
        try:
            process.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        said = " ".join((sockets / "errors").read_text(errors="replace").split())[-300:]
        raise EnclaveError(
            f"software TPM: swtpm ends at once, exit status {process.returncode}: {printable(said) or 'says nothing'}",
            hint=f"if its state is locked, another swtpm runs on {state}: end it, or name another directory",
        )
    raise EnclaveError(f"software TPM: swtpm does not answer at {path}")


def _end(process: subprocess.Popen[bytes], sockets: Path) -> None:
    if process.stdin is not None:
        process.stdin.close()
    process.wait()
    shutil.rmtree(sockets, ignore_errors=True)
