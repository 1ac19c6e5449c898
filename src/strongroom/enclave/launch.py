"""The launcher: the untrusted host's side of an enclave. It copies, measures, starts, and answers; it never sees a key.

For a simulated enclave it also stands for the hardware: it measures what it starts and signs quotes with the simulated
vendor's key. That is why a simulated enclave protects nothing against its machine's owner. On a machine that is one TEE
as a whole (`machine`) it is no host, but a part of what that machine attests: it measures what it starts into the
machine, and hands out the machine's evidence.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strongroom.attest.attester import Attester
from strongroom.attest.evidence import Evidence
from strongroom.attest.tee.simulated import SimulatedVendor
from strongroom.cas.client.address import CasAddress, dial_cas, split_address
from strongroom.enclave import sandbox
from strongroom.enclave.cleared import CLEARING, ISOLATED, ISOLATED_BY_HAND
from strongroom.enclave.config import (
    BOOT_PYCACHE,
    COMPILED_DIRECTORY,
    PROCESS,
    SANDBOX,
    SANDBOX_ENVIRONMENT,
    SERVICE_ENTRY,
    BootConfig,
)
from strongroom.enclave.control import CAS, HostSide, socket_pair
from strongroom.enclave.devices import Devices
from strongroom.enclave.digests import Digests, walk
from strongroom.enclave.directories import cleared_away, directory_in_memory, temporary_directory
from strongroom.enclave.image import Unpacked
from strongroom.enclave.limits import Group, Limits, make_group
from strongroom.enclave.machine.kind import Machine
from strongroom.enclave.measure import KNOWN, Environment, Measurement, Part, measure
from strongroom.enclave.nesting import outer_of, staged
from strongroom.enclave.unchanged import Seen, check_unchanged
from strongroom.enclave.users import allocate
from strongroom.errors import EnclaveError, UsageError

EventHandler = Callable[[str, dict[str, Any]], None]
_STOP_SECONDS = 15
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # bubblewrap passes on that of what it ran as an exit status
SAME_USER = (
    "any other process of the user who launches an enclave can read its memory and environment, unless root launches it"
)
_PRIVATE = "strongroom-private-"
_LOOK_SECONDS, _LOOKS = 0.2, 25


@dataclass(frozen=True)
class Isolation:
    """What the operating system gives a simulated enclave here, in words for the person who runs it."""

    sandbox: str
    fuse: bool
    notes: tuple[str, ...]
    separate: bool = False
    """Whether programs get user ids of their own."""

    @property
    def measured(self) -> str:
        """What a boot configuration says for it."""
        return SANDBOX if self.sandbox == "bubblewrap" else PROCESS

    @classmethod
    def here(cls) -> Isolation:
        sandbox.require_linux()
        notes = []
        kind = "bubblewrap" if sandbox.bubblewrap() else "process"
        if kind == "process":
            why = "no working bubblewrap: the enclave runs as an ordinary process of yours"
            notes.append(f"{why}, without namespaces or shared memory")
        fuse = kind == "bubblewrap" and sandbox.fuse_available()
        if not fuse:
            why = "no FUSE" if kind == "bubblewrap" else "no namespace to mount in"
            notes.append(f"{why}: sealed data is unpacked to private memory instead of decrypted on access")
        bwrap = sandbox.bubblewrap()
        separate = bwrap is not None and sandbox.separate_users(bwrap)
        if not separate:
            notes.append(SAME_USER)
        return cls(kind, fuse, tuple(notes), separate)


class Enclave:
    """A launched enclave, and what it was measured as. Made by `launch`."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        host: HostSide,
        resources: ExitStack,
        pid: int,
        measurement: Measurement,
        group: Group,
    ) -> None:
        self.measurement = measurement
        self._group = group
        self._process = process
        self._host = host
        self._resources = resources
        self._pid = pid
        self._death: int | None = None
        try:
            self._death = os.pidfd_open(pid)
        except OSError:
            return  # it has ended already, or the kernel is older than 5.3
        resources.callback(os.close, self._death)

    def wait(self) -> int:
        """The program's exit status.

        Raises:
            StrongroomError: boot failed; the class that it failed with.
            EnclaveError: the enclave was killed, for what it took of memory or otherwise.
        """
        starved = False
        try:
            self._process.wait()
            self._await_death()
            self._host.join()
            starved = self._group.out_of_memory
        finally:
            self._resources.close()
        if starved and self._host.status != 0:
            raise EnclaveError(
                "memory: the enclave took more than its limit, and the kernel ended the program",
                hint="a larger --memory, or a program that needs less"
                + ("; what it wrote to its vaults was not sealed" if self._host.status is None else ""),
            )
        if self._host.failure is not None:
            raise self._host.failure
        if self._host.status is None:
            code = self._process.returncode
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            # Enclaves run the installed package: it may be another than the variable's, which runs here.
            hint = "it sees no PYTHONPATH: is this Strongroom installed (pip install, or -e for a checkout)?"
            raise EnclaveError(
                f"enclave: ended by {how} before its program did", hint=hint if "PYTHONPATH" in os.environ else None
            )
        return self._host.status

    def _await_death(self) -> None:
        """Wait until the sandboxed process has closed all its files: bubblewrap, when killed, is gone before it.

        Where that was killed before it had asked the kernel to end its child along with it, the child would live on.
        """
        death, self._death = self._death, None  # once: it is closed with the other resources
        if death is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(death, signal.SIGKILL)
            select.select([death], [], [])

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def killed(self) -> bool:
        """Whether it was ended by SIGKILL, of which it could say nothing."""
        return self._process.poll() in _KILLED and self._host.failure is None and self._host.status is None

    def signal(self, number: int) -> None:
        """Pass a signal to the program."""
        if self.running:
            try:
                os.kill(self._pid, number)
            except ProcessLookupError:
                return

    def end(self) -> None:
        """Ask the program to end, then make it, while somebody else waits."""
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def stop(self) -> int | None:
        """Ask the program to end, then make it; its exit status if it had one."""
        self.end()
        try:
            return self.wait()
        except EnclaveError:
            return None


def launch(
    config: BootConfig,
    files: Mapping[str, Path],
    *,
    cas: CasAddress | None,
    vendor: SimulatedVendor | None = None,
    machine: Machine | None = None,
    vaults: Mapping[str, Path],
    listener: socket.socket | None = None,
    endpoint: str = "",
    outside: Collection[str] = (),
    published: Mapping[str, socket.socket] | None = None,
    devices: Devices | None = None,
    dials: Mapping[str, Callable[[], socket.socket]] | None = None,
    knobs: Mapping[str, Any] | None = None,
    every: str = "auto",
    replica: int | None = None,
    platform: Sequence[Part] | None = None,
    hosts: Mapping[str, Path] | None = None,
    limits: Limits | None = None,
    compiled: Path | None = None,
    image: Unpacked | None = None,
    debug: bool = False,
    on_event: EventHandler | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Enclave:
    """Start an enclave: simulated, or on a machine that is one TEE as a whole.

    Args:
        vendor: of a simulated enclave: who signs for it.
        machine: else, the machine: the program is measured into it before it starts, from its files alone, whatever was
            measured or compiled of them before. Its files and its image are in memory by then, and run from there: what
            is on a disk, a host may change once it was measured.
        files: the program's files by their names inside the enclave.
        cas: where the CAS is, if the enclave has one; which CAS it must be is in `config`.
        vaults: where the policy's vaults and sealed files lie on this host, and the directory of its mirror.
        every: steps between two commits of the program's mirror, or ``auto``.
        replica: which one of the policy's instances it is, if they are told apart.
        platform: its platform's parts, if they were measured a moment ago: they are not measured again.
        hosts: directories of this machine for the paths at which the configuration shows some.
        limits: what it may take of this machine.
        compiled: a directory with compiled code of measured sources (`Compiled.checked`), used in a sandbox.
        image: the container image that the configuration names, unpacked. On a machine it is unpacked anew.
        listener: the socket that a service accepts on, or the proxy of a mesh.
        endpoint: where that proxy is reached, ``ADDRESS:PORT``; empty without a mesh. With one, the listener is closed
            with the enclave.
        outside: hosts that its policy lets the program reach.
        published: what outsiders connect to, by the service's name. These sockets are closed with the enclave.
        devices: what makes the WireGuard device of its mesh, in the place of a proxy: then the listener is a socket of
            UDP, which keeps its port until it is made.
        dials: what connects to the other peers that the enclave may ask for, by name.
        knobs: more for the layout, which the enclave may use for speed and patience only.
        debug: launch as a debug enclave, which every policy refuses.
        on_event: called from another thread as the enclave reports.
        stdout, stderr: descriptors for the program's streams, instead of this process's own.

    Raises:
        UnsupportedPlatformError: not on Linux; the machine cannot measure programs, or has no directory in memory.
        EnclaveError: it could not be started.
        UsageError: neither vendor nor machine, or both; a machine, and no sandbox or a debug enclave.
    """
    isolation = Isolation.here()
    here = Environment.current()
    _check_isolation(config, isolation)
    _check_evidence(config, vendor, machine, debug=debug)
    shown = _host_directories(config, hosts or {})
    resources = ExitStack()
    tell = on_event or (lambda name, detail: None)
    if endpoint and listener is not None:
        resources.callback(listener.close)
    for each in (published or {}).values():
        resources.callback(each.close)
    try:
        memory = Path(tempfile.gettempdir()) if machine is None else directory_in_memory()
        program = _copy_program(files, memory, resources)
        if machine is not None:
            platform = compiled = None  # what files of this user's vouch for is no machine's word
            image = image and _image_in_memory(image, memory, resources)
        known = KNOWN if machine is None else Digests()
        tree = _image_part(config, image, known)
        copied = {name: program / name for name in files}
        own = _seen_program(program, known)
        measured = measure(config, copied, here, known=known, platform=platform, image=tree)
        attester = _attester(measured, vendor, machine, debug=debug)
        ours, theirs = socket_pair()
        resources.callback(ours.close)
        resources.callback(theirs.close)
        writable = {v.name for v in (*config.vaults, *config.sealed) if v.access == "read-write"}
        mirror = next((vaults[v.name].resolve() for v in config.vaults if v.access == "mirror"), None)
        mirrors = {v.name for v in config.vaults if v.access == "mirror"}
        places = {n: (path.resolve(), n in writable) for n, path in vaults.items() if n not in mirrors}
        clearing = config.entry == SERVICE_ENTRY
        isolated = ISOLATED_BY_HAND if clearing else ISOLATED
        inner = [str(here.executable), isolated, "-X", f"pycache_prefix={BOOT_PYCACHE}", "-m", config.entry]
        if compiled is not None and isolation.sandbox == "bubblewrap":
            inner[3] = f"pycache_prefix={COMPILED_DIRECTORY}"
        inner += ["--control", str(theirs.fileno())]
        layout: dict[str, Any] = {**(knobs or {}), "fuse": isolation.fuse, "every": every, "replica": replica}
        layout |= {"mesh": {"endpoint": endpoint}} if endpoint else {}
        environment = {**SANDBOX_ENVIRONMENT, **(CLEARING if clearing else {})}
        descriptors = [theirs.fileno()]
        info_read = None
        if isolation.sandbox == "bubblewrap":
            info_read, info_write = os.pipe()
            resources.callback(os.close, info_read)
            descriptors.append(info_write)
            bwrap = sandbox.bubblewrap()
            assert bwrap is not None  # noqa: S101  # Isolation.here found it
            user = None
            if isolation.separate:
                why = "it writes to a directory of yours" if mirror or shown else _closed_to_others(here)
                if why:
                    tell("notice", _notice(f"no user id of its own for the enclave: {why}"))
                else:
                    user = resources.enter_context(closing(allocate()))
                    descriptors.append(user.descriptor)
                    layout["user"] = user.id
                    _give(user.id, program, (stdout, stderr))
            directory = _identities(user.id if user else None, memory, resources)
            command = sandbox.bubblewrap_command(
                bwrap,
                inner,
                environment=here,
                program=program,
                identities=directory,
                vaults=places,
                mirror=mirror,
                hosts={staged(config, path): place for path, place in shown.items()},
                fuse=isolation.fuse,
                info_fd=info_write,
                separate=user is not None,
                compiled=compiled,
                image=image.tree.resolve() if image is not None else None,
                meshed=bool(endpoint or outside),
            )
            workdir = None
        else:
            private = directory = _private_directory(resources)
            layout |= {
                "vaults": {name: str(path.resolve()) for name, path in vaults.items()},
                "private_root": str(private),
            }
            inner[3] = f"pycache_prefix={private / '.pycache'}"
            command, workdir = inner, program
        host = HostSide(
            ours,
            config=config.to_bytes(),
            layout=layout,
            attester=attester,
            dials={**(dials or {}), **_cas_dial(cas)},
            listener=listener if devices is None else None,
            meshed=bool(endpoint),
            device=devices.giver(listener, resources) if devices is not None and listener is not None else None,
            outside=frozenset(outside),
            published=published or {},
            on_event=tell,
            unchanged=lambda: _check_unchanged([*measured.seen, own], image, known),
        )
        unpacked = [image.tree] if machine is not None and image is not None else []
        resources.enter_context(cleared_away([program, directory, *unpacked]))
        group = make_group(limits or Limits())
        resources.callback(group.close)
        for note in group.notes:
            tell("notice", _notice(note))
        with group.processors_of_children():
            process = subprocess.Popen(  # noqa: S603  # what was measured, or bubblewrap around it
                group.entered(command),
                env=environment,
                pass_fds=descriptors,
                cwd=workdir,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which passes it on to the program
            )
        theirs.close()
        pid = process.pid
        if info_read is not None:
            os.close(info_write)
            pid = _read_pid(info_read, process) or pid
        host.start()
    except BaseException:
        resources.close()
        raise
    return Enclave(process, host, resources, pid, measured, group)


@dataclass(frozen=True)
class _SimulatedHardware:
    """Quotes what the launcher measured, as a processor would."""

    vendor: SimulatedVendor
    measured: Measurement
    debug: bool
    tee: str = "simulated"

    def evidence(self, report_data: bytes) -> Evidence:
        return self.vendor.quote(self.measured.registers, report_data, debug=self.debug)


def _attester(
    measured: Measurement, vendor: SimulatedVendor | None, machine: Machine | None, *, debug: bool
) -> Attester:
    """What answers for the program. On a machine, which the program is now measured into."""
    if machine is not None:
        return machine.start(measured.value)
    assert vendor is not None  # noqa: S101  # _check_evidence saw one of them
    return _SimulatedHardware(vendor, measured, debug)


def _cas_dial(cas: CasAddress | None) -> dict[str, Callable[[], socket.socket]]:
    if cas is None:
        return {}
    host, port = split_address(cas.url)
    return {CAS: lambda: dial_cas(host, port)}


def _check_evidence(
    config: BootConfig, vendor: SimulatedVendor | None, machine: Machine | None, *, debug: bool
) -> None:
    if (vendor is None) == (machine is None):
        raise UsageError("launch: wanted a simulated vendor or a machine, and not both")
    if machine is None:
        return
    if config.isolation != SANDBOX:
        raise UsageError(
            f"--evidence {machine.tee}: without a sandbox the program could ask for evidence itself, as another",
            hint="install bubblewrap",
        )
    if debug:
        raise UsageError(f"--debug-enclave: is for simulated enclaves, not for a machine of {machine.tee}")


def _check_isolation(config: BootConfig, isolation: Isolation) -> None:
    if config.isolation != isolation.measured:
        raise UsageError(
            f"isolation: measured for {config.isolation}, this machine gives {isolation.measured}",
            hint="install bubblewrap, or measure for the machine that it shall run on",
        )
    if config.isolation == SANDBOX:
        return
    if config.image:
        raise UsageError("image: cannot be a root without a mount namespace", hint="install bubblewrap")
    if config.host:
        raise UsageError("paths: host directories cannot be shown without a mount namespace", hint="install bubblewrap")
    if config.log:
        raise UsageError("--log: nothing is private without a sandbox", hint="install bubblewrap")
    if config.sealed or config.files or config.ephemeral:
        raise UsageError(
            "files: sealed and given files cannot appear at their paths without a mount namespace",
            hint="install bubblewrap",
        )
    for rule in config.vaults:
        if rule.mount and (outer := outer_of(config, rule.mount)):
            raise UsageError(
                f"vault {rule.name}: cannot lie in {outer} without a mount namespace", hint="install bubblewrap"
            )
        if rule.mount and not any(f"{{vault:{rule.name}}}" in word for word in config.command):
            raise UsageError(
                f"vault {rule.name}: cannot appear at {rule.mount} without a mount namespace",
                hint=f"install bubblewrap, or write {{vault:{rule.name}}} in the command where its path belongs",
            )


def _host_directories(config: BootConfig, hosts: Mapping[str, Path]) -> dict[str, Path]:
    """What to show where. Raises UsageError unless there is exactly one for each."""
    if stray := set(hosts) - set(config.host):
        raise UsageError(f"--host-path: {min(stray)}: the policy has no such path of the host's")
    for path in config.host:
        if path not in hosts or not hosts[path].is_dir():
            got = f"{hosts[path]} is no directory" if path in hosts else "names none"
            raise UsageError(f"host path {path}: {got}", hint=f"--host-path {path}=DIR")
    return {path: hosts[path].resolve() for path in config.host}


def _copy_program(files: Mapping[str, Path], parent: Path, resources: ExitStack) -> Path:
    """The program's files in a directory of their own, so that what is measured is what runs."""
    directory = temporary_directory("strongroom-program-", parent)
    resources.callback(shutil.rmtree, directory, ignore_errors=True)
    for name, source in files.items():
        target = directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755)  # modes are not measured, so they may not differ
    return directory


def _check_unchanged(seen: Sequence[Seen], image: Unpacked | None, known: Digests) -> None:
    """Raises MeasurementError if files are not what was measured, or TamperedError, if the image is not."""
    check_unchanged(seen)
    if image is not None:
        image.measured(known)


def _seen_program(directory: Path, known: Digests) -> Seen:
    """The copies of the program's files, as they are now."""

    def now() -> list[str]:
        return [path for _, path in walk(str(directory))]

    paths = now()
    return Seen(now, frozenset(paths), known.stamp(paths).seen, known)


def _image_in_memory(image: Unpacked, memory: Path, resources: ExitStack) -> Unpacked:
    """The image, unpacked for this launch alone. Raises as `Unpacked.again`."""
    directory = temporary_directory("strongroom-image-", memory)
    resources.callback(shutil.rmtree, directory, ignore_errors=True)
    return image.again(directory / "images")


def _image_part(config: BootConfig, image: Unpacked | None, known: Digests) -> Part | None:
    """The image's tree, measured. Raises EnclaveError unless it is the one of the configuration."""
    if (image.image.digest if image is not None else "") != config.image:
        raise EnclaveError(f"image: got another one than the configuration names, {config.image[:23] or 'none'}")
    return image.measured(known) if image is not None else None


def _closed_to_others(environment: Environment) -> str | None:
    """Why a program of another user id could not run."""
    if sandbox.readable_by_others(environment):
        return None
    return f"{environment.prefix} and what it needs are closed to other users (chmod -R o+rX opens them)"


def _notice(text: str) -> dict[str, Any]:
    """As an enclave reports one."""
    return {"event": "notice", "text": text}


def _give(user: int, program: Path, streams: Sequence[int | None]) -> None:
    """Let the program's user, and nobody else, see its files; and open its streams by name where they are pipes."""
    os.chown(program, user, user)
    for default, stream in enumerate((0, *streams)):
        descriptor = default if stream is None else stream
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.fchown(descriptor, user, user)


def _identities(user: int | None, parent: Path, resources: ExitStack) -> Path:
    """A directory with the users, groups and names that an enclave knows: none of the host's."""
    directory = temporary_directory("strongroom-identities-", parent)
    resources.callback(shutil.rmtree, directory, ignore_errors=True)
    home, shell = SANDBOX_ENVIRONMENT["HOME"], "/bin/sh"
    known = [("root", 0), ("nobody", 65534), *([("enclave", user)] if user is not None else [])]
    users = "".join(f"{name}:x:{number}:{number}::{home}:{shell}\n" for name, number in known)
    (directory / "passwd").write_text(users)
    (directory / "group").write_text("".join(f"{name}:x:{number}:\n" for name, number in known))
    (directory / "hosts").write_text("127.0.0.1 localhost enclave\n::1 localhost enclave\n")
    return directory


def _private_directory(resources: ExitStack) -> Path:
    """A directory in memory for an enclave without a sandbox."""
    memory = Path("/dev/shm")  # noqa: S108
    directory = temporary_directory(_PRIVATE, memory if memory.is_dir() else Path(tempfile.gettempdir()))
    resources.callback(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _read_pid(descriptor: int, process: subprocess.Popen[bytes]) -> int | None:
    """The host's number of the sandboxed process, from bubblewrap's report; None if it died before.

    Killed before it reports, bubblewrap leaves a child that holds the pipe too and waits for it without end: that is
    ended here, by the group that both are in.
    """
    raw, ended = b"", 0
    while ended < _LOOKS:
        readable, _, _ = select.select([descriptor], [], [], _LOOK_SECONDS)
        if not readable:
            if process.poll() is not None:
                ended += 1
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            continue
        chunk = os.read(descriptor, 4096)
        if not chunk:
            break
        raw += chunk
        try:
            return int(json.loads(raw)["child-pid"])
        except ValueError:
            continue
    return None
